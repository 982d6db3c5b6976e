"""Disk records as the files of a repository say: sizes, parents, nodes that came or went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simulator.api import device_rules
from simulator.core.database import Database, Row
from simulator.model.types import EPOCH, NULL
from simulator.storage import Node

if TYPE_CHECKING:
    from simulator.pool import Pool

PARENT_KEY = "vhd-parent"


def apply_node(db: Database, vdi: Row, node: Node) -> None:
    """Bring a record in line with its file; nothing is written when nothing changed."""
    sm_config = {key: value for key, value in vdi["sm_config"].items() if key != PARENT_KEY}
    if node.parent is not None:
        sm_config[PARENT_KEY] = node.parent
    changes: dict[str, Any] = {}
    if sm_config != vdi["sm_config"]:
        changes["sm_config"] = sm_config
    if node.physical_size != vdi["physical_utilisation"]:
        changes["physical_utilisation"] = node.physical_size
    if node.virtual_size != vdi["virtual_size"]:
        changes["virtual_size"] = node.virtual_size
    if changes:
        db.put(vdi, **changes)


def new_record(pool: Pool, sr: Row, node: Node, fields: dict[str, Any]) -> Row:
    """Make a record for a file."""
    with pool.db as db:
        values: dict[str, Any] = {
            "uuid": node.uuid,
            "location": node.uuid,
            "SR": sr.ref,
            "managed": True,
            "type": "user",
            "snapshot_time": EPOCH,
            "on_boot": "persist",
            "metadata_of_pool": "",
        }
        row = db.create("VDI", pool.ids.ref(), values | fields)
        apply_node(db, row, node)
        device_rules.refresh_vdi(db, row)
        return row


def refresh(pool: Pool, vdi: Row) -> None:
    """Bring one record in line with its file. The database must not be locked: files may be slow."""
    node = pool.repository_of(vdi).node(vdi["uuid"])
    with pool.db as db:
        apply_node(db, vdi, node)


def scan(pool: Pool, sr: Row, *, introduces: bool) -> None:
    """Bring all records of a repository in line with its files.

    Records of files that are gone go too. With `introduces`, files without record get one, except hidden leaves, which
    wait for the collector (xapi-observed.md).
    """
    repository = pool.repository(sr)
    nodes = repository.nodes()
    used = repository.used_bytes()
    parents = {node.parent for node in nodes.values()}
    with pool.db as db:
        known = {vdi["uuid"]: vdi for vdi in db.linked(sr, "VDIs", "VDI")}
        for uuid, vdi in known.items():
            if uuid in nodes:
                apply_node(db, vdi, nodes[uuid])
            else:
                db.delete(vdi)
        for uuid, node in nodes.items():
            if introduces and uuid not in known and (not node.hidden or uuid in parents):
                _introduce(pool, sr, node)
        allocation = sum(node.virtual_size for node in nodes.values())
        db.put(sr, physical_utilisation=used, virtual_allocation=allocation, physical_size=pool.settings.sr_capacity)


def _introduce(pool: Pool, sr: Row, node: Node) -> None:
    label = {"name_label": "base copy", "managed": False, "read_only": True} if node.hidden else {}
    row = new_record(pool, sr, node, {"metadata_of_pool": NULL, **label})
    pool.db.note(f"found/{row['uuid']}", value=True)
