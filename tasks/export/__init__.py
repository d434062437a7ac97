"""The export stage."""

from tasks.export.export import export, has_chat_template

__all__ = ["export", "has_chat_template"]
