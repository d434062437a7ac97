"""The validation stage."""

from tasks.validate.answering import reference_requests
from tasks.validate.attribution import Factor, attribute
from tasks.validate.comparing import EXACT
from tasks.validate.expectations import failures
from tasks.validate.validate import validate

__all__ = ["EXACT", "Factor", "attribute", "failures", "reference_requests", "validate"]
