"""Who may import whom (docs/architecture.md) is held by import-linter, and the contracts do bite."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")

#: A module, an import that its room must not have, the contract that says so.
TRESPASSES = [
    ("worker/errors.py", "import worker.settings", "errors"),
    ("worker/retry.py", "import worker.xenapi", "settings"),
    ("worker/xenapi/__init__.py", "import worker.operations", "xenapi"),
    ("worker/xenapi/__init__.py", "import celery", "xenapi"),
    ("worker/operations/__init__.py", "import worker.images", "operations"),
    ("worker/images/__init__.py", "import celery", "domains"),
    ("worker/images/__init__.py", "import tasks", "domains"),
    ("tasks/other.py", "import tasks.another", "tasks"),
    ("worker/cli/embedded.py", "import worker.xenapi", "clients"),
    ("worker/client.py", "import tasks.other", "clients"),
    ("worker/settings.py", "import simulator", "product"),
    ("simulator/__init__.py", "import worker.errors", "simulator"),
]


def lint_imports(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(LINT_IMPORTS), "--no-cache", "--no-logo", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_rooms_import_only_what_they_may() -> None:
    linted = lint_imports(ROOT)
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.fixture(scope="module")
def copied_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, with two operations that are there to be disobedient."""
    folder = tmp_path_factory.mktemp("sources")
    for package in ("worker", "tasks", "simulator"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in ("other", "another"):
        (folder / "tasks" / f"{name}.py").touch()
    return folder


@pytest.mark.parametrize(("module", "statement", "contract"), TRESPASSES)
def test_a_trespass_breaks_its_contract(copied_sources: Path, module: str, statement: str, contract: str) -> None:
    source = copied_sources / module
    before = source.read_text()
    source.write_text(f"{before}\n{statement}\n")
    try:
        linted = lint_imports(copied_sources, "--contract", contract)
    finally:
        source.write_text(before)
    assert linted.returncode == 1
    assert "Contracts: 0 kept, 1 broken." in linted.stdout
