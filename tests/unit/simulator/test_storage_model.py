"""Any sequence of calls against a plain model: a dictionary of byte arrays."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from simulator.storage import VhdRepository
from tests.unit.simulator.storage_support import MIB, pattern
from tests.unit.simulator.vhd_oracle import chain_content, overlay, parse

SIZE = 4 * MIB + 1536


class StorageMachine(RuleBasedStateMachine):
    """Disks are made, written, snapshotted, exported, imported, grown, deleted, collected; the folder is reopened."""

    disks: Bundle[str] = Bundle("disks")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="vmops-model-"))
        self.repo = VhdRepository(self.folder)
        self.model: dict[str, bytearray] = {}
        self.streams: list[tuple[Iterator[memoryview], bytes]] = []
        self.count = 0

    def _name(self) -> str:
        self.count += 1
        return f"node{self.count}"

    @initialize(target=disks)
    def begin_with_a_disk(self) -> str:
        return self._new_disk()

    @rule(target=disks)
    def create(self) -> str:
        return self._new_disk()

    def _new_disk(self) -> str:
        uuid = self._name()
        self.repo.create(uuid, SIZE)
        self.model[uuid] = bytearray(SIZE)
        return uuid

    @rule(
        uuid=disks,
        at=st.floats(0, 1),
        length=st.sampled_from([1, 511, 512, 1536, 4096, 70_000, MIB, 2 * MIB, 3 * MIB]),
        seed=st.integers(0, 255),
        zeros=st.booleans(),
        sectors=st.booleans(),
    )
    def write(self, uuid: str, at: float, length: int, seed: int, *, zeros: bool, sectors: bool) -> None:
        model = self.model[uuid]
        length = min(length, len(model))
        offset = int(at * (len(model) - length))
        offset -= offset % 512 if sectors else 0
        data = bytes(length) if zeros else pattern(seed, length)
        self.repo.write(uuid, offset, data)
        model[offset : offset + length] = data

    @rule(uuid=disks, at=st.integers(0, 7000), step=st.integers(2, 9), seed=st.integers(0, 255))
    def write_scattered_sectors(self, uuid: str, at: int, step: int, seed: int) -> None:
        for number in range(12):
            offset = (at + number * step) * 512
            data = pattern(seed + number, 512)
            self.repo.write(uuid, offset, data)
            self.model[uuid][offset : offset + 512] = data

    @rule(target=disks, uuid=disks, clone=st.booleans())
    def snapshot(self, uuid: str, *, clone: bool) -> str:
        new, base = self._name(), self._name()
        empty = self.repo.node(uuid).parent is not None and self.repo.node(uuid).physical_size < 2 * MIB
        made = (self.repo.clone if clone else self.repo.snapshot)(uuid, new, base)
        assert made is not empty
        assert (base in self.repo.nodes()) is made
        self.model[new] = bytearray(self.model[uuid])
        return new

    @rule(uuid=disks, more=st.sampled_from([512, MIB, 3 * MIB]))
    def grow(self, uuid: str, more: int) -> None:
        size = min(len(self.model[uuid]) + more, 16 * MIB)
        self.repo.resize(uuid, size)
        self.model[uuid].extend(bytes(size - len(self.model[uuid])))

    @precondition(lambda self: len(self.model) > 1)
    @rule(uuid=consumes(disks))
    def delete(self, uuid: str) -> None:
        self.repo.delete(uuid)
        del self.model[uuid]

    @rule(units=st.integers(1, 4))
    def collect(self, units: int) -> None:
        for _ in range(units):
            expected = self.repo.has_work()
            assert (self.repo.collect_once() is not None) is expected

    @rule(uuid=disks)
    def begin_an_export_of_a_snapshot_of_it(self, uuid: str) -> None:
        """Nobody writes to this snapshot, so its stream has to stay what it was, deleted or not."""
        if len(self.streams) >= 3:
            return
        new = self._name()
        self.repo.snapshot(uuid, new, self._name())
        self.streams.append((self.repo.export(new, "raw"), bytes(self.model[uuid])))
        self.repo.delete(new)

    @precondition(lambda self: bool(self.streams))
    @rule()
    def finish_an_export(self) -> None:
        stream, expected = self.streams.pop(0)
        assert b"".join(stream) == expected

    @rule(uuid=disks, target=disks)
    def move_through_a_vhd(self, uuid: str) -> str:
        new = self._name()
        data = b"".join(self.repo.export(uuid, "vhd"))
        self.repo.create(new, len(self.model[uuid]))
        self.repo.import_vhd(new, io.BytesIO(data), len(data))
        self.model[new] = bytearray(self.model[uuid])
        return new

    @rule(uuid=disks, base=disks)
    def compare_a_difference(self, uuid: str, base: str) -> None:
        if len(self.model[base]) > len(self.model[uuid]):
            return
        data = b"".join(self.repo.export(uuid, "vhd", base))
        assert parse(data).kind == 4
        content = bytearray(self.model[base])
        overlay(data, content)
        assert content == self.model[uuid]

    @rule()
    def reopen(self) -> None:
        for stream, expected in self.streams:
            assert b"".join(stream) == expected
        self.streams.clear()
        nodes = self.repo.nodes()
        self.repo.close()
        self.repo = VhdRepository(self.folder)
        assert self.repo.nodes() == nodes

    @invariant()
    def visible_nodes_are_the_disks_and_read_as_the_model(self) -> None:
        nodes = self.repo.nodes()
        assert {uuid for uuid, node in nodes.items() if not node.hidden} == set(self.model)
        for uuid, expected in self.model.items():
            assert nodes[uuid].virtual_size == len(expected)
            assert self.repo.read(uuid, 0, len(expected)) == expected
        assert self.repo.used_bytes() == sum(node.physical_size for node in nodes.values())

    def teardown(self) -> None:
        while self.repo.collect_once() is not None:
            pass
        for uuid, content in self.model.items():
            assert chain_content(self.folder, uuid) == content
        for stream, expected in self.streams:
            assert b"".join(stream) == expected
        self.repo.close()
        shutil.rmtree(self.folder)


TestStorageMachine = pytest.mark.slow(StorageMachine.TestCase)
# No chain gets longer than the 30 files that a snapshot refuses.
TestStorageMachine.settings = settings(
    max_examples=20,
    stateful_step_count=29,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
