"""The crash matrix of what a build lets the guest's agent do: all of it is done, whatever happens to the worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.matrix import Accident, Matrix
from tests.integration.guest.support import GuestWard
from tests.support.rig import Rig
from tests.support.spawning import Picture, assert_tidy, put_image, remove, request_for
from worker.client import Handle

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.matrix]

PASSWORD = "c0rrect-Horse"
WISHES: dict[str, Any] = {
    "admin_password": PASSWORD,
    "os_type": "linux",
    "networks": [{"network": "xenbr0", "mac": "00:16:3e:aa:bb:cc", "info": {"label": "public"}}],
    "files": [{"path": "/etc/motd", "contents": "Hello"}, {"path": "/root/key", "secret_contents": "secret"}],
    "agent": {
        "use": True,
        "update": {"version": "9.9.9", "url": "http://192.0.2.5/agent-9.9.9.tgz", "md5sum": "0" * 32},
    },
}
#: version, features, resetnetwork, two files, keyinit, password, agentupdate.
QUESTIONS = 8
#: The start of the VM has the first task; the host name leaves the record.
CALLS = [
    *(("Async.host.call_plugin", nth) for nth in range(1, QUESTIONS + 1)),
    *(("task.destroy", nth) for nth in range(2, QUESTIONS + 2)),
    ("VM.set_xenstore_data", 1),
]

_kept: dict[Path, Picture] = {}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestWard]:
    """A pool with plugins and agents, and a worker that is killed again and again."""
    with GuestWard(tmp_path_factory.mktemp("rig"), loglevel="INFO") as made:
        yield made


def cached(rig: Rig) -> Picture:
    """Return an image that the storage repository has."""
    if rig.folder not in _kept:
        _kept[rig.folder] = put_image(rig)
        check(rig, _kept[rig.folder], build(rig, _kept[rig.folder]))
    return _kept[rig.folder]


def build(rig: Rig, picture: Picture) -> Handle:
    """Spawn a VM whose agent has everything to do."""
    return rig.client.submit("spawn", request_for(picture.id, **WISHES))


def check(rig: Rig, _: Picture, handle: Handle) -> None:
    """All was done, and the guest has it; nothing is left but the VM, which goes."""
    assert isinstance(rig, GuestWard)
    record = rig.wait(handle, 90)
    assert record.state == "succeeded", record.error
    done = ["network", "file /etc/motd", "file /root/key", "password", "update"]
    assert record.result["guest"]["done"] == done, record.result["guest"]
    assert record.result["guest"]["faults"] == []
    inside = rig.simulator.control("GET", f"guests/{record.result['vm_uuid']}")["inside"]
    assert inside["passwords"] == {"root": PASSWORD}
    assert {path: file["content"] for path, file in inside["files"].items()} == {
        "/etc/motd": "Hello",
        "/root/key": "secret",
    }
    assert inside["version"] == "9.9.9"
    vm_rec = rig.call("VM.get_record", rig.call("VM.get_by_uuid", record.result["vm_uuid"]))
    assert "vm-data/hostname" not in vm_rec["xenstore_data"]
    assert_tidy(rig)
    remove(rig, handle)


setting_up = Matrix(CALLS, cached, build, check)


def test_the_matrix_has_every_call_of_the_set_up(rig: GuestWard) -> None:
    picture = cached(rig)
    rig.simulator.reset_stats()
    handle = build(rig, picture)
    rig.wait(handle, 60)
    made = rig.simulator.calls()
    check(rig, picture, handle)
    names = {name for name, _ in CALLS}
    counts = {name: made[name] for name in names}
    assert counts == {name: max(nth for one, nth in CALLS if one == name) for name in names}, made


@setting_up.at_every_call
def test_an_accident_while_the_guest_is_set_up(rig: GuestWard, accident: Accident) -> None:
    setting_up.endure(rig, accident)
