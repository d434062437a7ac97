"""A conversation with a model: pulled and loaded here, or behind an OpenAI-compatible server."""

from tasks.chat.conversation import Conversation, OnText, Partner, Reply, Served, Settings
from tasks.chat.local import Loaded, loaded
from tasks.chat.remote import Server, server

__all__ = ["Conversation", "Loaded", "OnText", "Partner", "Reply", "Served", "Server", "Settings", "loaded", "server"]
