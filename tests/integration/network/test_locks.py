"""Where XAPI's locks of VIFs are all that there is, a VM in groups sends from its own addresses only."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.network.test_firewall import spawned
from tests.support.fenced import HTTP, Fenced
from worker.operations.states import State


@pytest.mark.matrix
def test_interfaces_of_a_vm_in_groups_are_locked_and_rules_are_refused(tmp_path: Path) -> None:
    with Fenced(tmp_path, pool_settings={"firewall": "xapi-lock"}) as ward:
        request = spawned(ward)
        made = ward.succeeded(ward.client.spawn(**request))
        instance = {"vm_uuid": made["vm_uuid"]}
        one = {"network": request["networks"][0]["network"], "mac": "02:16:3e:00:00:01", "ipv4_allowed": ["10.0.0.8"]}
        ward.succeeded(ward.client.plug_vifs(instance=instance, networks=[one]))
        vm_ref = ward.call("VM.get_by_uuid", made["vm_uuid"])
        vifs = [rec for rec in ward.call("VIF.get_all_records").values() if rec["VM"] == vm_ref]
        assert {rec["locking_mode"] for rec in vifs} == {"locked"}
        assert sorted(rec["ipv4_allowed"] for rec in vifs) == [["10.0.0.7"], ["10.0.0.8"]]
        record = ward.wait(ward.client.refresh_security_group_rules(security_group_id="web", rules=[HTTP]))
        assert (record.state, record.error["code"]) == (State.FAILED, "FirewallUnsupported")
        ward.succeeded(ward.client.destroy(instance=instance))


@pytest.mark.matrix
def test_interfaces_of_a_vm_in_groups_are_locked_when_it_is_moved(tmp_path: Path) -> None:
    with Fenced(tmp_path, pool_settings={"firewall": "xapi-lock"}) as ward:
        member = ward.member(0, "web", address="10.0.0.7", running=False)
        flavor = {"memory_mb": 64, "vcpus": 1, "root_gb": 0}
        network = ward.call("network.get_uuid", ward.call("network.get_all")[0])
        for wish in (None, [{"network": network, "ipv4_allowed": ["10.0.0.7"]}]):
            moved = ward.succeeded(
                ward.client.migrate_disk_and_power_off(
                    instance={"vm_uuid": member.uuid}, dest="lab", instance_type=flavor, auto_disk_config=False
                )
            )
            done = ward.succeeded(
                ward.client.finish_migration(migration=moved["migration"], instance_type=flavor, networks=wish)
            )
            vm_ref = ward.call("VM.get_by_uuid", done["vm_uuid"])
            (vif,) = [rec for rec in ward.call("VIF.get_all_records").values() if rec["VM"] == vm_ref]
            assert (vif["locking_mode"], vif["ipv4_allowed"]) == ("locked", ["10.0.0.7"])
            ward.succeeded(ward.client.finish_revert_migration(instance={"vm_uuid": member.uuid}))
