"""The export stage."""

from tasks.export.export import UNCOMPRESSED, export, has_chat_template

__all__ = ["UNCOMPRESSED", "export", "has_chat_template"]
