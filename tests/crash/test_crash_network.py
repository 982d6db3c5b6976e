"""The crash matrices of the operations on interfaces: each is there once, or gone, and nothing is left."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest

from tests.crash.matrix import Accident, Matrix
from tests.support.rig import MIB, Rig
from worker.client import Handle

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.matrix]

FIND = ("VM.get_all_records_where", 1)
MAC = "02:16:3e:00:00:01"

_numbers = count(1)


@dataclass(frozen=True)
class Guest:
    """A running VM, and the VLAN's network that it shall be on."""

    name: str
    ref: str
    network: dict[str, Any]


def call(rig: Rig, method: str, *args: Any) -> Any:
    """Call the pool as somebody else does."""
    with rig.simulator.session() as session:
        return session(method, *args)


def guest(rig: Rig) -> Guest:
    """Make a running VM; its network is not there yet."""
    number = next(_numbers)
    made = rig.simulator.add_vm(name=f"guest-{number}", disks=[{"size": 2 * MIB}], running=True)
    network = {"network": f"vlan-{number}", "mac": MAC, "vlan": {"device": "eth0", "tag": number}}
    return Guest(f"guest-{number}", made["ref"], network)


def guest_with_interface(rig: Rig) -> Guest:
    """Make a running VM with an interface."""
    made = guest(rig)
    assert rig.wait(submit_plug(rig, made)).state == "succeeded"
    return made


def submit_plug(rig: Rig, made: Guest) -> Handle:
    """Plug an interface in."""
    return rig.client.plug_vifs(instance={"name": made.name}, networks=[made.network])


def submit_unplug(rig: Rig, made: Guest) -> Handle:
    """Unplug it."""
    return rig.client.unplug_vifs(instance={"name": made.name}, macs=[MAC])


def check_plugged(rig: Rig, made: Guest, handle: Handle) -> None:
    """One network on one VLAN of every host, one interface, plugged."""
    record = rig.wait(handle)
    assert record.state == "succeeded", record.error
    (network_ref,) = call(rig, "network.get_by_name_label", made.network["network"])
    pifs = [rec for rec in call(rig, "PIF.get_all_records").values() if rec["network"] == network_ref]
    assert [int(rec["VLAN"]) for rec in pifs] == [made.network["vlan"]["tag"]] * len(call(rig, "host.get_all"))
    (vif,) = _vifs(rig, made)
    assert (vif["MAC"], vif["network"], vif["currently_attached"]) == (MAC, network_ref, True)
    _forget(rig, made)


def check_unplugged(rig: Rig, made: Guest, handle: Handle) -> None:
    """No interface."""
    record = rig.wait(handle)
    assert record.state == "succeeded", record.error
    assert [one["mac"] for one in record.result["removed"]] == [MAC]
    assert _vifs(rig, made) == []
    _forget(rig, made)


def _vifs(rig: Rig, made: Guest) -> list[dict[str, Any]]:
    """Return the VM's interfaces of that MAC, beside the one that the simulator gives every VM."""
    return [rec for rec in call(rig, "VIF.get_all_records").values() if (rec["VM"], rec["MAC"]) == (made.ref, MAC)]


def _forget(rig: Rig, made: Guest) -> None:
    """Nothing else is left; halt the VM, since many would need more memory than the host has."""
    rig.assert_nothing_is_left()
    if call(rig, "VM.get_power_state", made.ref) != "Halted":
        call(rig, "VM.hard_shutdown", made.ref)


MATRICES: dict[str, Matrix[Guest]] = {
    "plug_vifs": Matrix(
        [
            FIND,
            ("network.create", 1),
            ("pool.create_VLAN", 1),
            ("VIF.create", 1),
            ("VIF.get_all_records_where", 1),
            ("VIF.plug", 1),
            ("VIF.get_all_records_where", 2),
        ],
        guest,
        submit_plug,
        check_plugged,
    ),
    "unplug_vifs": Matrix(
        [FIND, ("VIF.unplug", 1), ("VIF.destroy", 1)], guest_with_interface, submit_unplug, check_unplugged
    ),
}
CASES = [accident.case(name) for name, one in MATRICES.items() for accident in one.accidents]


@pytest.mark.parametrize("name", MATRICES)
def test_the_matrix_has_every_call(rig: Rig, name: str) -> None:
    MATRICES[name].assert_is_complete(rig)


@pytest.mark.parametrize(("name", "accident"), CASES)
def test_an_accident_changes_nothing(rig: Rig, name: str, accident: Accident) -> None:
    MATRICES[name].endure(rig, accident)
