"""The model as MLflow loads it: `mlflow.pyfunc.load_model("models:/NAME/1").predict([{"messages": [...]}])`.

This file is stored with every version and runs where vinoflow is not installed: it imports nothing of it. vinoflow's
own commands never run it; they pull the files and use their own engine.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import mlflow
import pydantic


class ChatMessage(pydantic.BaseModel):
    """One message of a chat."""

    role: str
    content: str


class Chat(pydantic.BaseModel):
    """A chat to be answered, and how many tokens the answer may have."""

    messages: list[ChatMessage]
    max_new_tokens: int = 256


class ChatModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Answers chats greedily with openvino-genai, on VINOFLOW_DEVICE (default: CPU)."""

    def load_context(self, context: Any) -> None:
        """Check every file against the manifest, then load the model."""
        import openvino_genai

        folder = Path(context.artifacts["model"])
        for entry in json.loads((folder / "manifest.json").read_bytes())["files"]:
            with (folder / entry["name"]).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    raise ValueError(f"{folder / entry['name']} is damaged: fetch the model again")
        self.pipeline = openvino_genai.LLMPipeline(str(folder), os.environ.get("VINOFLOW_DEVICE", "CPU"))

    def predict(self, model_input: list[Chat]) -> list[str]:
        """Return one answer a chat."""
        import openvino_genai

        answers = []
        for chat in model_input:
            generation = self.pipeline.get_generation_config()
            generation.max_new_tokens = chat.max_new_tokens
            generation.do_sample = False
            history = openvino_genai.ChatHistory([message.model_dump() for message in chat.messages])
            answers.append(self.pipeline.generate(history, generation).texts[0])
        return answers


mlflow.models.set_model(ChatModel())
