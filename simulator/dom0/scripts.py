"""Running a plugin's script as XAPI's fork helper does (dom0-and-guest.md 1)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from simulator.dom0.answers import Ended

#: A script that could not be started ends with this, silently: not executable, no interpreter, argument too long.
_NOT_STARTED = 126


class Scripts:
    """The scripts that run. They outlive the toolstack, but not the host."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def run(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Ended:
        """Run a program to its end, however long that takes.

        It has no input, a session of its own, no open files but the standard ones, and a bare environment. Its output
        goes to files, so a process that it leaves behind is not waited for.
        """
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            try:
                status = self._run(command, environment, folder, (output, errors))
            except (OSError, ValueError):
                status = _NOT_STARTED
            return Ended(status, _text(output), _text(errors))

    def _run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        files: tuple[IO[bytes], IO[bytes]],
    ) -> int:
        with self._lock:
            if self._is_closed:
                return -signal.SIGKILL
            process = subprocess.Popen(
                list(command),
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=files[0],
                stderr=files[1],
                start_new_session=True,
            )
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    def close(self) -> None:
        """Kill what runs, with its children; start nothing more."""
        with self._lock:
            self._is_closed = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")
