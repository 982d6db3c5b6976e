"""Two beats, a worker and Flower together, while the pool's clock goes on: states that last too long end, once."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial

import pytest

from tests.integration.pollers.support import REBOOT_TIMEOUT_S, RESCUE_TIMEOUT_S, Clinic
from tests.integration.power.support import VM
from tests.support.rescuing import assert_as_before, assert_in_rescue, new_patient, rescue
from tests.support.spawning import put_image
from tests.support.worker import eventually
from worker.cli.embedded import free_port
from worker.operations.states import State

pytestmark = pytest.mark.slow

SETTINGS = {
    "soft_timeout_s": 3000,
    "poll_interval_s": 0.5,
    "reboot_timeout_s": REBOOT_TIMEOUT_S,
    "rescue_timeout_s": RESCUE_TIMEOUT_S,
}


@pytest.fixture(scope="module")
def staffed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    """A clinic that is looked after: beat twice, and Flower."""
    with Clinic(tmp_path_factory.mktemp("staffed"), settings=SETTINGS) as made:
        made.deployment.beat("another")
        made.flower_port = free_port()
        flower = made.deployment.celery(
            "flower", "flower", "--address=127.0.0.1", f"--port={made.flower_port}", "--read_only"
        )
        flower.wait_until(lambda: metrics(made) != "", 120)
        yield made


def metrics(clinic: Clinic) -> str:
    """Return what Flower counts, "" while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{clinic.flower_port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())
    except (OSError, urllib.error.URLError):
        return ""


def has_seen(clinic: Clinic, task: str, event: str) -> bool:
    """Tell whether Flower has heard of an event of a task."""
    return f'flower_events_total{{task="{task}",type="{event}"' in metrics(clinic)


def let_beat_tick(clinic: Clinic, ticks: int = 6) -> None:
    """Wait until the pollers have looked so often: with marks in the pool each look reads its clock."""
    wanted = clinic.simulator.calls().get("host.get_servertime", 0) + ticks
    eventually(lambda: clinic.simulator.calls().get("host.get_servertime", 0) >= wanted)


def test_hung_reboots_become_hard_ones_and_overdue_rescues_end_each_once(staffed: Clinic) -> None:
    picture, patient = put_image(staffed), new_patient(staffed)
    in_rescue = rescue(staffed, patient, picture)
    staffed.succeeded(in_rescue)
    hung = staffed.hung(3)
    healthy = staffed.new_vm()
    staffed.done("reboot", healthy)
    domids = {vm.uuid: staffed.domid(vm) for vm in [healthy, *(vm for vm, _ in hung)]}

    staffed.pass_time(REBOOT_TIMEOUT_S / 2)
    let_beat_tick(staffed)
    assert [soft.record().state for _, soft in hung] == [State.WAITING] * 3

    staffed.pass_time(REBOOT_TIMEOUT_S / 2)
    for vm, soft in hung:
        assert staffed.wait(soft).state == State.CANCELLED
        eventually(partial(is_in_another_domain, staffed, vm, domids[vm.uuid]))
    let_beat_tick(staffed)
    assert_in_rescue(staffed, patient, in_rescue, picture)

    staffed.pass_time(RESCUE_TIMEOUT_S)
    (unrescue,) = eventually(lambda: of(staffed, "unrescue"))
    assert staffed.wait(staffed.client.handle(unrescue)).state == State.SUCCEEDED
    assert_as_before(staffed, patient)

    for vm, _ in hung:
        assert [one.state for one in staffed.operations_on(vm, "reboot")] == [State.CANCELLED, State.SUCCEEDED]
        assert "vmops.rebooting" not in staffed.rec(vm)["other_config"]
    assert staffed.domid(healthy) == domids[healthy.uuid]
    assert len(of(staffed, "unrescue")) == 1
    assert staffed.simulator.calls()["VM.hard_reboot"] == 3
    eventually(lambda: not staffed.client.journal.unannounced())
    eventually(lambda: has_seen(staffed, "vmops.unrescue", "task-succeeded"))
    assert "poll_" not in metrics(staffed), "ticks would hide the operations"
    staffed.tidy()
    staffed.assert_nothing_is_left()


def is_in_another_domain(clinic: Clinic, vm: VM, domid: int) -> bool:
    """Tell whether a VM runs in another domain."""
    return clinic.state(vm) == "Running" and clinic.domid(vm) != domid


def of(clinic: Clinic, name: str) -> list[str]:
    """Return the ids of the journal's operations of a name."""
    return [one.id for one in clinic.client.journal.find() if one.name == name]
