"""200 snapshots under fire: workers and brokers die at random, and every effect still happens exactly once."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.support.rig import Rig
from tests.support.worker import eventually

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(400)]

SNAPSHOTS = 200
WORKER_KILLS = 20
BROKER_KILLS = 4


def test_killed_workers_and_brokers_lose_and_repeat_nothing(tmp_path: Path) -> None:
    dice = random.Random(20)
    with Rig(tmp_path, simulator_options=("--guest-writes", "2"), concurrency=8) as rig:
        vms = {f"vm-{number}": rig.add_vm(f"vm-{number}", size=2 << 20, chain_depth=1) for number in range(SNAPSHOTS)}
        handles = {name: rig.submit(name) for name in vms}
        for kill in range(WORKER_KILLS):
            time.sleep(dice.uniform(0.2, 1.2))
            rig.kill_worker()
            if kill % (WORKER_KILLS // BROKER_KILLS) == 2:
                rig.redis.restart(dice.uniform(0.1, 0.5))
            rig.start_worker()
        ended = time.monotonic() + 120
        while time.monotonic() < ended and not all(handle.has_ended() for handle in handles.values()):
            time.sleep(0.5)
        records = {name: handle.record() for name, handle in handles.items()}
        assert {name: record.error for name, record in records.items() if record.state != "succeeded"} == {}
        found = [one for one in rig.glance.images().values() if one["status"] != "deleted"]
        # An image that is not ours by name either is a stray of a test whose service had this port before.
        images = [one for one in found if "vmops_operation" in one]
        assert [one for one in found if one not in images and str(one["name"]).startswith("vm-")] == []
        assert sorted(one["vmops_operation"] for one in images) == sorted(handle.id for handle in handles.values())
        assert {one["status"] for one in images} == {"active"}
        for name, record in records.items():
            rig.assert_image_is_right(record.result["images"][0], vms[name]["vdis"][0])
            assert len(rig.simulator.disk(vms[name]["vdis"][0])["snapshot_digests"]) == 1, "snapshot taken twice"
        rig.assert_nothing_is_left()
        assert rig.simulator.stats()["sessions"] <= 2


def test_a_wiped_broker_loses_nothing(tmp_path: Path) -> None:
    with Rig(tmp_path, simulator_options=("--guest-writes", "2")) as rig:
        vms = {f"vm-{number}": rig.add_vm(f"vm-{number}", size=2 << 20, chain_depth=1) for number in range(20)}
        handles = [rig.submit(name) for name in vms]
        for _ in range(4):
            time.sleep(0.3)
            with rig.redis.client(0) as broker:
                broker.flushdb()
        eventually(lambda: all(handle.has_ended() for handle in handles), 60)
        assert {handle.record().state for handle in handles} == {"succeeded"}
        rig.assert_nothing_is_left()
