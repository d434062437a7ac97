"""Exports that are broken on purpose, and good ones: what the gates of a validation must refuse, and accept."""

from tests.sabotage import exports, tokens, weights  # noqa: F401 - they register their sabotages
from tests.sabotage.good import GOOD
from tests.sabotage.registry import DEVICE_FAULTS, SABOTAGES, Sabotage, sabotaged

__all__ = ["DEVICE_FAULTS", "GOOD", "SABOTAGES", "Sabotage", "sabotaged"]
