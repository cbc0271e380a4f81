"""The clap-hf command: a thin face over the package."""

from .commands import app

__all__ = ["app"]
