"""The download stage."""

from tasks.download.fetch import cached, download, identify

__all__ = ["cached", "download", "identify"]
