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
    """Bring a record in line with its file; nothing is written when nothing changed.

    The node must have been read with the database locked: an older one would bring back what the collector or a
    snapshot has changed meanwhile.
    """
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


def new_record(pool: Pool, sr: Row, uuid: str, fields: dict[str, Any]) -> Row:
    """Make a record for a file. Raises StorageError 46 when the file is gone."""
    with pool.db as db:
        node = pool.repository(sr).node(uuid)
        values: dict[str, Any] = {
            "uuid": uuid,
            "location": uuid,
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
    """Bring one record in line with its file. Raises StorageError 46 when the file is gone."""
    with pool.db as db:
        apply_node(db, vdi, pool.repository_of(vdi).node(vdi["uuid"]))


def drop_record(db: Database, vdi: Row) -> None:
    """Remove a disk's record with its VBDs; the database is locked."""
    for vbd in db.linked(vdi, "VBDs", "VBD"):
        metrics = db.find("VBD_metrics", vbd["metrics"])
        if metrics is not None:
            db.delete(metrics)
        db.delete(vbd)
    db.delete(vdi)
    db.note(f"digest/{vdi['uuid']}", None)


def scan(pool: Pool, sr: Row, *, introduces: bool) -> None:
    """Bring all records of a repository in line with its files.

    Records of files that are gone, or hidden for the collector to remove, go too. With `introduces`, files without
    record get one, except hidden leaves (xapi-observed.md).
    """
    repository = pool.repository(sr)
    with pool.db as db:
        nodes = repository.nodes()
        parents = {node.parent for node in nodes.values()}
        known = {vdi["uuid"]: vdi for vdi in db.linked(sr, "VDIs", "VDI")}
        for uuid, vdi in known.items():
            if vdi["type"] == "cbt_metadata":
                continue
            if uuid in nodes and not (vdi["managed"] and nodes[uuid].hidden):
                apply_node(db, vdi, nodes[uuid])
            else:
                drop_record(db, vdi)
        for uuid, node in nodes.items():
            if introduces and uuid not in known and (not node.hidden or uuid in parents):
                _introduce(pool, sr, node)
        db.put(
            sr,
            physical_utilisation=repository.used_bytes(),
            virtual_allocation=sum(node.virtual_size for node in nodes.values()),
            physical_size=pool.settings.sr_capacity,
        )


def _introduce(pool: Pool, sr: Row, node: Node) -> None:
    label = {"name_label": "base copy", "managed": False, "read_only": True} if node.hidden else {}
    row = new_record(pool, sr, node.uuid, {"metadata_of_pool": NULL, **label})
    pool.db.note(f"found/{row['uuid']}", value=True)
