"""The `vmops` command as people run it."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from typer.testing import CliRunner

import tests.support.toy  # noqa: F401 - the commands shall know the toys
from worker.cli.main import app
from worker.settings import get_settings

ROOT = Path(__file__).parents[2]
#: The command, with the toy operations beside those of this version.
WITH_TOYS = "import tests.support.toy; from worker.cli import main; main()"
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_TIMEOUT_S = 50


@dataclass(frozen=True)
class Ended:
    """What a command left."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Vmops:
    """`vmops` with the settings of a deployment. Most tests call it in this process, which is quicker."""

    env: Mapping[str, str]

    def with_settings(self, path: Path) -> Vmops:
        """Return the command with another settings file."""
        return replace(self, env={**self.env, "VMOPS_CONFIG": str(path)})

    def __call__(self, *words: str, stdin: str = "") -> Ended:
        """Run a command to its end."""
        get_settings.cache_clear()
        done = CliRunner().invoke(app, list(words), input=stdin, env=self.env, prog_name="vmops")
        get_settings.cache_clear()
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise AssertionError(done.output) from done.exception
        return Ended(done.exit_code, done.stdout, done.stderr)

    def start(self, *words: str, program: str = WITH_TOYS) -> subprocess.Popen[str]:
        """Start the command as a process of its own; the caller ends it."""
        return subprocess.Popen(
            [sys.executable, "-c", program, *words],
            cwd=ROOT,
            env={**self.env, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def in_terminal(self, *words: str, timeout_s: float = _TIMEOUT_S) -> Ended:
        """Run the command in a terminal of 100 columns; return everything it drew, colours and movements taken out."""
        ours, theirs = pty.openpty()
        terminal = {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40", "LANG": "C.UTF-8"}
        argv = [sys.executable, "-c", WITH_TOYS, *words]
        process = subprocess.Popen(
            argv, cwd=ROOT, env={**self.env, **terminal}, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        try:
            drawn = b"".join(_drawn(ours, timeout_s)).decode()
            status = process.wait(timeout_s)
        finally:
            process.kill()
            process.wait()
            os.close(ours)
        return Ended(status, _ANSI.sub("", drawn).replace("\r", ""), "")


def _drawn(terminal: int, timeout_s: float) -> Iterator[bytes]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            return
        if not part:
            return
        yield part
    raise AssertionError("the command did not end")


@contextlib.contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Let a process live as long as the block."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Return what a process prints up to the line that holds `text`."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"no {text!r} in:\n{seen}")


def read_to_the_end(process: subprocess.Popen[str]) -> str:
    """Return the rest of what a process prints; it has ended then."""
    assert process.stdout is not None
    rest = process.stdout.read()
    process.wait(_TIMEOUT_S)
    return rest
