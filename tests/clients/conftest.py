"""Clients that are not ours, installed once into `.clients`: from npm by the lock file, from PyPI as pinned."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from simulator.testing import PoolProcess
from tests.support.compose import ROOT

HERE = Path(__file__).parent
INSTALLED = ROOT / ".clients"
OLDEST_NODE = 20
#: Of this package only the collection that speaks XenAPI is unpacked.
ANSIBLE = "ansible==11.13.0"
COLLECTION = "ansible_collections/community/general/"
DISK_SIZE = 8 << 20
_INSTALL_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here belongs to the tier; the first test may have to install its client."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.clients)
            item.add_marker(pytest.mark.timeout(_INSTALL_S))


def install(kind: str, sources: list[Path], build: Callable[[Path], object], *versions: str) -> Path:
    """Return the folder of a client, made once for these sources and versions by whichever test process comes first."""
    digest = hashlib.sha256("\n".join(versions).encode())
    for source in sources:
        digest.update(source.read_bytes())
    folder = INSTALLED / f"{kind}-{digest.hexdigest()[:12]}"
    INSTALLED.mkdir(exist_ok=True)
    with (INSTALLED / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".installed").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            build(folder)
            (folder / ".installed").touch()
    return folder


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Return what a command printed; fail the test with everything it said when it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=_INSTALL_S,
    )
    if done.returncode:
        pytest.fail(f"{command[0]} ended with status {done.returncode}\n{done.stdout}\n{done.stderr}", pytrace=False)
    return done.stdout


# -- npm


@dataclass(frozen=True)
class NodeClient:
    """A script of this folder, beside the packages that it imports."""

    script: Path

    def __call__(self, scenario: str, pool: PoolProcess, transport: str, **options: object) -> dict[str, Any]:
        """Run one scenario; return what it printed."""
        login = {"url": pool.url, "user": pool.user, "password": pool.password, "transport": transport}
        printed = run("node", self.script, scenario, json.dumps(login | options))
        answer: dict[str, Any] = json.loads(printed)
        return answer


def node_version() -> str:
    """Return node's version; skip the test without node and npm, or with one that is too old."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    version = run("node", "--version").strip().removeprefix("v")
    if int(version.partition(".")[0]) < OLDEST_NODE:
        pytest.skip(f"node {version} is older than {OLDEST_NODE}")
    return version


def _install_npm(folder: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder)
    run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)


@pytest.fixture(scope="session")
def xen_orchestra() -> Iterator[NodeClient]:
    """Xen Orchestra's client."""
    folder = install("npm", [HERE / "package.json", HERE / "package-lock.json"], _install_npm, node_version())
    with tempfile.NamedTemporaryFile(dir=folder, prefix="run-", suffix=".mjs") as script:
        script.write((HERE / "xen_orchestra.mjs").read_bytes())
        script.flush()
        yield NodeClient(Path(script.name))


# -- PyPI


@dataclass(frozen=True)
class Ansible:
    """Ansible with its XenServer modules."""

    folder: Path

    def play(self, book: str, pool: PoolProcess, home: Path, **variables: object) -> str:
        """Run a playbook of this folder against a pool; return what it printed."""
        login = {"url": pool.url, "user": pool.user, "password": pool.password}
        python = {"ansible_python_interpreter": str(self.folder / "bin" / "python")}
        env = {
            "ANSIBLE_COLLECTIONS_PATH": str(self.folder),
            "ANSIBLE_HOME": str(home),
            "ANSIBLE_INVENTORY": "localhost,",
            "ANSIBLE_NOCOLOR": "1",
        }
        extra = json.dumps({"ansible_connection": "local", **login, **python, **variables})
        return run(self.folder / "bin" / "ansible-playbook", HERE / book, "--extra-vars", extra, env=env)


def install_python(folder: Path, requirements: Path) -> list[str | Path]:
    """Make a virtual environment with these packages; return the beginning of a pip command there."""
    run(sys.executable, "-m", "venv", folder)
    pip: list[str | Path] = [folder / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "install", "-r", requirements)
    return pip


def _install_ansible(folder: Path) -> None:
    pip = install_python(folder, HERE / "requirements-ansible.txt")
    with tempfile.TemporaryDirectory() as downloads:
        run(*pip, "download", "--no-deps", "--only-binary=:all:", "--dest", downloads, ANSIBLE)
        (wheel,) = Path(downloads).iterdir()
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(COLLECTION)])


@pytest.fixture(scope="session")
def ansible() -> Ansible:
    """Ansible, of versions of its own."""
    return Ansible(install("ansible", [HERE / "requirements-ansible.txt"], _install_ansible, ANSIBLE, sys.version))


# -- what the tests need


@pytest.fixture
def disk_file(tmp_path: Path) -> Path:
    """A file of random bytes with a hole in it."""
    content = bytearray(os.urandom(DISK_SIZE))
    content[DISK_SIZE // 4 : DISK_SIZE // 2] = bytes(DISK_SIZE // 4)
    path = tmp_path / "disk.raw"
    path.write_bytes(content)
    return path
