"""The validation stage."""

from tasks.validate.attribution import Factor, attribute
from tasks.validate.validate import validate

__all__ = ["Factor", "attribute", "validate"]
