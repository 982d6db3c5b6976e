"""What the disks of a pool hold, kept beside it: blocks by number, per disk."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from simulator.core.database import Row
from simulator.storage import StorageError

if TYPE_CHECKING:
    from tests.support.model_pool import PoolInside

#: What one write covers; not the size of a VHD's block, so that several share one.
PIECE = 64 << 10
#: Writes are this far apart, so that they fall into different VHD blocks, and into the same.
STEP = 448 << 10


def piece(seed: int) -> bytes:
    """Return the bytes of one write; zeros are a content like any other."""
    return bytes(PIECE) if seed == 0 else bytes([seed]) * PIECE


class DiskModel:
    """Contents by the disk's uuid: {offset: seed}. What is not in it was never written."""

    def __init__(self, inside: PoolInside) -> None:
        self._inside = inside
        self._contents: dict[str, dict[int, int]] = {}
        self._sizes: dict[str, int] = {}
        self._images: dict[str, str] = {}
        """Digests of memory images, whose content is the pool's own."""
        self._kept: set[str] = set()
        """Disks without record whose files are still there."""

    # -- what happened

    def made_empty(self, ref: str) -> None:
        """Note a new disk."""
        self._note(self._inside.db.row("VDI", ref), {})

    def _note(self, vdi: Row, content: dict[int, int]) -> None:
        self._contents[vdi["uuid"]] = content
        self._sizes[vdi["uuid"]] = vdi["virtual_size"]

    def write(self, ref: str, number: int, seed: int) -> None:
        """Write to a disk that may be written."""
        vdi = self._inside.db.find("VDI", ref)
        if vdi is None or not vdi["managed"] or vdi["uuid"] not in self._contents:
            return
        offset = number * STEP
        if offset + PIECE > vdi["virtual_size"]:
            return
        self._inside.pool.repository_of(vdi).write(vdi["uuid"], offset, piece(seed))
        self._contents[vdi["uuid"]][offset] = seed

    def of_vm(self, vm: Row) -> dict[str, str]:
        """Return the uuids of a VM's disks by their position."""
        db = self._inside.db
        found = {}
        for vbd in db.linked(vm, "VBDs", "VBD"):
            vdi = db.find("VDI", vbd["VDI"])
            if vdi is not None and vbd["type"] == "Disk":
                found[vbd["userdevice"]] = vdi["uuid"]
        return found

    def copied(self, before: dict[str, str], after: dict[str, str]) -> None:
        """Note that disks of one VM became those of another."""
        assert before.keys() == after.keys(), "a VM's copy has other disks"
        assert len(set(after.values())) == len(set(before.values())), "a VM's copy shares its disks otherwise"
        for position, uuid in after.items():
            self._branch(before[position], uuid)

    def branched(self, ref: str, new_ref: str) -> None:
        """Note that a disk is a copy of another."""
        db = self._inside.db
        self._branch(db.row("VDI", ref)["uuid"], db.row("VDI", new_ref)["uuid"])

    def _branch(self, uuid: str, new_uuid: str) -> None:
        vdi = self._inside.db.tables["VDI"].by_uuid[new_uuid]
        if uuid in self._images:
            self._images[new_uuid] = self._images[uuid]
        elif uuid in self._contents:
            self._note(vdi, dict(self._contents[uuid]))
            assert self._sizes[uuid] == vdi["virtual_size"], "a copy has another size"

    def resized(self, ref: str) -> None:
        """Note a disk's new size."""
        vdi = self._inside.db.row("VDI", ref)
        self._sizes[vdi["uuid"]] = vdi["virtual_size"]
        if vdi["uuid"] in self._images:
            self._images[vdi["uuid"]] = self._digest(vdi)

    def removed(self, vdi: Row, *, keeps_file: bool) -> None:
        """Note that a disk's record is gone."""
        if keeps_file:
            self._kept.add(vdi["uuid"])

    def found(self) -> None:
        """Note that a scan may have brought records back."""
        self._kept -= self._inside.db.tables["VDI"].by_uuid.keys()

    def after_kill(self) -> None:
        """Note that records went back in time: files did not, so what every file holds stays what it was."""
        self._kept -= self._inside.db.tables["VDI"].by_uuid.keys()

    # -- what must hold

    def _digest(self, vdi: Row) -> str:
        return self._inside.pool.repository_of(vdi).sha256(vdi["uuid"])

    def _disks(self) -> list[Row]:
        pool, db = self._inside.pool, self._inside.db
        return [vdi for vdi in db.rows("VDI") if vdi["managed"] and pool.has_repository(db.row("SR", vdi["SR"]))]

    def check(self) -> None:
        """Compare sizes and everything ever written; memory images are new or as they were."""
        for vdi in self._disks():
            uuid = vdi["uuid"]
            if uuid not in self._contents:
                digest = self._digest(vdi)
                assert vdi["type"] == "suspend" or uuid in self._images, f"a disk from nowhere: {vdi.values}"
                assert self._images.setdefault(uuid, digest) == digest, "a memory image changed"
                continue
            assert vdi["virtual_size"] == self._sizes[uuid], "a disk's size changed"
            repository = self._inside.pool.repository_of(vdi)
            for offset, seed in self._contents[uuid].items():
                assert repository.read(uuid, offset, PIECE) == piece(seed), f"lost: {offset} of {vdi.values}"

    def check_all(self) -> None:
        """Compare every byte of every disk."""
        self.check()
        for vdi in self._disks():
            if vdi["uuid"] in self._contents:
                whole = bytearray(self._sizes[vdi["uuid"]])
                for offset, seed in self._contents[vdi["uuid"]].items():
                    whole[offset : offset + PIECE] = piece(seed)
                assert hashlib.sha256(whole).hexdigest() == self._digest(vdi), f"content of {vdi.values}"
        self._check_kept()

    def _check_kept(self) -> None:
        for sr in self._inside.rows("SR"):
            if self._inside.pool.has_repository(sr):
                repository = self._inside.pool.repository(sr)
                for uuid in self._kept & repository.nodes().keys():
                    for offset, seed in self._contents.get(uuid, {}).items():
                        try:
                            assert repository.read(uuid, offset, PIECE) == piece(seed)
                        except StorageError as error:
                            raise AssertionError(f"{uuid} cannot be read") from error
