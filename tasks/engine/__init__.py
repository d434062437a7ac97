"""The engine: openvino-genai's continuous batching in a process of its own."""

from tasks.engine.aio import AsyncEngine, Ended, Group, Piece
from tasks.engine.client import Completion, Engine, Grammar, Request, Whole
from tasks.engine.grammar import GrammarCheck

__all__ = [
    "AsyncEngine",
    "Completion",
    "Ended",
    "Engine",
    "Grammar",
    "GrammarCheck",
    "Group",
    "Piece",
    "Request",
    "Whole",
]
