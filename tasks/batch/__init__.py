"""The batch stage: a file of prompts -> a file of answers, each row exactly once."""

from tasks.batch.answering import Tally, answer_parts
from tasks.batch.engines import release
from tasks.batch.estimate import Estimate, estimate, refuse_bad_rows
from tasks.batch.inputs import Part
from tasks.batch.job import Job, Plan, begin, ranges
from tasks.batch.output import write_output
from tasks.batch.places import absolute, exists, refuse_secrets, sha256_of
from tasks.batch.places import remove as discard
from tasks.batch.plan import plan

__all__ = [
    "Estimate",
    "Job",
    "Part",
    "Plan",
    "Tally",
    "absolute",
    "answer_parts",
    "begin",
    "discard",
    "estimate",
    "exists",
    "plan",
    "ranges",
    "refuse_bad_rows",
    "refuse_secrets",
    "release",
    "sha256_of",
    "write_output",
]
