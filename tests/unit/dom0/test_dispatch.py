"""The dispatcher: whatever comes in, XAPI gets one XML document in ASCII and exit status 0, and no secret gets out."""

from __future__ import annotations

import json
import socket
import tempfile
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from vmops_lib import lock

from simulator.core.failures import Failure
from simulator.dom0.answers import Ended, request, result
from tests.support.dom0 import OTHER_VERSIONS, PACK, VERSIONS, Host, interpreter

#: Linux takes no longer argument; the NUL at its end is not counted.
LONGEST_ARGUMENT = 131_071
CANARY = "canary-Xk29-secret"

#: A plugin with functions that do what a plugin may do wrong. {python} runs it.
ODD = """\
import os, signal, subprocess, sys, time
from vmops_lib.dispatch import Function, serve
from vmops_lib.failures import Busy
from vmops_lib import lock, run


def echo(args):
    return {"value": args.text("value", ".*")}

def chatty(args):
    print("a stray line")
    subprocess.call(["echo", "another"], stdout=sys.stderr)
    return 1

def nothing(args):
    return None

def control(args):
    return "\\x00\\x1b\\u20ac\\U0001f600"

def bug(args):
    raise ValueError("what is " + args.text("secret") + " " + chr(8364))

def unserialisable(args):
    return b"bytes"

def busy(args):
    raise Busy("somebody else, " + args.text("secret"))

def huge(args):
    return "x" * (3 << 20)

def slow(args):
    time.sleep(60)

def killed(args):
    os.kill(os.getpid(), signal.SIGKILL)

def leave(args):
    os._exit(3)

def refused(args):
    return run.run(["false"]).status

def absent(args):
    return run.run(["no-such-program"]).status

def hanging(args):
    return run.run(["sleep", "60"], timeout_s=0.2).status

def through(args):
    secret = args.text("secret").encode("ascii")
    return run.run(["cat", "/proc/self/cmdline", "/proc/self/environ", "-"], stdin=secret).output.decode("ascii")

def locked(args):
    with lock.held("x", 0.1):
        return True

TABLE = {name: Function(value, takes=("value", "secret"), deadline_s=1 if name == "slow" else 20)
         for name, value in list(globals().items()) if name in (
    "echo", "chatty", "nothing", "control", "bug", "unserialisable", "busy", "huge", "slow", "killed", "leave",
    "refused", "absent", "hanging", "through", "locked")}
TABLE["needy"] = Function(echo, needs=("value",))
if __name__ == "__main__":
    serve(TABLE)
"""


@pytest.fixture(scope="module")
def odd(host: Host) -> Host:
    """A host with one more plugin, `odd`."""
    write_odd(host)
    return host


def write_odd(host: Host) -> None:
    first = (host.plugins / "vmops-info").read_text(encoding="ascii").splitlines()[0]
    script = host.plugins / "odd"
    script.write_text(f"{first}\n{ODD}", encoding="ascii")
    script.chmod(0o755)


def call_text(fn: str = "version", **args: str) -> str:
    return request(fn, "OpaqueRef:session", args)


@contextmanager
def syslog(host: Host) -> Iterator[socket.socket]:
    """Listen where a host's programs send their log."""
    (host.root / "dev").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(host.root / "dev/log"))
        sock.setblocking(False)
        yield sock


# -- every Python


@pytest.mark.parametrize(
    "version", [*VERSIONS, *(pytest.param(version, marks=pytest.mark.matrix) for version in OTHER_VERSIONS)]
)
def test_a_python_runs_the_pack_as_xapi_runs_it(version: str, tmp_path: Path) -> None:
    """A short list for each; the rest is asked of the Python that runs the tests."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"this machine has no Python {version}")
    with Host(tmp_path, python) as host:
        write_odd(host)
        host.begin(7)
        assert host.call("vmops-info", "version")["python"].startswith(f"{version}.")
        domain = {"dom_id": "7", "vm_uuid": "0a1b2c3d-0000-4000-8000-000000000001"}
        host.call("vmops-xenstore", "write", **domain, path="data/x", value_b64="w6kA")
        assert host.call("vmops-xenstore", "tree", **domain, path="data") == {"values": {"data": "", "data/x": "w6kA"}}
        assert host.call("odd", "control") == "\x00\x1b€😀"
        assert host.error("odd", "bug", secret=CANARY) == ["VMOPS_INTERNAL", "ValueError: what is *** \\u20ac"]
        assert host.error("vmops-console", "tail", **domain)[0] == "VMOPS_NOT_FOUND"
        assert host.call("vmops-info", "capabilities")["xenstore_socket"]
        digest = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
        file = {"image_id": "img", "sha256": digest, "size": "3", "offset": "0", "data_b64": "Zm9v"}
        assert host.call("vmops-kernel", "put", **file)["complete"]
        question = {"request_id": "0a1b2c3d-0000-4000-8000-00000000000a", "payload": '{"name": "version", "value": ""}'}
        assert host.error("vmops-agent", "call", **domain, **question, timeout="1")[0] == "VMOPS_TIMEOUT"


# -- what comes in


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("a", "b"),
        ("",),
        ("no xml",),
        (b"\xff\xfe",),
        ("<methodCall/>",),
        ("<methodCall><methodName>version</methodName><params/></methodCall>",),
        (xmlrpc.client.dumps(("session", "no struct"), "version"),),
        (xmlrpc.client.dumps(("session", {"k": 1}), "version"),),
        (xmlrpc.client.dumps(("session", {}, "more"), "version"),),
    ],
)
def test_what_is_no_call_is_refused_in_good_order(host: Host, arguments: tuple[str | bytes, ...]) -> None:
    ended = host.run("vmops-info", *arguments)
    assert (ended.returncode, ended.stderr) == (0, b"")
    with pytest.raises(Failure) as caught:
        result(Ended(0, ended.stdout.decode("ascii"), ""))
    assert caught.value.details[0] == "VMOPS_BAD_ARGUMENT"


def test_non_ascii_arguments_do_no_harm_in_a_process_without_a_locale(odd: Host) -> None:
    ended = odd.run("odd", call_text("echo", value="ä€😀"))
    assert json.loads(result(Ended(ended.returncode, ended.stdout.decode("ascii"), ""))) == {"value": "ä€😀"}


def test_the_longest_argument_that_linux_takes_is_understood_and_the_next_is_not(odd: Host) -> None:
    frame = len(call_text("echo", value=""))
    # An empty value is `<value/>`, another one `<value>..</value>`.
    longest = "x" * (LONGEST_ARGUMENT - frame - len("<value></value>") + len("<value/>"))
    assert len(odd.call("odd", "echo", value=longest)["value"]) == len(longest)
    assert odd.error("odd", "echo", value=longest + "x")[:2] == ["XENAPI_PLUGIN_FAILURE", "non-zero exit"]


@pytest.mark.parametrize(
    ("fn", "args", "code", "text"),
    [
        ("nonesuch", {}, "VMOPS_UNKNOWN_FUNCTION", "has no such function"),
        ("needy", {}, "VMOPS_BAD_ARGUMENT", "Arguments are missing: value."),
        ("echo", {"typo": "1"}, "VMOPS_BAD_ARGUMENT", "Unknown arguments: typo."),
        ("echo", {"api": "2"}, "VMOPS_VERSION", "speaks version 1"),
    ],
)
def test_a_call_that_does_not_fit_the_pack_is_refused(
    odd: Host, fn: str, args: dict[str, str], code: str, text: str
) -> None:
    seen, message = odd.error("odd", fn, **args)
    assert seen == code
    assert text in message


def test_any_caller_may_ask_for_the_version(host: Host) -> None:
    assert host.call("vmops-agent", "version", api="99")["api"] == 1


# -- what goes out


def test_a_stray_print_does_not_spoil_the_answer(odd: Host) -> None:
    assert odd.call("odd", "chatty") == 1


def test_nothing_is_a_result_too(odd: Host) -> None:
    assert odd.call("odd", "nothing") is None


def test_a_result_that_is_no_json_or_too_long_is_a_failure(odd: Host) -> None:
    assert odd.error("odd", "unserialisable")[0] == "VMOPS_INTERNAL"
    assert odd.error("odd", "huge")[0] == "VMOPS_TOO_LARGE"


def test_a_failure_carries_its_code_and_no_secret(odd: Host) -> None:
    assert odd.error("odd", "busy", secret=CANARY) == ["VMOPS_BUSY", "somebody else, ***"]


def test_a_function_that_does_not_end_is_ended(odd: Host) -> None:
    assert odd.error("odd", "slow") == ["VMOPS_TIMEOUT", "The plugin did not come to an end in time."]


def test_other_ends_are_what_xapi_says_of_them(odd: Host) -> None:
    assert odd.error("odd", "killed")[:2] == ["XENAPI_PLUGIN_FAILURE", "signal: SIGKILL"]
    assert odd.error("odd", "leave")[:2] == ["XENAPI_PLUGIN_FAILURE", "non-zero exit"]


def test_no_file_of_the_library_can_be_called(host: Host) -> None:
    assert host.error("vmops_lib", "version")[:2] == ["XENAPI_PLUGIN_FAILURE", "non-zero exit"]
    assert host.error("vmops_lib/log.py", "version") == ["XENAPI_MISSING_PLUGIN", "vmops_lib/log.py"]


# -- programs, locks, log


def test_a_program_that_refuses_hangs_or_is_missing_is_a_failure_of_its_own(odd: Host) -> None:
    assert odd.error("odd", "refused") == ["VMOPS_COMMAND_FAILED", "false ended with status 1: "]
    assert odd.error("odd", "hanging") == ["VMOPS_TIMEOUT", "sleep did not end within 0.2 s."]
    assert odd.error("odd", "absent") == ["VMOPS_UNSUPPORTED", "This host has no program no-such-program."]


def test_who_comes_second_is_told_so_and_a_dead_holder_holds_nothing(odd: Host, inside: Host) -> None:
    with lock.held("x"):
        assert odd.error("odd", "locked") == ["VMOPS_BUSY", "Another call works on x."]
    assert odd.call("odd", "locked") is True
    assert (inside.root / "run/lock/vmops/x").exists()


@pytest.fixture
def near() -> Iterator[Host]:
    """Such a host under a short name: that of a socket has little room."""
    with tempfile.TemporaryDirectory(prefix="d-") as folder, Host(Path(folder)) as host:
        write_odd(host)
        yield host


def test_a_secret_is_neither_in_a_list_of_processes_nor_in_the_log(near: Host) -> None:
    with syslog(near) as log:
        seen = near.call("odd", "through", secret=CANARY)
        assert "cat\0/proc/self/cmdline\0/proc/self/environ\0-\0" in seen
        assert seen.index(CANARY) == len(seen) - len(CANARY)  # it came through the pipe, and nowhere else is it seen
        near.error("odd", "bug", secret=CANARY)
        near.error("odd", "echo", unknown=CANARY)
        lines = [log.recv(4096).decode("ascii") for _ in range(3)]
        with pytest.raises(BlockingIOError):
            log.recv(4096)
    assert all(line.startswith("<30>odd[") for line in lines)
    assert "through secret=***: done" in lines[0]
    assert CANARY not in "".join(lines)


def test_every_script_is_as_xapi_wants_it() -> None:
    scripts = sorted(path for path in PACK.iterdir() if path.is_file())
    assert [path.name for path in scripts if not path.name.startswith("vmops-")] == ["vif-hotplug"], "the hook"
    for script in scripts:
        assert script.stat().st_mode & 0o777 == 0o755, script
        assert script.read_bytes().startswith(b"#!/usr/bin/python3\n")
        assert script.read_bytes().isascii()
    assert all(path.read_bytes().isascii() for path in (PACK / "vmops_lib").glob("*.py"))
