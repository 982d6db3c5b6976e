"""Programs that judge what ours have made. A test that needs one which is not there is skipped."""

from __future__ import annotations

import shutil
import subprocess

import pytest

#: Services often have no sbin on their PATH, nor have people.
TOOLS_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


def has_tool(name: str) -> bool:
    """Tell whether there is such a program."""
    return shutil.which(name, path=TOOLS_PATH) is not None


def run_tool(name: str, *arguments: str) -> str:
    """Run a program, which must succeed; return what it says."""
    path = shutil.which(name, path=TOOLS_PATH)
    if path is None:
        pytest.skip(f"{name} is not there")
    done = subprocess.run([path, *arguments], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout
