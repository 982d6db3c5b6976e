"""`vmops dom0 install`: complete or not at all, again without effect, and nothing of others touched."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.dom0 import PACK, VERSIONS, interpreter
from worker.cli import dom0
from worker.cli.complaints import Complaint
from worker.cli.dom0 import Done

PYTHON = Path("/usr/bin/python3")
SCRIPTS = sorted(path.name for path in PACK.glob("vmops-*"))

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="this machine has no /usr/bin/python3, as every dom0 has")


@dataclass
class Machine:
    """What stands for a host, and for SSH to it: the command goes to a shell, as sshd gives it."""

    folder: Path

    def __post_init__(self) -> None:
        (self.plugins).mkdir(parents=True)
        (self.plugins / "echo").write_text("of XAPI", encoding="ascii")
        self.ssh = self.folder / "ssh"
        self.ssh.write_text(
            "#!/bin/sh\n"
            f'echo "$2" > {shlex.quote(str(self.folder / "destination"))}\n'
            f"export VMOPS_DOM0_ROOT={shlex.quote(str(self.root))}\n"
            'exec sh -c "$3"\n',
            encoding="utf-8",
        )
        self.ssh.chmod(0o755)

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def plugins(self) -> Path:
        return self.root / "etc/xapi.d/plugins"

    @property
    def home(self) -> Path:
        return self.root / "opt/vmops/dom0"

    def carry_out(self, action: str = "install", host: str = "10.0.0.1") -> Done:
        return dom0.carry_out(action, host, [str(self.ssh), "-x"])

    def names(self) -> list[str]:
        return sorted(path.name for path in self.plugins.iterdir())

    def versions(self) -> list[str]:
        return sorted(path.name for path in self.home.iterdir() if path.name != "current")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


@pytest.fixture
def other_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pack that differs from ours; it is the one of `dom0` from then on."""
    folder = tmp_path / "dom0"
    subprocess.run(["cp", "-r", str(dom0.FOLDER), str(folder)], check=True)
    monkeypatch.setattr(dom0, "FOLDER", folder)
    monkeypatch.setattr(dom0, "PLUGINS", folder / "plugins")
    return folder


def test_a_host_gets_the_plugins_and_they_run(machine: Machine) -> None:
    done = machine.carry_out()
    assert (done.problem, done.answer["pack"], done.answer["changed"]) == ("", dom0.pack_version(), True)
    assert (machine.folder / "destination").read_text(encoding="utf-8") == "root@10.0.0.1\n"
    assert machine.names() == ["echo", *SCRIPTS]
    assert (machine.plugins / "echo").read_text(encoding="ascii") == "of XAPI"
    cron = (machine.root / "etc/cron.d/vmops").read_text(encoding="ascii")
    assert cron.startswith("* * * * * root cd /opt/vmops/dom0/current && exec /usr/bin/python3 -c ")
    command = cron.partition("root ")[2].replace("/opt/vmops", f"{machine.root}/opt/vmops")
    subprocess.run(["sh", "-c", command], check=True, env={"VMOPS_DOM0_ROOT": str(machine.root), "PATH": "/usr/bin"})


def test_a_second_time_changes_nothing(machine: Machine) -> None:
    machine.carry_out()
    before = {path: path.lstat().st_mtime_ns for path in machine.root.rglob("*") if "__pycache__" not in path.parts}
    assert machine.carry_out().answer["changed"] is False
    after = {path: path.lstat().st_mtime_ns for path in machine.root.rglob("*") if "__pycache__" not in path.parts}
    touched = {path.name for path, stamp in after.items() if before.get(path) != stamp}
    assert touched <= {"dom0", "__pycache__"}


def test_an_update_replaces_every_plugin_and_keeps_the_version_before(machine: Machine, other_pack: Path) -> None:
    machine.carry_out()
    for number in range(3):
        (other_pack / "plugins/vmops_lib/__init__.py").write_text(f'PACK = "9.{number}"\nAPI = 1\n', encoding="ascii")
        (other_pack / "plugins/vmops-kernel").unlink(missing_ok=True)
        assert machine.carry_out().answer["pack"] == f"9.{number}"
    assert len(machine.versions()) == 2
    assert machine.names() == ["echo", *[name for name in SCRIPTS if name != "vmops-kernel"]]
    folders = {path.resolve().parent for path in machine.plugins.iterdir() if path.is_symlink()}
    assert folders == {(machine.home / "current").resolve()}


def test_the_hook_for_vifs_is_ours_unless_somebody_has_one(machine: Machine) -> None:
    hook = machine.root / "etc/xapi.d/vif-hotplug"
    machine.carry_out()
    call = [str(hook), "-action", "online", "-vifuuid", "x", "-vmuuid", "y"]
    subprocess.run(call, check=True, env={"VMOPS_DOM0_ROOT": str(machine.root), "PATH": "/usr/bin"})
    machine.carry_out("remove")
    assert not os.path.lexists(hook)
    hook.write_text("somebody's", encoding="ascii")
    machine.carry_out()
    machine.carry_out("remove")
    assert hook.read_text(encoding="ascii") == "somebody's"


def test_a_plain_file_of_an_older_way_is_replaced(machine: Machine) -> None:
    (machine.plugins / "vmops-info").write_text("old", encoding="ascii")
    machine.carry_out()
    assert (machine.plugins / "vmops-info").is_symlink()


def test_a_pack_that_does_not_run_is_never_turned_to(machine: Machine, other_pack: Path) -> None:
    machine.carry_out()
    before = (machine.plugins / "vmops-info").readlink()
    (other_pack / "plugins/vmops_lib/dispatch.py").write_text("syntax error", encoding="ascii")
    done = machine.carry_out()
    assert done.problem.startswith("the plugins do not run here")
    assert (machine.plugins / "vmops-info").readlink() == before


def test_removal_takes_what_is_ours_and_may_be_repeated(machine: Machine) -> None:
    machine.carry_out()
    (machine.plugins / "vmops-own").write_text("somebody's", encoding="ascii")
    state = machine.root / "var/lib/vmops/console.json"
    state.parent.mkdir(parents=True)
    state.write_text("1", encoding="ascii")
    assert machine.carry_out("remove").answer == {"changed": True}
    assert machine.names() == ["echo", "vmops-own"]
    assert not machine.home.exists()
    assert not (machine.root / "etc/cron.d/vmops").exists()
    assert state.exists()
    assert machine.carry_out("remove").answer == {"changed": False}


def test_what_is_no_dom0_is_left_alone(machine: Machine) -> None:
    (machine.plugins / "echo").unlink()
    machine.plugins.rmdir()
    assert machine.carry_out().problem.startswith("there is no /etc/xapi.d/plugins")
    assert not machine.home.exists()


def test_a_python_that_is_too_old_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (dom0.FOLDER / "installer.py").read_text(encoding="ascii")
    names: dict[str, Any] = {"__name__": "installer"}
    exec(compile(text, "installer.py", "exec"), names)  # noqa: S102 - as the host does
    monkeypatch.setenv("VMOPS_DOM0_ROOT", str(machine.root))
    names["_OLDEST"] = (99,)
    with pytest.raises(names["Refused"], match=r"the plugins need 3\.6 or later"):
        names["install"](dom0.pack())
    assert machine.names() == ["echo"]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "link"])
def test_a_tar_with_anything_else_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        if name == "link":
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry, io.BytesIO())
    monkeypatch.setattr(dom0, "pack", memory.getvalue)
    assert "something else than files" in machine.carry_out().problem
    assert machine.names() == ["echo"]
    assert machine.versions() == []


@pytest.mark.parametrize("version", VERSIONS)
def test_the_installer_runs_with_the_pythons_of_dom0(machine: Machine, version: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"this machine has no Python {version}")
    text = (dom0.FOLDER / "installer.py").read_text(encoding="ascii")
    ended = subprocess.run(
        [python, "-c", text, "install"],
        input=dom0.pack(),
        capture_output=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "VMOPS_DOM0_ROOT": str(machine.root)},
    )
    assert json.loads(ended.stdout)["changed"] is True
    assert machine.names() == ["echo", *SCRIPTS]


def test_a_host_that_cannot_be_reached_or_has_no_python_is_told_apart(tmp_path: Path) -> None:
    def ssh(script: str) -> list[str]:
        path = tmp_path / "ssh"
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
        path.chmod(0o755)
        return [str(path)]

    unreachable = "echo 'ssh: connect to host h port 22: Connection refused' >&2; exit 255"
    problem = dom0.carry_out("install", "h", ssh(unreachable)).problem
    assert problem.startswith("ssh: connect to host h port 22: Connection refused (SSH as root must be possible")
    problem = dom0.carry_out("install", "admin@h", ssh("exit 127")).problem
    assert problem == "the host has no /usr/bin/python3: XCP-ng 8.2 cannot run these plugins, 8.3 can"
    with pytest.raises(Complaint, match="There is no program"):
        dom0.carry_out("install", "h", [str(tmp_path / "none")])


def test_the_same_files_make_the_same_pack() -> None:
    seen = subprocess.run(
        [sys.executable, "-c", "from worker.cli import dom0; import sys; sys.stdout.buffer.write(dom0.pack())"],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )
    assert seen.stdout == dom0.pack()
