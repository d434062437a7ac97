"""The engine: openvino-genai's continuous batching in a process of its own."""

from tasks.engine.client import Completion, Engine, Request

__all__ = ["Completion", "Engine", "Request"]
