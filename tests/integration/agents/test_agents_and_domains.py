"""Guests' agents and what happens to their VMs; many agents; agents that are not ours."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simulator.testing import ControlRefused
from tests.support.agent_guest import Start
from tests.support.agent_peer import READ, WATCH, WRITE, Peer, encrypted
from tests.support.official import connected
from tests.support.simulator import SimulatorProcess
from tests.support.worker import eventually
from tests.unit.simulator.dom0_support import WireClient

KINDS = ["nova-agent", "unix", "windows"]


# -- what happens to the VM


def test_an_agent_stands_still_with_its_guest(start: Start, xen: Any) -> None:
    guest = start()
    xen.VM.pause(guest.ref)
    identifier = guest.peer.put("version")
    guest.simulator.clock.advance(10)
    assert guest.peer.is_waiting(identifier)
    xen.VM.unpause(guest.ref)
    assert guest.peer.answer(identifier)[0] == "0"


@pytest.mark.parametrize("way", ["paused", "suspended"])
def test_a_guest_that_stands_still_can_be_given_an_agent(start: Start, xen: Any, way: str) -> None:
    guest = start(None)
    if way == "paused":
        xen.VM.pause(guest.ref)
        guest.habits(guest_agent="unix")
        xen.VM.unpause(guest.ref)
    else:
        xen.VM.suspend(guest.ref)
        guest.habits(guest_agent="unix")
        xen.VM.resume(guest.ref, False, False)
    assert guest.connect().ask("version")[0] == "0"


@pytest.mark.parametrize("way", ["migration", "suspension"])
def test_an_agent_keeps_its_key_in_another_domain(start: Start, xen: Any, way: str) -> None:
    guest = start()
    shared = guest.peer.exchange()
    if way == "migration":
        here = xen.VM.get_resident_on(guest.ref)
        xen.VM.pool_migrate(guest.ref, next(ref for ref in xen.host.get_all() if ref != here), {})
    else:
        xen.VM.suspend(guest.ref)
        xen.VM.resume(guest.ref, False, False)
    assert guest.connect().ask("password", encrypted(shared, b"secret\n")) == ("0", "")


def test_what_is_inside_outlives_a_shutdown_and_goes_with_the_vm(start: Start, xen: Any) -> None:
    guest = start()
    guest.peer.inject("/x", b"y")
    xen.VM.clean_shutdown(guest.ref)
    inside = guest.inside
    assert not inside["agent_is_alive"]
    assert inside["files"]["/x"]["content"] == "y"
    xen.VM.start(guest.ref, False, False)
    eventually(lambda: guest.inside["agent_is_alive"])
    assert guest.connect().ask("version")[0] == "0"


def test_the_option_gives_every_guest_an_agent_and_state_outlives_the_process(tmp_path: Path) -> None:
    options = ("--guest-agent", "unix", "--vms", "1", "--guest-writes", "0", "--vm-disk-size", "64M")
    with SimulatorProcess(*options, state_dir=tmp_path / "state") as simulator, connected(simulator) as xen:
        (ref,) = xen.VM.get_by_name_label("demo-01")
        uuid = xen.VM.get_uuid(ref)
        (place,) = simulator.control("GET", "dom0").values()
        with contextlib.closing(Peer(WireClient(Path(place["xenstore"])), int(xen.VM.get_domid(ref)))) as peer:
            peer.inject("/x", b"y")
            assert peer.ask("agentupdate", "http://x/agent-7.0.1.tar,00") == ("0", "")
    with SimulatorProcess(*options, state_dir=tmp_path / "state") as simulator, connected(simulator) as xen:
        inside = simulator.guest(uuid)["inside"]
        assert (inside["version"], list(inside["files"])) == ("7.0.1", ["/x"])
        (place,) = simulator.control("GET", "dom0").values()
        with contextlib.closing(Peer(WireClient(Path(place["xenstore"])), int(xen.VM.get_domid(ref)))) as peer:
            assert peer.ask("version") == ("0", "7.0.1")


def test_a_wish_that_makes_no_sense_is_refused(start: Start) -> None:
    guest = start()
    with pytest.raises(ControlRefused, match="nova-agent, unix, windows"):
        guest.habits(guest_agent="systemd")
    assert guest.inside["agent_is_alive"]


# -- many


def _threads(simulator: SimulatorProcess) -> int:
    return len(list(Path(f"/proc/{simulator.pid}/task").iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_two_hundred_agents_have_no_thread_and_silent_ones_delay_nobody(simulator: SimulatorProcess, xen: Any) -> None:
    simulator.add_vm(name="many", count=2, disks=[], running=True)
    before = _threads(simulator)
    silent = [{"effect": "silent"}]
    kinds = [
        {"guest_agent": KINDS[number % 3], "agent_poll_s": 0, "agent_accidents": silent if number % 2 else []}
        for number in range(200)
    ]
    made = [simulator.add_vm(name="many", disks=[], running=True, guest=kind) for kind in kinds]
    assert _threads(simulator) <= before + 5
    domains = xen.VM.get_all_records()
    places = {xen.host.get_by_uuid(uuid): place for uuid, place in simulator.control("GET", "dom0").items()}
    wires = {ref: WireClient(Path(place["xenstore"])) for ref, place in places.items()}
    requests = []
    for vm in made:
        record = domains[vm["ref"]]
        peer = Peer(wires[record["resident_on"]], int(record["domid"]))
        requests.append((peer, peer.put("version", "agent")))
    for peer, identifier in requests[::2]:
        assert peer.answer(identifier)[0] == "0"
    assert all(peer.is_waiting(identifier) for peer, identifier in requests[1::2])
    for wire in wires.values():
        wire.sock.close()


# -- agents that are not ours


STRANGER = """\
for id in $(xenstore-list data/host); do
    request=$(xenstore-read "data/host/$id")
    xenstore-rm "data/host/$id"
    xenstore-write "data/guest/$id" "{\\"returncode\\": \\"0\\", \\"message\\": \\"$(xenstore-read name): $request\\"}"
done
"""


def test_a_script_with_the_usual_tools_can_be_the_agent(start: Start, tmp_path: Path) -> None:
    guest = start(None)
    tools = next(iter(guest.simulator.control("GET", "dom0").values()))["root"]
    identifier = guest.peer.put_text("hello")
    environment = {
        "PATH": f"{tools}/usr/bin:/usr/bin:/bin",
        "XENSTORED_PATH": guest.simulator.guest_xenstore(guest.uuid),
    }
    subprocess.run(["sh", "-ec", STRANGER], env=environment, cwd=tmp_path, check=True, timeout=60)
    assert guest.peer.answer(identifier) == ("0", "vm: hello")


def test_a_guests_socket_has_a_guests_rights_and_quotas(start: Start) -> None:
    guest, other = start(None), start(None)
    wire = WireClient(Path(guest.simulator.guest_xenstore(guest.uuid)))
    with wire:
        assert wire.ask(READ, b"name\0") == b"vm"
        assert wire.ask(WRITE, b"data/x\0" + b"v" * 2048) == b"OK\0"
        assert wire.ask(WRITE, b"data/x\0" + b"v" * 2049) == b"E2BIG\0"
        assert wire.ask(WRITE, b"name\0other") == b"EACCES\0"
        assert wire.ask(READ, other.peer.path("data")) == b"EACCES\0"
        assert wire.ask(WATCH, b"data/host\0token\0") == b"OK\0"
        assert wire.event() == b"data/host\0token\0"
        identifier = guest.peer.put("version")
        assert wire.event() == f"data/host/{identifier}\0token\0".encode()


def test_a_guests_connection_ends_with_its_domain_and_the_socket_stays(start: Start, xen: Any) -> None:
    guest = start(None)
    address = Path(guest.simulator.guest_xenstore(guest.uuid))
    with WireClient(address) as wire:
        assert wire.ask(READ, b"domid\0") == str(xen.VM.get_domid(guest.ref)).encode()
        xen.VM.hard_reboot(guest.ref)
        with pytest.raises(EOFError):
            wire.event()
    with WireClient(address) as wire:
        assert wire.ask(READ, b"domid\0") == str(xen.VM.get_domid(guest.ref)).encode()
    assert guest.simulator.guest_xenstore(guest.uuid) == str(address)
