"""What is true of every VM operation; the operations themselves are in `tasks`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery import Celery

__version__ = "0.1.0"


def __getattr__(name: str) -> Celery:
    """Give `celery -A worker` its application without loading Celery for every import of this package."""
    if name == "celery":
        from worker.app import app  # noqa: PLC0415 - only when asked for

        return app
    raise AttributeError(name)
