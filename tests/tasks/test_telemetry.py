from __future__ import annotations

import os
import subprocess
import sys

PROBE = """
import os, sys
from tasks import telemetry
telemetry.turn_off()
try:
    import openvino_telemetry
    hidden = False
except ImportError:
    hidden = True
import huggingface_hub.constants
print(hidden, os.environ.get("DO_NOT_TRACK"), bool(huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY))
"""


def probe(**environment: str) -> list[str]:
    names = ("DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY", "MLFLOW_DISABLE_TELEMETRY", "VINOFLOW_TELEMETRY")
    env = {name: value for name, value in os.environ.items() if name not in names} | environment
    done = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_usage_statistics_are_off() -> None:
    assert probe() == ["True", "true", "True"]


def test_a_user_can_leave_them_as_the_libraries_have_them() -> None:
    assert probe(VINOFLOW_TELEMETRY="on") == ["False", "None", "False"]


def test_what_a_user_has_set_stays() -> None:
    assert probe(DO_NOT_TRACK="false")[1] == "false"
