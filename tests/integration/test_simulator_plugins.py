"""host.call_plugin runs real scripts in the dom0 of a simulated host (xapi.md 13, dom0-and-guest.md 1 and 2)."""

from __future__ import annotations

import json
import socket
import sys
import textwrap
import threading
import time
import xmlrpc.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.simulator import Client, SimulatorProcess
from tests.unit.simulator.dom0_support import WireClient

READ, WRITE, WATCH = 2, 11, 4
PATIENCE_S = 30
#: One argument may be this long, NUL not counted: the kernel's limit.
LONGEST_ARGUMENT = 131_071

#: Answers by hand, so that these tests see what XAPI gives and takes, not what a library makes of it.
RAW = f"""\
#!{sys.executable} -IS
import os, sys, xmlrpc.client

def answer(struct):
    sys.stdout.write(xmlrpc.client.dumps((struct,), "", True))

def succeed(text):
    answer({{"Status": "Success", "Value": text}})

params, fn = xmlrpc.client.loads(sys.argv[1])
session, args = params
"""

SEEN = """\
import json, stat
facts = {
    "argc": len(sys.argv),
    "argument": sys.argv[1],
    "path": sys.argv[0],
    "environment": {key: value for key, value in os.environ.items() if key != "LC_CTYPE"},
    "stdin": sys.stdin.read(),
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
    "leads_session": os.getsid(0) == os.getpid(),
    "stdout_is_file": stat.S_ISREG(os.fstat(1).st_mode),
    "cwd": os.getcwd(),
}
succeed(json.dumps(facts))
"""

STOCK = """\
#!/usr/bin/env python3
import os, sys
import XenAPIPlugin

def echo(session, args):
    return "echo:" + repr(sorted(args.items()))

def fail(session, args):
    raise Exception("boom")

def failure(session, args):
    raise XenAPIPlugin.Failure("MY_CODE", ["a", "b"])

def nonstr(session, args):
    return {"a": "b"}

def none(session, args):
    return None

def leave(session, args):
    sys.stderr.write("leaving")
    sys.exit(3)

def whoami(session, args):
    return session.xenapi.session.get_originator(session.handle)

def missing(session, args):
    return session.xenapi.VM.get_record("OpaqueRef:nope")

if __name__ == "__main__":
    XenAPIPlugin.dispatch({name: value for name, value in globals().items() if callable(value)})
"""

SHELL = """\
#!/bin/sh
cat <<EOF
<methodResponse><params><param><value><struct><member><name>Status</name><value>Success</value></member>
<member><name>Value</name><value>$(xenstore-read /local/domain/0/name) $(ls "$VMOPS_DOM0_ROOT/var/run/sr-mount")</value>
</member></struct></value></param></params></methodResponse>
EOF
"""


class Pool:
    """A simulated pool with a folder of plugins."""

    def __init__(self, simulator: SimulatorProcess, client: Client, folder: Path) -> None:
        self.simulator = simulator
        self.client = client
        self.folder = folder
        self.host_ref: str = client("host.get_all")[0]

    def write(self, name: str, text: str, mode: int = 0o755) -> str:
        """Install a plugin; return its name."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return name

    def raw(self, name: str, body: str) -> str:
        """Install a plugin that answers by hand; return its name."""
        return self.write(name, RAW + textwrap.dedent(body))

    def call(self, plugin: str, function: str = "main", **arguments: str) -> str:
        """Call a plugin on the master."""
        answer: str = self.client("host.call_plugin", self.host_ref, plugin, function, arguments)
        return answer

    def error(self, plugin: str, function: str = "main", **arguments: str) -> list[str]:
        """Call a plugin, expect a failure."""
        return self.client.error("host.call_plugin", self.host_ref, plugin, function, arguments)

    def dom0(self, host_ref: str | None = None) -> dict[str, str]:
        """Return where the dom0 of a host is."""
        uuid = self.client("host.get_uuid", host_ref or self.host_ref)
        answer: dict[str, str] = self.simulator.control("GET", "dom0")[uuid]
        return answer

    @property
    def root(self) -> Path:
        """The private root of the master."""
        return Path(self.dom0()["root"])


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    folder = tmp_path_factory.mktemp("plugins")
    options = ("--plugins", str(folder), "--vms", "1", "--guest-writes", "0", "--boot-time", "0.05")
    with SimulatorProcess(*options) as simulator, simulator.session() as client:
        yield Pool(simulator, client, folder)


@pytest.fixture
def two_hosts(tmp_path: Path) -> Iterator[Pool]:
    options = ("--plugins", str(tmp_path), "--hosts", "2")
    with SimulatorProcess(*options) as simulator, simulator.session() as client:
        yield Pool(simulator, client, tmp_path)


def wait_for(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- what a script is given


def test_a_script_gets_one_argument_and_a_bare_environment(pool: Pool) -> None:
    facts = json.loads(pool.call(pool.raw("seen", SEEN), "the-function", key="a<b", empty=""))
    root = facts["environment"].pop("VMOPS_DOM0_ROOT")
    assert facts["argc"] == 2
    assert facts["argument"] == (
        f"<methodCall><methodName>the-function</methodName><params><param><value>{pool.client.ref}</value></param>"
        "<param><value><struct><member><name>key</name><value>a&lt;b</value></member>"
        "<member><name>empty</name><value/></member></struct></value></param></params></methodCall>"
    )
    assert facts["path"] == f"{root}/etc/xapi.d/plugins/seen"
    assert sorted(facts["environment"]) == ["PATH", "PYTHONPATH", "XENSTORED_PATH"]
    own, _, last = facts["environment"]["PATH"].partition(":/sbin:")
    assert all(folder.startswith(root + "/") for folder in own.split(":"))
    assert last == "/usr/sbin:/bin:/usr/bin"
    assert facts["stdin"] == ""
    assert facts["descriptors"][:3] == [0, 1, 2]
    assert len(facts["descriptors"]) == 4, "the fourth is the folder being listed"
    assert facts["leads_session"]
    assert facts["stdout_is_file"]
    assert facts["cwd"] == root


def test_arguments_and_results_of_any_letters_survive(pool: Pool) -> None:
    name = pool.raw("mirror", "succeed(repr(sorted(args.items())))")
    text = "ä€😀 <&>\"' \t\n line\r\nend"
    assert pool.call(name, k=text) == repr([("k", text.replace("\r\n", "\n"))])


def test_an_argument_may_be_as_long_as_the_kernel_allows(pool: Pool) -> None:
    name = pool.raw("long", "succeed(str(len(sys.argv[1])))")
    room = LONGEST_ARGUMENT - int(pool.call(name, k="x")) + 1
    assert pool.call(name, k="x" * room) == str(LONGEST_ARGUMENT)
    assert pool.error(name, k="x" * (room + 1)) == ["XENAPI_PLUGIN_FAILURE", "non-zero exit", "", ""]


def test_a_result_may_be_megabytes(pool: Pool) -> None:
    name = pool.raw("big", "succeed('r' * int(args['size']))")
    assert pool.call(name, size=str(5 << 20)) == "r" * (5 << 20)


def test_an_argument_that_is_no_text_is_refused_before_the_plugin_is_looked_for(pool: Pool) -> None:
    error = pool.client.error("host.call_plugin", pool.host_ref, "nosuch", "main", {"k": 1})
    assert error == ["INTERNAL_ERROR", "Failure(\"Expected string, got 'I(1)'\")"]


# -- how it can end


def test_a_plugin_that_is_not_there_is_missing(pool: Pool) -> None:
    for name in ("nosuch", "../plugins/echo", "/bin/true", ""):
        assert pool.error(name) == ["XENAPI_MISSING_PLUGIN", name]


def test_the_folder_is_read_at_each_call(pool: Pool) -> None:
    assert pool.error("late") == ["XENAPI_MISSING_PLUGIN", "late"]
    pool.raw("late", "succeed('one')")
    assert pool.call("late") == "one"
    pool.raw("late", "succeed('two')")
    assert pool.call("late") == "two"
    (pool.root / "etc/xapi.d/plugins/late").unlink()
    assert pool.error("late") == ["XENAPI_MISSING_PLUGIN", "late"]


@pytest.mark.parametrize(
    ("body", "details"),
    [
        ("sys.stdout.write('out'); sys.stderr.write('err'); sys.exit(7)", ["non-zero exit", "out", "err"]),
        ("print('hello'); sys.exit(1)", ["non-zero exit", "hello\n", ""]),
        ("succeed('x'); sys.stdout.flush(); os._exit(1)", None),
        ("sys.stdout.write('o'); sys.stdout.flush(); os.kill(os.getpid(), 9)", ["signal: SIGKILL", "o", ""]),
        ("os.kill(os.getpid(), 15)", ["signal: SIGTERM", "", ""]),
        ("sys.stdout.buffer.write(b'\\xff'); sys.exit(1)", ["non-zero exit", "\N{REPLACEMENT CHARACTER}", ""]),
    ],
)
def test_an_end_that_is_no_success_names_its_manner_and_both_outputs(
    pool: Pool, body: str, details: list[str] | None
) -> None:
    code, *rest = pool.error(pool.raw("ending", body))
    assert code == "XENAPI_PLUGIN_FAILURE"
    if details is None:
        assert rest[0] == "non-zero exit"
        assert "<value><string>x</string></value>" in rest[1]
    else:
        assert rest == details


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ("pass", ""),
        ("print('stray'); succeed('x')", None),
        ("succeed('x'); print('stray')", None),
        ("succeed('x\\x01y')", None),
        ("sys.stdout.buffer.write(b'\\xff\\xfe')", "\N{REPLACEMENT CHARACTER}" * 2),
    ],
)
def test_output_that_is_no_xml_cannot_be_parsed(pool: Pool, body: str, output: str | None) -> None:
    code, reason, shown, why = pool.error(pool.raw("stray", body))
    assert (code, reason) == ("XENAPI_PLUGIN_FAILURE", "failed to parse plugin output")
    assert why
    if output is not None:
        assert shown == output


def test_a_fault_and_another_answer_are_told_apart(pool: Pool) -> None:
    fault = pool.raw("fault", "print(xmlrpc.client.dumps(xmlrpc.client.Fault(9, 'text'), methodresponse=True))")
    assert pool.error(fault) == ["XENAPI_PLUGIN_FAILURE", "fault", "9", "text"]
    code, reason, shown = pool.error(pool.raw("other", "answer({'Other': 'x'})"))
    assert (code, reason) == ("XENAPI_PLUGIN_FAILURE", "unexpected XMLRPC result")
    assert "Other" in shown


def test_only_a_text_is_a_result(pool: Pool) -> None:
    for value, tag in (("1", "int"), ("{'a': 'b'}", "struct"), ("b'x'", "base64"), ("True", "boolean")):
        error = pool.error(pool.raw("typed", f"answer({{'Status': 'Success', 'Value': {value}}})"))
        text = f"XMLRPC.RunTimeTypeError(\"unbox: Element={tag} should contain 'string'\", _)"
        assert error == ["INTERNAL_ERROR", text]


def test_a_failure_of_any_code_is_passed_on(pool: Pool) -> None:
    body = "answer({'Status': 'Failure', 'ErrorDescription': ['VM_BAD_POWER_STATE', 'x', 'ä', '']})"
    assert pool.error(pool.raw("passed", body)) == ["VM_BAD_POWER_STATE", "x", "ä", ""]
    body = "answer({'Status': 'Failure', 'ErrorDescription': []})"
    assert pool.error(pool.raw("empty", body))[0] == "INTERNAL_ERROR"


@pytest.mark.parametrize(
    ("name", "text", "mode"),
    [
        ("helper.py", RAW + "succeed('x')", 0o644),
        ("no-shebang", "succeed('x')", 0o755),
        ("no-interpreter", "#!/nowhere/python3\n", 0o755),
        ("nothing", "", 0o755),
    ],
)
def test_what_cannot_be_started_ends_silently(pool: Pool, name: str, text: str, mode: int) -> None:
    assert pool.error(pool.write(name, text, mode)) == ["XENAPI_PLUGIN_FAILURE", "non-zero exit", "", ""]


def test_a_folder_of_helpers_is_importable_and_not_callable(pool: Pool) -> None:
    (pool.folder / "pack_lib").mkdir()
    (pool.folder / "pack_lib" / "words.py").write_text("WORD = 'imported'\n", encoding="utf-8")
    text = RAW.replace(" -IS", "") + "from pack_lib.words import WORD\nsucceed(WORD)\n"
    assert pool.call(pool.write("importing", text)) == "imported"
    assert pool.error("pack_lib") == ["XENAPI_PLUGIN_FAILURE", "non-zero exit", "", ""]


# -- scripts written for a real dom0


def test_the_stock_library_answers_as_observed(pool: Pool) -> None:
    name = pool.write("simtest", STOCK)
    assert pool.call(name, "echo", k="v") == "echo:[('k', 'v')]"
    assert pool.error(name, "fail") == ["XENAPI_PLUGIN_FAILURE", "fail", "Exception", "boom"]
    assert pool.error(name, "failure") == ["MY_CODE", "a", "b"]
    assert pool.error(name, "nosuch") == ["UNKNOWN_XENAPI_PLUGIN_FUNCTION", "nosuch"]
    assert pool.error(name, "none")[:3] == ["XENAPI_PLUGIN_FAILURE", "none", "TypeError"]
    assert pool.error(name, "leave") == ["XENAPI_PLUGIN_FAILURE", "non-zero exit", "", "leaving"]
    text = "XMLRPC.RunTimeTypeError(\"unbox: Element=struct should contain 'string'\", _)"
    assert pool.error(name, "nonstr") == ["INTERNAL_ERROR", text]


def test_a_plugin_may_use_the_session_of_its_caller(pool: Pool) -> None:
    name = pool.write("calling", STOCK)
    assert pool.call(name, "whoami") == "tests"
    details = "['HANDLE_INVALID', 'VM', 'OpaqueRef:nope']"
    assert pool.error(name, "missing") == ["XENAPI_PLUGIN_FAILURE", "missing", "Failure", details]


def test_every_host_has_echo(pool: Pool) -> None:
    assert pool.call("echo", k="v") == "args were: {'k': 'v'}"
    assert pool.error("echo", "other") == ["UNKNOWN_XENAPI_PLUGIN_FUNCTION", "other"]


def test_a_shell_script_finds_tools_and_files_in_the_private_root(pool: Pool) -> None:
    sr_uuid = pool.client("SR.get_uuid", pool.client("SR.get_all")[0])
    assert pool.call(pool.write("shell", SHELL)) == f"Domain-0 {sr_uuid}"
    assert list((pool.root / "var/run/sr-mount" / sr_uuid).glob("*.vhd"))


def test_the_inventory_names_host_and_dom0(pool: Pool) -> None:
    lines = (pool.root / "etc/xensource-inventory").read_text(encoding="utf-8").splitlines()
    assert f"INSTALLATION_UUID='{pool.client('host.get_uuid', pool.host_ref)}'" in lines
    dom0_ref = pool.client("host.get_control_domain", pool.host_ref)
    assert f"CONTROL_DOMAIN_UUID='{pool.client('VM.get_uuid', dom0_ref)}'" in lines


# -- tasks and time


def test_an_asynchronous_call_ends_in_its_task(pool: Pool) -> None:
    name = pool.raw("tasked", "succeed('<b>') if fn == 'good' else sys.exit(1)")
    good = pool.client.wait(pool.client("Async.host.call_plugin", pool.host_ref, name, "good", {}))
    assert (good["status"], good["result"]) == ("success", "<value>&lt;b&gt;</value>")
    bad = pool.client.wait(pool.client("Async.host.call_plugin", pool.host_ref, name, "bad", {}))
    assert (bad["status"], bad["error_info"]) == ("failure", ["XENAPI_PLUGIN_FAILURE", "non-zero exit", "", ""])


HANGING = """
import time
open(args["begun"], "w").close()
while not os.path.exists(args["go"]):
    time.sleep(0.01)
succeed("at last")
"""


def hang(pool: Pool, folder: Path) -> tuple[str, Path]:
    """Start a plugin that waits for a file; return the task and the file."""
    begun, go = folder / "begun", folder / "go"
    arguments = {"begun": str(begun), "go": str(go)}
    task_ref = pool.client("Async.host.call_plugin", pool.host_ref, pool.raw("hanging", HANGING), "main", arguments)
    wait_for(begun.exists)
    return task_ref, go


def test_cancelling_a_plugin_that_hangs_has_no_effect(pool: Pool, tmp_path: Path) -> None:
    task_ref, go = hang(pool, tmp_path)
    pool.client("task.cancel", task_ref)
    assert pool.client("task.get_status", task_ref) == "pending"
    go.touch()
    record = pool.client.wait(task_ref)
    assert (record["status"], record["result"]) == ("success", "<value>at last</value>")


def test_plugins_run_side_by_side(pool: Pool, tmp_path: Path) -> None:
    name = pool.raw(
        "meeting",
        """
        import time
        open(os.path.join(args["folder"], args["me"]), "w").close()
        while len(os.listdir(args["folder"])) < 4:
            time.sleep(0.01)
        succeed(args["me"])
        """,
    )
    answers: list[str] = []

    def meet(me: str) -> None:
        with pool.simulator.session() as client:
            answers.append(client("host.call_plugin", pool.host_ref, name, "main", {"folder": str(tmp_path), "me": me}))

    threads = [threading.Thread(target=meet, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(answers) == ["0", "1", "2", "3"]


def test_a_process_that_a_plugin_leaves_behind_is_not_waited_for(pool: Pool, tmp_path: Path) -> None:
    name = pool.raw(
        "daemonising",
        """
        import time
        if os.fork() == 0:
            while not os.path.exists(args["go"]):
                time.sleep(0.01)
            open(args["done"], "w").close()
            os._exit(0)
        succeed("left one behind")
        """,
    )
    assert pool.call(name, go=str(tmp_path / "go"), done=str(tmp_path / "done")) == "left one behind"
    (tmp_path / "go").touch()
    wait_for((tmp_path / "done").exists)


def test_a_script_outlives_the_toolstack_that_started_it(tmp_path: Path) -> None:
    with SimulatorProcess("--plugins", str(tmp_path)) as simulator:
        with simulator.session() as client:
            pool = Pool(simulator, client, tmp_path)
            name = pool.raw("surviving", HANGING + 'open(args["done"], "w").close()\n')
            files = {key: str(tmp_path / key) for key in ("begun", "go", "done")}
            client("Async.host.call_plugin", pool.host_ref, name, "main", files)
            wait_for((tmp_path / "begun").exists)
            simulator.kill()
        (tmp_path / "go").touch()
        wait_for((tmp_path / "done").exists)


def test_a_hanging_script_does_not_outlive_the_simulator(tmp_path: Path) -> None:
    with SimulatorProcess("--plugins", str(tmp_path)) as simulator:
        with simulator.session() as client:
            pool = Pool(simulator, client, tmp_path)
            body = HANGING.replace(
                'open(args["begun"], "w").close()', 'open(args["begun"], "w").write(str(os.getpid()))'
            )
            arguments = {"begun": str(tmp_path / "begun"), "go": str(tmp_path / "never")}
            client("Async.host.call_plugin", pool.host_ref, pool.raw("stuck", body), "main", arguments)
            wait_for(lambda: (tmp_path / "begun").exists() and bool((tmp_path / "begun").read_text(encoding="utf-8")))
            pid = int((tmp_path / "begun").read_text(encoding="utf-8"))
        assert simulator.stop() == 0
        wait_for(lambda: not Path(f"/proc/{pid}").exists())


# -- hosts


def test_each_host_has_plugins_and_a_xenstore_of_its_own(two_hosts: Pool) -> None:
    master, slave = two_hosts.client("host.get_all")
    two_hosts.raw("where", "succeed(os.environ['VMOPS_DOM0_ROOT'] + ' ' + os.environ['XENSTORED_PATH'])")
    seen = {ref: two_hosts.client("host.call_plugin", ref, "where", "main", {}) for ref in (master, slave)}
    for ref, text in seen.items():
        dom0 = two_hosts.dom0(ref)
        assert text == f"{dom0['root']} {dom0['xenstore']}"
    (Path(two_hosts.dom0(slave)["root"]) / "etc/xapi.d/plugins/where").unlink()
    assert two_hosts.client.error("host.call_plugin", slave, "where", "main", {}) == ["XENAPI_MISSING_PLUGIN", "where"]
    assert two_hosts.client("host.call_plugin", master, "where", "main", {}) == seen[master]


def test_a_host_that_does_not_exist_is_an_invalid_handle(pool: Pool) -> None:
    error = pool.client.error("host.call_plugin", "OpaqueRef:nope", "echo", "main", {})
    assert error == ["HANDLE_INVALID", "host", "OpaqueRef:nope"]


def test_a_missing_folder_of_plugins_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="nowhere"), SimulatorProcess("--plugins", str(tmp_path / "nowhere")):
        pass


# -- XenStore and consoles of guests


@pytest.fixture
def running(pool: Pool) -> Iterator[dict[str, Any]]:
    made = pool.simulator.add_vm(name="guest one", disks=[{"size": 2 << 20}], running=True)
    vm_ref = made["ref"]
    yield {"ref": vm_ref, "uuid": made["uuid"], "domid": int(pool.client("VM.get_domid", vm_ref))}
    if pool.client("VM.get_power_state", vm_ref) != "Halted":
        pool.client("VM.hard_shutdown", vm_ref)


@pytest.fixture
def wire(pool: Pool) -> Iterator[WireClient]:
    with WireClient(Path(pool.dom0()["xenstore"])) as client:
        yield client


def read(wire: WireClient, path: str) -> bytes:
    return wire.ask(READ, path.encode() + b"\0")


def test_a_running_vm_is_found_in_xenstore(pool: Pool, running: dict[str, Any], wire: WireClient) -> None:
    home = f"/local/domain/{running['domid']}"
    assert read(wire, f"{home}/name") == b"guest one"
    assert read(wire, f"{home}/vm") == f"/vm/{running['uuid']}".encode()
    assert read(wire, f"/vm/{running['uuid']}/domains/{running['domid']}") == home.encode()
    vif_ref = pool.client("VM.get_VIFs", running["ref"])[0]
    assert read(wire, f"{home}/device/vif/0/mac") == pool.client("VIF.get_MAC", vif_ref).encode()
    assert read(wire, f"{home}/device/vbd/51712/device-type") == b"disk"


def test_the_tree_of_a_vm_follows_its_domain(pool: Pool, running: dict[str, Any], wire: WireClient) -> None:
    vm_ref, old = running["ref"], running["domid"]
    wire.ask(WATCH, b"@releaseDomain\0gone\0")
    wire.event()
    unique = read(wire, f"/local/domain/{old}/unique-domain-id")
    pool.client("VM.hard_reboot", vm_ref)
    new = int(pool.client("VM.get_domid", vm_ref))
    assert wire.event() == b"@releaseDomain\0gone\0"
    assert new != old
    assert read(wire, f"/local/domain/{old}/name") == b"ENOENT\0"
    assert read(wire, f"/local/domain/{new}/name") == b"guest one"
    assert read(wire, f"/local/domain/{new}/unique-domain-id") != unique
    wait_for(lambda: "suspend" in pool.client("VM.get_allowed_operations", vm_ref))
    pool.client("VM.suspend", vm_ref)
    assert read(wire, f"/local/domain/{new}/name") == b"ENOENT\0"
    pool.client("VM.resume", vm_ref, False, False)
    again = int(pool.client("VM.get_domid", vm_ref))
    assert read(wire, f"/local/domain/{again}/name") == b"guest one"
    pool.client("VM.hard_shutdown", vm_ref)
    assert read(wire, f"/local/domain/{again}/name") == b"ENOENT\0"
    assert read(wire, f"/vm/{running['uuid']}/name") == b"ENOENT\0"
    assert read(wire, f"/local/domain/0/backend/vif/{again}") == b"ENOENT\0"


def test_devices_follow_plugging(pool: Pool, running: dict[str, Any], wire: WireClient) -> None:
    node = f"/local/domain/{running['domid']}/device/vif/0/state"
    vif_ref = pool.client("VM.get_VIFs", running["ref"])[0]
    assert read(wire, node) == b"4"
    pool.client("VIF.unplug", vif_ref)
    assert read(wire, node) == b"ENOENT\0"
    pool.client("VIF.plug", vif_ref)
    assert read(wire, node) == b"4"


def test_xenstore_data_of_a_vm_reaches_its_domain(pool: Pool, wire: WireClient) -> None:
    vm_ref = pool.simulator.add_vm(name="data", disks=[{"size": 2 << 20}])["ref"]
    data = {"vm-data/networking/AABB": '{"label": "public"}', "FIST/x": "1", "other": "stays", "vm-data/b.d": "no"}
    pool.client("VM.set_xenstore_data", vm_ref, data)
    pool.client("VM.start", vm_ref, False, False)
    home = f"/local/domain/{pool.client('VM.get_domid', vm_ref)}"
    assert read(wire, f"{home}/vm-data/networking/AABB") == b'{"label": "public"}'
    assert read(wire, f"{home}/FIST/x") == b"1"
    assert read(wire, f"{home}/other") == b"ENOENT\0"
    pool.client("VM.hard_shutdown", vm_ref)


def test_a_guest_that_boots_fills_its_console_log(pool: Pool, running: dict[str, Any]) -> None:
    log = pool.root / f"var/log/xen/console.{running['domid']}.log"
    wait_for(lambda: log.exists() and log.read_bytes().endswith(b"guest-one login: "))
    assert log.read_bytes().startswith(b"[    0.000000] Linux version")
    pool.simulator.control("POST", f"guests/{running['uuid']}", {"console": "panic: ä\x1b[31m\n"})
    assert log.read_bytes().endswith(b"login: panic: \xc3\xa4\x1b[31m\n")
    pool.client("VM.hard_reboot", running["ref"])
    fresh = pool.root / f"var/log/xen/console.{pool.client('VM.get_domid', running['ref'])}.log"
    wait_for(lambda: fresh.exists() and fresh.read_bytes().endswith(b"login: "))
    assert log.exists()


def test_xenstore_says_where_consoles_are_logged(pool: Pool, running: dict[str, Any], wire: WireClient) -> None:
    domid = running["domid"]
    path = f"/local/logconsole/{domid}".encode()
    log = pool.root / f"var/log/xen/console.{domid}.log"
    wait_for(lambda: log.exists() and log.read_bytes().endswith(b"login: "))
    wire.ask(WRITE, path + b"\0/tmp/own")
    pool.simulator.control("POST", f"guests/{running['uuid']}", {"console": "elsewhere"})
    assert (pool.root / "tmp/own").read_bytes() == b"elsewhere"
    wire.ask(WRITE, path + b"\0/no/such/folder")
    pool.simulator.control("POST", f"guests/{running['uuid']}", {"console": "lost"})
    wire.ask(WRITE, path + b"\0")
    pool.simulator.control("POST", f"guests/{running['uuid']}", {"console": "off"})
    assert log.read_bytes().endswith(b"login: ")


def test_a_halted_guest_prints_nothing(pool: Pool) -> None:
    made = pool.simulator.add_vm(name="off", disks=[{"size": 2 << 20}])
    with pytest.raises(AssertionError, match="does not run"):
        pool.simulator.control("POST", f"guests/{made['uuid']}", {"console": "text"})


def test_a_pool_whose_folder_has_a_long_name_runs_plugins(tmp_path: Path) -> None:
    state_dir = tmp_path / ("long-" * 20)
    name = "calling"
    with SimulatorProcess("--plugins", str(tmp_path), state_dir=state_dir) as simulator, simulator.session() as client:
        pool = Pool(simulator, client, tmp_path)
        pool.write(name, STOCK)
        pool.write("shell", SHELL)
        assert pool.call(name, "whoami") == "tests"
        assert pool.call("shell").startswith("Domain-0 ")
        assert len(pool.dom0()["xenstore"]) < 100


def test_the_state_of_a_pool_keeps_logs_and_domains(tmp_path: Path) -> None:
    with SimulatorProcess("--vms", "1", "--boot-time", "0.05", state_dir=tmp_path / "state") as simulator:
        with simulator.session() as client:
            host_ref = client("host.get_all")[0]
            pool = Pool(simulator, client, tmp_path)
            log = pool.root / "var/log/xen/console.1.log"
            wait_for(lambda: log.exists() and log.read_bytes().endswith(b"login: "))
            before = log.read_bytes()
        simulator.kill_process()
        simulator.start()
        with simulator.session() as client:
            assert client("host.call_plugin", host_ref, "echo", "main", {}) == "args were: {}"
            with WireClient(Path(pool_address(simulator))) as wire:
                assert read(wire, "/local/domain/1/name") == b"demo-01"
        assert log.read_bytes() == before


def pool_address(simulator: SimulatorProcess) -> str:
    (dom0,) = simulator.control("GET", "dom0").values()
    address: str = dom0["xenstore"]
    return address


def test_an_agent_in_the_guest_can_be_spoken_to_through_a_plugin(
    pool: Pool, running: dict[str, Any], wire: WireClient
) -> None:
    """The exchange that plugins of the guest agent make: write data/host/<id>, wait for data/guest/<id>."""
    domid = running["domid"]
    name = pool.raw(
        "agent",
        """
        import socket, struct
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(os.environ["XENSTORED_PATH"])
        def ask(kind, payload):
            sock.sendall(struct.pack("<IIII", kind, 0, 0, len(payload)) + payload)
            return take()
        def take():
            kind, _, _, size = struct.unpack("<IIII", sock.recv(16, socket.MSG_WAITALL))
            return kind, sock.recv(size, socket.MSG_WAITALL)
        home = "/local/domain/" + args["dom_id"] + "/data/"
        ask(4, (home + "guest/id-1").encode() + b"\\0t\\0")
        take()
        ask(11, (home + "host/id-1").encode() + b"\\0ping")
        while take()[0] != 15:
            pass
        succeed(ask(2, (home + "guest/id-1").encode() + b"\\0")[1].decode())
        """,
    )
    wire.ask(WATCH, f"/local/domain/{domid}/data/host/id-1\0t\0".encode())
    task_ref = pool.client("Async.host.call_plugin", pool.host_ref, name, "main", {"dom_id": str(domid)})
    while read(wire, f"/local/domain/{domid}/data/host/id-1") != b"ping":
        wire.event()
    wire.ask(WRITE, f"/local/domain/{domid}/data/guest/id-1\0pong".encode())
    assert pool.client.wait(task_ref)["result"] == "<value>pong</value>"


# -- plugins of VMs


def test_a_vm_has_one_plugin_which_its_guest_does_not_know(pool: Pool, running: dict[str, Any]) -> None:
    vm_ref = running["ref"]
    arguments = {"username": "root", "password": "x", "script": "true"}
    call = ("VM.call_plugin", vm_ref, "guest-agent-operation", "run-script", arguments)
    assert pool.client.error("VM.call_plugin", vm_ref, "echo", "main", {}) == ["XENAPI_MISSING_PLUGIN", "echo"]
    assert pool.client.error(*call) == ["VM_LACKS_FEATURE", vm_ref]
    code, ref, interval, wait = pool.client.error(*call)
    assert (code, ref, interval) == ("VM_CALL_PLUGIN_RATE_LIMIT", vm_ref, "10")
    assert 0 < float(wait) <= 10
    pool.client("VM.hard_shutdown", vm_ref)
    assert pool.client.error(*call)[0] == "VM_BAD_POWER_STATE"


# -- the toolstack's own socket


def test_dom0_reaches_its_toolstack_on_a_unix_socket(pool: Pool) -> None:
    path = (pool.root / "var/lib/xcp/xapi").readlink()
    body = xmlrpc.client.dumps((pool.client.ref,), "session.get_this_host").encode()
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(path))
        sock.sendall(head + body)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK")


def test_a_repository_that_is_named_like_a_path_is_not_shown_in_dom0(pool: Pool) -> None:
    sr_ref = pool.client("SR.introduce", "../../escaped", "odd", "", "file", "user", False, {})
    record = {"host": pool.host_ref, "SR": sr_ref, "device_config": {"location": "/x"}, "other_config": {}}
    pbd_ref = pool.client("PBD.create", record)
    pool.client("PBD.plug", pbd_ref)
    assert "escaped" not in {found.name for found in pool.root.rglob("*")}
    assert pool.call("echo") == "args were: {}"
    pool.client("PBD.unplug", pbd_ref)
    pool.client("SR.forget", sr_ref)
