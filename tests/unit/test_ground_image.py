"""The container image: what the Dockerfile copies and installs, without building it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.compose import ROOT, copied_from_repository, dockerfile, is_ignored

PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)", re.MULTILINE)
PACKAGES = ("worker", "tasks", "simulator", "dom0")


def locked(name: str) -> dict[str, str]:
    """Return each distribution of a lock file with everything that stands about it, hashes included."""
    entries = re.split(r"\n(?=\S)", (ROOT / name).read_text(encoding="utf-8").strip())
    return {entry.partition("==")[0]: entry for entry in entries}


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    copies = [source for stage in dockerfile() for source, _ in copied_from_repository(stage)]
    assert copies
    for source in copies:
        assert (ROOT / source).exists(), source
        assert not is_ignored(source), source


@pytest.mark.parametrize(
    "path", [".git/config", ".venv/bin/python", "tests/conftest.py", "config/secrets/pool_password", ".env"]
)
def test_nothing_else_goes_into_the_build(path: str) -> None:
    assert is_ignored(path)


def test_every_package_of_the_wheel_is_copied() -> None:
    sources = {source.strip("/") for source, _ in copied_from_repository(dockerfile()[0])}
    assert set(PACKAGES) <= sources


def test_everything_is_installed_with_hashes_or_from_the_built_wheel() -> None:
    installs = [
        line for stage in dockerfile() for entry in stage for line in entry.text.split("&&") if "install " in line
    ]
    for line in (line for line in installs if "pip install" in line):
        assert "--require-hashes -r requirements" in line or "--no-index /wheels/" in line, line


def test_the_services_run_as_an_ordinary_user_without_installers() -> None:
    final = dockerfile()[-1]
    keywords = [entry.keyword for entry in final]
    assert final[keywords.index("USER")].text == "vmops"
    assert keywords.index("USER") > max(index for index, keyword in enumerate(keywords) if keyword in {"RUN", "COPY"})
    assert "pip uninstall --yes pip" in final[keywords.index("RUN")].text
    assert "pip uninstall --yes pip" in dockerfile()[0][-1].text


def test_the_workers_tools_are_installed() -> None:
    assert (
        "--no-install-recommends e2fsprogs" in dockerfile()[-1][[e.keyword for e in dockerfile()[-1]].index("RUN")].text
    )


def test_the_images_python_is_one_that_the_package_supports() -> None:
    bases = {entry.words[0] for stage in dockerfile() for entry in stage if entry.keyword == "FROM"}
    version = re.fullmatch(r"python:(3\.\d+)-slim", bases.pop())
    assert not bases
    assert version is not None
    classifier = f"Programming Language :: Python :: {version.group(1)}"
    assert classifier in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_runtime_lock_is_a_part_of_the_whole_lock() -> None:
    whole, runtime = locked("requirements.lock"), locked("requirements-runtime.lock")
    differing = {name for name, entry in runtime.items() if whole.get(name) != entry}
    assert differing == set()
    assert "celery" in runtime
    assert not {"pytest", "mypy", "ruff", "hatchling"} & set(runtime)


#: Imports everything that the services run, and prints the distributions that it came from.
IMPORTED = """
import importlib, pkgutil, sys
from importlib.metadata import packages_distributions

for name in ("worker", "tasks", "simulator"):
    for one in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}."):
        if not one.name.startswith("simulator.testing") and not one.name.endswith("__main__"):
            importlib.import_module(one.name)
for name in ("celery.bin.celery", "flower.command"):
    importlib.import_module(name)
known = packages_distributions()
print(*{one for name in sys.modules for one in known.get(name.partition(".")[0], ())})
"""


@pytest.mark.slow
def test_the_runtime_lock_has_everything_that_the_services_import() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", IMPORTED], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    ).stdout
    imported = {str(canonicalize_name(name)) for name in printed.split()} - {"vmops"}
    assert "kombu" in imported
    assert imported - set(locked("requirements-runtime.lock")) == set()


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-runtime.lock"])
def test_every_locked_distribution_has_hashes_and_no_address(name: str) -> None:
    entries = locked(name)
    assert len(entries) > 40
    for entry in entries.values():
        assert "--hash=sha256:" in entry
    assert not re.search(r"://|--index|--find-links|^#", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)


def test_the_lock_satisfies_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["openstack"],
        *project["dependency-groups"]["dev"],
    ]
    whole = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned = {canonicalize_name(match["name"]): match["version"] for match in PIN.finditer(whole)}
    unmet = [
        text
        for text in asked
        if not (wanted := Requirement(text)).specifier.contains(pinned.get(canonicalize_name(wanted.name), "0"))
    ]
    assert unmet == []


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_packages(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = {name for name in wheel.namelist() if name.split("/")[0] in PACKAGES}
    wanted = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == wanted
