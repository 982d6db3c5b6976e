"""The plugins against Xen's own daemons: that in C, and that in OCaml, which XenServer and XCP-ng run.

They need what Debian's package xen-utils-4.17 has, or the folder that VMOPS_TEST_XEN_BIN names, and a C compiler for
the stub that stands for the hypervisor.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from vmops_lib import agent, records
from vmops_lib.arguments import Arguments
from vmops_lib.failures import BadArgument, NotFound, Rebooted, TimedOut, TooLarge
from vmops_lib.xenstore import Store

from tests.support.dom0 import OTHER_VM_UUID, VM_UUID
from tests.unit.simulator.dom0_support import WireClient

STUB = Path(__file__).parents[2] / "support/xen_stub.c"
PATIENCE_S = 30
DOMAIN = {"dom_id": "7", "vm_uuid": VM_UUID}
HOME = "/local/domain/7"
DIRECTORY, READ, WRITE, RM = 1, 2, 11, 13


def daemon_of(name: str) -> Path | None:
    named = os.environ.get("VMOPS_TEST_XEN_BIN")
    folders = [Path(named)] if named else sorted(Path("/usr/lib").glob("xen-*/bin"))
    return next((folder / name for folder in folders if (folder / name).exists()), None)


def command_of(name: str, program: Path, folder: Path) -> list[str]:
    pid_file = str(folder / "pid")
    if name == "xenstored":
        return [str(program), "--no-fork", "--pid-file", pid_file]
    lines = [
        "persistent = false",
        f"pid-file = {pid_file}",
        f"xenstored-log-file = {folder}/log",
        f"access-log-file = {folder}/access",
        "xenstored-kva = /proc/xen/xsd_kva",
        "xenstored-port = /proc/xen/xsd_port",
    ]
    (folder / "conf").write_text("\n".join(lines) + "\n", encoding="ascii")
    return [str(program), "--no-fork", "--config-file", str(folder / "conf")]


@pytest.fixture(scope="module", params=["xenstored", "oxenstored"])
def daemon(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Run a daemon; yield its socket."""
    name: str = request.param
    program, compiler = daemon_of(name), shutil.which("cc")
    if program is None or compiler is None:
        pytest.skip(f"this machine has no {name if program is None else 'C compiler'}")
    with tempfile.TemporaryDirectory(prefix="xen-") as made:  # a socket's path is short
        folder = Path(made)
        stub = folder / "stub.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", str(stub), str(STUB), "-ldl"], check=True)
        places = {"XENSTORED_PATH": f"{folder}/socket", "XENSTORED_RUNDIR": made, "XENSTORED_ROOTDIR": made}
        with (
            (folder / "output").open("wb") as output,
            subprocess.Popen(
                command_of(name, program, folder),
                env={**os.environ, **places, "LD_PRELOAD": str(stub)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            ) as process,
        ):
            try:
                wait_for_socket(folder, process)
                yield folder / "socket"
            finally:
                process.kill()


def wait_for_socket(folder: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            if sock.connect_ex(str(folder / "socket")) == 0:
                return
        assert process.poll() is None, (folder / "output").read_text(encoding="utf-8")
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def client(daemon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WireClient]:
    """A domain in the daemon, and a client that is not ours; this process is a plugin of that host."""
    monkeypatch.setenv("XENSTORED_PATH", str(daemon))
    monkeypatch.setenv("VMOPS_DOM0_ROOT", str(tmp_path))
    with WireClient(daemon) as client:
        for path, value in (("name", "web1"), ("vm", f"/vm/{VM_UUID}"), ("data", ""), ("vm-data/hostname", "web1")):
            client.ask(WRITE, f"{HOME}/{path}\0{value}".encode())
        yield client
        client.ask(RM, f"{HOME}\0".encode())


def ask(fn: str, **args: str) -> Any:
    return records.FUNCTIONS[fn].body(Arguments({**DOMAIN, **args}))


def packed(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def test_any_bytes_come_back_up_to_the_last_that_fits(client: WireClient, request: pytest.FixtureRequest) -> None:
    """The daemon in OCaml bounds values, those of dom0 too; that in C only its messages."""
    in_message = 4096 - len(f"{HOME}/data/x") - 1
    room = 2048 if "oxenstored" in request.node.name else in_message
    for value in (b"", b'{"a": "C:\\\\t\\u00e9"}', b"\x00\xff\n", b"y" * room):
        ask("write", path="data/x", value_b64=packed(value))
        assert ask("read", path="data/x") == {"value_b64": packed(value)}
        assert client.ask(READ, f"{HOME}/data/x\0".encode()) == value
    for length in (room + 1, in_message + 1):
        with pytest.raises(TooLarge, match="XenStore"):
            ask("write", path="data/x", value_b64=packed(b"z" * length))
    assert client.ask(READ, f"{HOME}/data/x\0".encode()) == b"y" * room


def test_what_is_there_is_listed_and_what_is_not_is_not_found(client: WireClient) -> None:
    del client
    assert ask("tree", path="vm-data") == {"values": {"vm-data": "", "vm-data/hostname": packed(b"web1")}}
    assert ask("list", path="vm-data") == {"names": ["hostname"]}
    for fn in ("read", "list", "tree"):
        with pytest.raises(NotFound):
            ask(fn, path="data/none/deeper")
    assert ask("remove", path="vm-data/hostname") == {"removed": True}
    assert ask("remove", path="vm-data/hostname") == {"removed": False}
    assert ask("remove", path="data/none/deeper") == {"removed": False}


def test_more_names_than_fit_into_a_message_are_all_there(client: WireClient) -> None:
    names = [f"node-number-{number:04d}" for number in range(300)]
    for name in names:
        client.ask(WRITE, f"{HOME}/data/many/{name}\0".encode())
    assert sorted(ask("list", path="data/many")["names"]) == names


def test_a_path_that_the_daemon_refuses_is_a_bad_argument(client: WireClient) -> None:
    del client
    with Store() as store, pytest.raises(BadArgument, match="refuses the path"):
        store.read("/a.b")


def test_a_domain_that_is_gone_or_of_another_vm_is_noticed(client: WireClient) -> None:
    with pytest.raises(Rebooted, match="another VM"):
        ask("read", path="data", vm_uuid=OTHER_VM_UUID)
    client.ask(RM, f"{HOME}/name\0".encode())
    with pytest.raises(Rebooted, match="is gone"):
        ask("read", path="data")


def question(request_id: str, timeout: str) -> Arguments:
    payload = json.dumps({"name": "version", "value": "agent"})
    return Arguments({**DOMAIN, "request_id": request_id, "payload": payload, "timeout": timeout})


def test_an_agent_is_asked_and_its_answer_found(client: WireClient, daemon: Path) -> None:
    request_id = str(uuid4())

    def answer() -> None:
        node = f"{HOME}/data/host/{request_id}\0".encode()
        with WireClient(daemon) as guest:
            deadline = time.monotonic() + PATIENCE_S
            while request_id.encode() not in guest.ask(DIRECTORY, f"{HOME}/data/host\0".encode()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            guest.ask(RM, node)
            guest.ask(WRITE, f"{HOME}/data/guest/{request_id}\0the answer".encode())

    client.ask(WRITE, f"{HOME}/data/host\0".encode())
    thread = threading.Thread(target=answer)
    thread.start()
    try:
        assert agent.call(question(request_id, "20")) == {"response": "the answer"}
    finally:
        thread.join(PATIENCE_S)
    assert agent.sweep(Arguments({**DOMAIN, "older_than": "0"})) == {"removed": 1}


def test_a_question_that_nobody_takes_is_withdrawn(client: WireClient) -> None:
    with pytest.raises(TimedOut, match="did not look"):
        agent.call(question(str(uuid4()), "1"))
    assert client.ask(DIRECTORY, f"{HOME}/data/host\0".encode()) == b""
