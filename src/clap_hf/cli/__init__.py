"""The clap-hf command: a thin face over the package."""

from . import timeline  # noqa: F401  # adds its commands
from .commands import app

__all__ = ["app"]
