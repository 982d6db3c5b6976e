"""The `vmops` command. Everything heavy is imported inside the commands, so that `vmops --help` is quick."""

from __future__ import annotations

from worker.cli.main import main

__all__ = ["main"]
