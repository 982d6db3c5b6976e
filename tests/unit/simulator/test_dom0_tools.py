"""The stand-ins for Xen's command-line tools, and the real ones where they are installed, on the same XenStore.

What is expected here was seen with the real tools of Xen 4.17; the comparison holds the two together.
"""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from simulator.dom0.root import Root
from simulator.dom0.xenstore import XenStore
from tests.unit.simulator.dom0_support import served

TOOLS = ("read", "write", "list", "ls", "exists", "rm", "chmod", "watch")
HAS_REAL_TOOLS = all(shutil.which(f"xenstore-{name}") for name in TOOLS)
needs_real_tools = pytest.mark.skipif(not HAS_REAL_TOOLS, reason="xenstore-utils is not installed")
PATIENCE_S = 50


class Said(NamedTuple):
    """What a tool ended with."""

    status: int
    output: bytes
    errors: bytes


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the stand-ins of a private root."""
    root = Root(tmp_path_factory.mktemp("dom0") / "root", ())
    root.build({})
    return root.path / "usr/bin"


def filled() -> XenStore:
    store = XenStore()
    store.update(
        {
            "/local/domain/0/name": "Domain-0",
            "/a/all": bytes(range(1, 256)),
            "/a/x": "1",
            "/a/y": "2",
            "/a/nul": b"a\0b" + bytes(range(10)) + b"7\x017",
            "/a/long": "0123456789" * 12,
            "/deep/er/leaf": "1",
            "/val": "v",
            "/val/er/leaf": "1",
            "/sib/er/leaf": "1",
            "/sib/other": "x",
            "/lone": "",
        }
    )
    store.update({f"/many/node-number-{number:05d}": "" for number in range(400)})
    store.update({f"/w{length}": "x" * length for length in (50, 51, 52, 67, 68, 69, 70, 71)})
    return store


@pytest.fixture
def store() -> XenStore:
    return filled()


@pytest.fixture
def address(store: XenStore, tmp_path: Path) -> Iterator[Path]:
    with served(store, tmp_path) as address:
        yield address


def run(folder: Path, address: Path, *command: str) -> Said:
    """Run a tool by its name."""
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "XENSTORED_PATH": str(address)}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S, check=False
    )
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("command", "status", "output", "errors"),
    [
        ("read /a/x", 0, b"1\n", b""),
        ("read -p /a/x /a/y", 0, b"/a/x: 1\n/a/y: 2\n", b""),
        ("read /nope", 1, b"", b"xenstore-read: couldn't read path /nope\n"),
        ("read -R /a/x", 0, b"1", b""),
        ("exists /a", 0, b"", b""),
        ("exists /a /nope", 1, b"", b""),
        ("list /sib", 0, b"er\nother\n", b""),
        ("list /nope", 1, b"", b"xenstore-list: could not list path /nope\n"),
        ("ls /sib", 0, b'er = ""\n leaf = "1"\nother = "x"\n', b""),
        ("ls -f /sib", 0, b'/sib/er = ""\n/sib/er/leaf = "1"\n/sib/other = "x"\n', b""),
        ("ls /nope", 1, b"", b"xenstore-ls: xs_directory (/nope): No such file or directory\n"),
        ("write /a.b 1", 1, b"", b"xenstore-write: could not write path /a.b\n"),
        ("rm /a/missing", 0, b"", b""),
        ("rm /q/z", 1, b"", b"xenstore-rm: could not remove path /q/z\n"),
        ("watch -n 1 /a", 0, b"/a\n", b""),
    ],
)
def test_a_stand_in_says_what_the_real_tool_says(
    stand_ins: Path, address: Path, command: str, status: int, output: bytes, errors: bytes
) -> None:
    name, *rest = command.split()
    assert run(stand_ins, address, f"xenstore-{name}", *rest) == Said(status, output, errors)


def test_write_undoes_escapes_unless_told_to_be_raw(stand_ins: Path, address: Path, store: XenStore) -> None:
    run(stand_ins, address, "xenstore-write", "/e", '{"a": "x\\ny"}', "/r/s", "C:\\tmp")
    assert (store.read("/e"), store.read("/r/s")) == (b'{"a": "x\ny"}', b"C:\tmp")
    run(stand_ins, address, "xenstore-write", "-R", "/e", '{"a": "x\\ny"}')
    assert store.read("/e") == b'{"a": "x\\ny"}'
    assert run(stand_ins, address, "xenstore-read", "/e").output == b'{"a": "x\\\\ny"}\n'


def test_a_refused_write_among_several_changes_nothing(stand_ins: Path, address: Path, store: XenStore) -> None:
    assert run(stand_ins, address, "xenstore-write", "/new/1", "a", "/new.2", "b").status == 1
    assert not store.exists("/new")


def test_without_a_daemon_the_tools_say_so(stand_ins: Path, tmp_path: Path) -> None:
    said = run(stand_ins, tmp_path / "nothing", "xenstore-read", "/a")
    assert said == Said(1, b"", b"xenstore-read: xs_open: No such file or directory\n")


def test_values_are_cut_at_the_width_of_a_terminal(stand_ins: Path, address: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {"PATH": str(stand_ins), "XENSTORED_PATH": str(address)}
    try:
        subprocess.run(["/usr/bin/env", "stty", "cols", "40"], stdin=theirs, check=True, env={"PATH": "/usr/bin:/bin"})
        subprocess.run(
            [sys.executable, "-IS", str(stand_ins / "xenstore-ls"), "/a"], env=environment, stdout=theirs, check=True
        )
        shown = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert 'long = "01234567890123456789012345\\..."\r\n' in shown


#: Run in this order on one store each: later commands see what earlier ones did.
COMPARED: Sequence[Sequence[str]] = (
    ("ls",), ("ls", "/"), ("ls", "-f"), ("ls", "-p"), ("ls", "-fp", "/a"), ("ls", "--flat", "/a"), ("ls", "/many"),
    ("read", "/a/all"), ("read", "-R", "/a/all"), ("read", "-Rp", "/a/x", "/a/nul"), ("read", "/a/x", "-R"),
    ("read", "/a/x", "/nope", "/a/y"), ("read",), ("read", "-h"), ("read", "--help"), ("read", "-Z", "/a/x"),
    ("read", "--bogus", "/a/x"), ("read", "-n", "/a/x"), ("read", "-t", "/a/x"), ("read", "--", "/a/x"),
    ("read", "--prefix", "/a/x"), ("read", "name"), ("read", "/a/"), ("read", "/"), ("read", ""),
    ("read", "-s", "/a/x"),
    ("write", "/w"), ("write", "/w/1", "a", "/w/2", "b"), ("write", "/w/1", "z", "/w.", "b"), ("write", "/w/e", ""),
    ("write", "/w/u", r"\x41\101\0\e\\\q\"\t\n\r\x4\x4g\x\xg\8\400\7\78\777"), ("write", "/w/t", "end\\"),
    ("write", "/w/h", r"\x414\x4142"), ("write", "-R", "/w/r", r"\x41\n"), ("write", "", "x"), ("ls", "/w"),
    ("read", "-R", "/w/u", "/w/t", "/w/h", "/w/r", "/w/e"), ("write", "/w/big", "z" * 4089),
    ("write", "/w/big", "z" * 4088), ("write", "-R", "/w/big", "z" * 4090), ("write", "-p", "/w/3", "x"),
    ("list", "/a"), ("list", "-p", "/a"), ("list", "-p", "/"), ("list", "/a", "/nope"), ("list",), ("list", "/many"),
    ("exists", "/"), ("exists", "/a", "/a/x"), ("exists", "/a", "/nope"), ("exists", "-p", "/a"), ("exists",),
    ("rm", "/a/missing"), ("rm", "/q/z"), ("rm", "/w/1", "/q/z"), ("rm", "/"), ("rm",), ("rm", "-t", "/deep/er/leaf"),
    ("rm", "-t", "/val/er/leaf"), ("rm", "-t", "/sib/er/leaf"), ("rm", "--tidy", "/lone"), ("ls", "-p"),
    ("chmod", "/a", "n5", "r6", "b7", "w8"), ("chmod", "/a", "q5"), ("chmod", "/a"), ("chmod",), ("ls", "-p", "/"),
    ("chmod", "/a", "r"), ("chmod", "/a", "rx"), ("chmod", "/a", "r5x"), ("chmod", "/a", "r-1"), ("ls", "-p", "/"),
    ("chmod", "-r", "/a", "b2"), ("chmod", "-u", "/val/er", "n3", "r4"), ("chmod", "-ur", "/sib", "n1"),
    ("chmod", "-r", "/nope", "r1"), ("chmod", "--recurse", "/val", "b1"), ("ls", "-p", "/"),
    ("watch", "-n", "1", "/a"), ("watch", "-n2", "/a", "/val"), ("watch", "-n", "x", "/a"), ("watch", "-n"),
    ("watch", "-n", "1", "/x.y"), ("watch",), ("watch", "-n", "1", "name"), ("watch", "-f", "/a"),
)  # fmt: skip


@needs_real_tools
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_stand_ins_and_real_tools_agree_in_every_option(stand_ins: Path, tmp_path: Path) -> None:
    said = {}
    for which, folder in (("real", Path("/usr/bin")), ("ours", stand_ins)):
        with served(filled(), tmp_path / which) as address:
            said[which] = [run(folder, address, f"xenstore-{name}", *rest) for name, *rest in COMPARED]
            said[which] += [run(folder, address, "xenstore", *rest) for rest in ((), ("bogus",), ("read", "/a/x"))]
    for command, real, ours in zip([*COMPARED, (), ("bogus",), ("read",)], said["real"], said["ours"], strict=True):
        assert ours == real, command


@needs_real_tools
def test_the_real_tools_follow_a_watch(address: Path, store: XenStore) -> None:
    environment = os.environ | {"XENSTORED_PATH": str(address)}
    with subprocess.Popen(["xenstore-watch", "-n", "3", "/data"], env=environment, stdout=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == b"/data\n"
        store.write("/data/one", "1")
        store.update({"/data/one": None})
        assert watching.stdout.read() == b"/data/one\n/data/one\n"
        assert watching.wait(PATIENCE_S) == 0
