"""Ansible's XenServer modules (community.general), unmodified."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.testing import SimulatedPool
from tests.clients.conftest import Ansible

NETWORK = "Pool-wide network associated with eth0"


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_playbook_makes_changes_and_removes_a_vm(ansible: Ansible, tmp_path: Path, *, tls: bool) -> None:
    options = ("--hosts", "2", "--guest-writes", "0", "--boot-time", "50ms")
    with SimulatedPool(*options, tls=tls) as pool:
        golden = pool.add_vm(name="golden", disks=[{"size": 8 << 20}])
        pool.add_vm(name="golden-halted", disks=[{"size": 8 << 20}])
        with pool.session() as session:
            session.xenapi.VM.set_is_a_template(golden["ref"], True)
        printed = ansible.play("xenserver.yml", pool, tmp_path, network=NETWORK)
        assert "failed=0" in printed, printed
        assert "ok=18" in printed, printed
        assert pool.leaks() == {}
        assert pool.stats()["sessions"] == 0
