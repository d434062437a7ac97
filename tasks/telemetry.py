"""Turns off the usage statistics that libraries send home, unless VINOFLOW_TELEMETRY=on."""

from __future__ import annotations

import os
import sys

SWITCHES = {
    "DO_NOT_TRACK": "true",  # prefect, mlflow; "1" is ignored by mlflow
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def turn_off() -> None:
    """Set every switch that the user has not set; children inherit them."""
    if os.environ.get("VINOFLOW_TELEMETRY", "off").lower() == "on":
        return
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    # openvino and nncf have no switch but a file in the user's home; without the package they use a silent stub
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
