"""The validation stage."""

from tasks.validate.validate import validate

__all__ = ["validate"]
