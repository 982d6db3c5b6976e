"""What a plugin finds in its dom0: the XenStore and consoles of guests, and the toolstack's socket."""

from __future__ import annotations

import socket
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.plugins.support import PATIENCE_S, Pool
from tests.support.simulator import SimulatorProcess
from tests.support.worker import eventually
from tests.unit.simulator.dom0_support import WireClient

READ, WRITE, WATCH = 2, 11, 4


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
    eventually(lambda: "suspend" in pool.client("VM.get_allowed_operations", vm_ref))
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
    eventually(lambda: log.exists() and log.read_bytes().endswith(b"guest-one login: "))
    assert log.read_bytes().startswith(b"[    0.000000] Linux version")
    pool.simulator.control("POST", f"guests/{running['uuid']}", {"console": "panic: ä\x1b[31m\n"})
    assert log.read_bytes().endswith(b"login: panic: \xc3\xa4\x1b[31m\n")
    pool.client("VM.hard_reboot", running["ref"])
    fresh = pool.root / f"var/log/xen/console.{pool.client('VM.get_domid', running['ref'])}.log"
    eventually(lambda: fresh.exists() and fresh.read_bytes().endswith(b"login: "))
    assert log.exists()


def test_xenstore_says_where_consoles_are_logged(pool: Pool, running: dict[str, Any], wire: WireClient) -> None:
    domid = running["domid"]
    path = f"/local/logconsole/{domid}".encode()
    log = pool.root / f"var/log/xen/console.{domid}.log"
    eventually(lambda: log.exists() and log.read_bytes().endswith(b"login: "))
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


def test_the_state_of_a_pool_keeps_logs_and_domains(tmp_path: Path) -> None:
    with SimulatorProcess("--vms", "1", "--boot-time", "0.05", state_dir=tmp_path / "state") as simulator:
        with simulator.session() as client:
            host_ref = client("host.get_all")[0]
            pool = Pool(simulator, client, tmp_path)
            log = pool.root / "var/log/xen/console.1.log"
            eventually(lambda: log.exists() and log.read_bytes().endswith(b"login: "))
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
