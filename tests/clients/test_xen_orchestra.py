"""Xen Orchestra's `xen-api` from npm, unmodified, over each of its transports."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator.testing import SimulatedPool
from tests.clients.conftest import DISK_SIZE, NodeClient
from tests.support.worker import eventually

TRANSPORTS = ("json-rpc", "xml-rpc", "auto")
each_transport = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture(scope="module")
def pool() -> Iterator[SimulatedPool]:
    with SimulatedPool("--hosts", "2", "--vms", "2", "--guest-writes", "0", "--boot-time", "50ms") as started:
        yield started


def halted(pool: SimulatedPool, name: str) -> str:
    """Make a VM with a small disk; return its uuid."""
    uuid: str = pool.add_vm(name=name, disks=[{"size": 4 << 20}])["uuid"]
    return uuid


@each_transport
def test_it_loads_every_object_of_every_class(xen_orchestra: NodeClient, pool: SimulatedPool, transport: str) -> None:
    seen = xen_orchestra("list", pool, transport)
    assert seen["warnings"] == []
    with pool.session() as session:
        for cls in ("VM", "VDI", "VBD", "VIF", "SR", "PBD", "host", "network", "PIF", "pool"):
            assert seen["counts"][cls] == len(getattr(session.xenapi, cls).get_all()), cls
        listed = {name.partition(".")[0] for name in session.system.listMethods() if name.endswith(".get_all_records")}
    assert set(seen["types"]) == listed


@each_transport
def test_it_drives_a_vm_through_its_life(xen_orchestra: NodeClient, pool: SimulatedPool, transport: str) -> None:
    halted(pool, f"life-{transport}")
    assert xen_orchestra("power", pool, transport, name=f"life-{transport}")["warnings"] == []


@each_transport
def test_it_writes_fields_maps_and_sets(xen_orchestra: NodeClient, pool: SimulatedPool, transport: str) -> None:
    halted(pool, f"fields-{transport}")
    assert xen_orchestra("fields", pool, transport, name=f"fields-{transport}")["warnings"] == []


@each_transport
def test_a_disk_goes_in_and_comes_out_byte_for_byte(
    xen_orchestra: NodeClient, pool: SimulatedPool, transport: str, disk_file: Path, tmp_path: Path
) -> None:
    """From memory, from a stream of known length, from one of unknown length (it announces 1 PiB and cuts it)."""
    out = tmp_path / "out.raw"
    seen = xen_orchestra("disk", pool, transport, file=str(disk_file), out=str(out), size=DISK_SIZE, format="raw")
    assert seen["digests"] == [hashlib.sha256(disk_file.read_bytes()).hexdigest()] * 3
    assert out.read_bytes() == disk_file.read_bytes()


def test_a_disk_goes_over_as_vhd(
    xen_orchestra: NodeClient, pool: SimulatedPool, disk_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = {"size": DISK_SIZE, "out": str(out)}
    xen_orchestra("disk", pool, "json-rpc", file=str(disk_file), format="raw", **options)
    vhd = tmp_path / "disk.vhd"
    xen_orchestra("export", pool, "json-rpc", file=str(disk_file), vhd=str(vhd), size=DISK_SIZE)
    assert vhd.read_bytes()[:8] == b"conectix"
    seen = xen_orchestra("disk", pool, "json-rpc", file=str(vhd), format="vhd", **options)
    assert seen["digests"] == [hashlib.sha256(disk_file.read_bytes()).hexdigest()] * 2


@each_transport
def test_its_collection_follows_events(xen_orchestra: NodeClient, pool: SimulatedPool, transport: str) -> None:
    assert xen_orchestra("events", pool, transport)["warnings"] == []


@each_transport
def test_it_awaits_and_cancels_tasks(xen_orchestra: NodeClient, pool: SimulatedPool, transport: str) -> None:
    pool.guest(halted(pool, f"stubborn-{transport}"), ignores_clean_shutdown=True)
    seen = xen_orchestra("tasks", pool, transport, name=f"stubborn-{transport}")
    assert seen == {"outcome": {"message": "task canceled"}, "warnings": []}
    assert "tasks" not in pool.leaks()


@each_transport
def test_a_restart_of_the_toolstack_is_survived(xen_orchestra: NodeClient, transport: str) -> None:
    with SimulatedPool("--vms", "1", "--guest-writes", "0") as pool:
        seen = xen_orchestra("restart", pool, transport, control=pool.url)
        for cls, number in seen["before"].items():
            assert seen["after"][cls] == number, cls
        eventually(lambda: pool.stats()["sessions"] == 0, 30)


def test_it_speaks_tls(xen_orchestra: NodeClient) -> None:
    with SimulatedPool("--vms", "1", "--guest-writes", "0", tls=True) as pool:
        assert xen_orchestra("list", pool, "auto")["warnings"] == []
