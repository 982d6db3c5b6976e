"""Making the objects of an exported VM in this pool (xapi.md 10.2, 10.4): everything, or nothing when it fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simulator import disks
from simulator.api import device_rules, vdi, vm_copy, vm_rules
from simulator.api.registry import Context
from simulator.core.database import Row
from simulator.core.failures import Failure
from simulator.core.ids import mac_address
from simulator.model.types import NULL, Ref
from simulator.xva_objects import Item, renamed

#: Key in other_config of an exported disk or interface: what it is here (storage motion).
MAPS_TO = "maps_to"
_SET_BY_FILES = frozenset({"uuid", "location", "SR", "virtual_size", "physical_utilisation", "sm_config", "parent"})


@dataclass(frozen=True, slots=True)
class Wish:
    """How to import."""

    sr: Row | None = None
    """Where disks are made; None: they exist (metadata only)."""
    restore: bool = False
    """Keep uuids and MAC addresses."""
    force: bool = False
    """Leave out what is missing."""
    live: bool = False
    """The VM comes by storage motion: power state and identity are kept."""
    found: Mapping[str, str] = field(default_factory=dict)
    """Disks that exist here, by the uuid they had."""


class Importer:
    """One import: `create`, content of `disks`, `finish`; `undo` when something fails."""

    def __init__(self, ctx: Context, items: list[Item], wish: Wish) -> None:
        self._ctx = ctx
        self._wish = wish
        self._by_class: dict[str, list[Item]] = {}
        for item in items:
            self._by_class.setdefault(item.cls, []).append(item)
        self._names = {item.name: item for item in items}
        self._refs: dict[str, str] = {}
        """What is here, by the name of the exported object."""
        self._made: list[Row] = []
        self._made_disks: list[Row] = []
        self._mark = ctx.task_ref
        self.disks: dict[str, Row] = {}
        """The disks whose content is awaited, by name."""
        self.vms: list[Row] = []

    def knows(self, name: str) -> bool:
        """Tell whether an exported disk bears the name."""
        return name in self._names and self._names[name].cls == "VDI"

    def size_of(self, name: str) -> int:
        """Return the size that a disk had."""
        return int(self._names[name].values["virtual_size"])

    def check(self) -> None:
        """Raise what forbids the import, and change nothing."""
        db, wish = self._ctx.db, self._wish
        if not self._items("VM"):
            raise Failure("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", "VM")
        for item in [*self._items("VBD"), *self._items("VIF")]:
            if item.values["VM"] not in self._names:
                raise Failure("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", item.values["VM"])
        if not wish.restore:
            return
        with db:
            for item in self._items("VM"):
                self._check_identity(item)

    def _check_identity(self, item: Item) -> None:
        db = self._ctx.db
        present = db.tables["VM"].by_uuid.get(item.values["uuid"])
        if present is not None and (self._wish.live or present["power_state"] != "Halted" or not self._wish.force):
            if self._wish.live:
                raise Failure("DUPLICATE_VM", present.ref)
            versions = (str(present["version"]), str(item.values["version"]))
            raise Failure("VM_TO_IMPORT_IS_NOT_NEWER_VERSION", present.ref, *versions)
        seed = item.values["other_config"].get("mac_seed")
        ours = {one.values["uuid"] for one in self._items("VM")}
        for vm in db.rows("VM"):
            if (
                seed
                and vm["other_config"].get("mac_seed") == seed
                and vm["uuid"] not in ours
                and not vm["is_a_snapshot"]
            ):
                raise Failure("DUPLICATE_MAC_SEED", seed)

    def create(self) -> list[str]:
        """Make all records, and empty disks; return the VMs. Raises Failure after undoing everything."""
        self.check()
        try:
            for item in self._items("VDI"):
                self._disk(item)
            with self._ctx.db:
                self._replace_present()
                self._networks()
                for item in self._items("VM_guest_metrics"):
                    self._plain(item)
                for item in self._items("VM"):
                    self._vm(item)
                for item in self._items("VBD"):
                    self._vbd(item)
                for item in self._items("VIF"):
                    self._vif(item)
                self._relate()
        except Failure:
            self.undo()
            raise
        return [vm.ref for vm in self.vms]

    def finish(self) -> None:
        """Let the VMs be used."""
        with self._ctx.db as db:
            for disk in self._made_disks:
                disks.refresh(self._ctx.pool, disk)
            for vm in self.vms:
                db.put(vm, current_operations={})
                vm_rules.refresh(db, vm)

    def undo(self) -> None:
        """Take everything back."""
        with self._ctx.db as db:
            for row in reversed(self._made):
                db.delete(row)
        for disk in self._made_disks:
            vdi.discard(self._ctx, disk)
        self._made.clear()
        self._made_disks.clear()
        self.vms.clear()

    # -- one class after the other

    def _items(self, cls: str) -> list[Item]:
        return self._by_class.get(cls, [])

    def _new(self, cls: str, values: dict[str, Any]) -> Row:
        ids = self._ctx.pool.ids
        row = self._ctx.db.create(cls, ids.ref(), {"uuid": ids.uuid()} | values)
        self._made.append(row)
        return row

    def _here(self, item: Item) -> dict[str, Any]:
        """Return a record with its references turned into those of this pool."""
        fields = self._ctx.db.tables[item.cls].spec.fields
        return {name: renamed(fields[name].type, value, self._refs) for name, value in item.values.items()}

    def _plain(self, item: Item) -> Row:
        values = self._here(item)
        del values["uuid"]
        row = self._new(item.cls, values)
        self._refs[item.name] = row.ref
        return row

    def _needs(self, disk: Item) -> bool:
        """Tell whether a disk is one that VMs write to, and no medium in a drive."""
        users = [vbd for vbd in self._items("VBD") if vbd.values["VDI"] == disk.name]
        is_image = any(vm.values["suspend_VDI"] == disk.name for vm in self._items("VM"))
        return is_image or any(vbd.values["type"] == "Disk" for vbd in users)

    def _disk(self, item: Item) -> None:
        row = self._present_disk(item)
        if row is None and self._needs(item):
            if self._wish.sr is None:
                if self._wish.force:
                    return
                sr = self._names.get(item.values["SR"])
                raise Failure("VDI_LOCATION_MISSING", sr.values["uuid"] if sr else "", item.values["location"])
            row = self._make_disk(item, self._wish.sr)
        if row is not None:
            self._refs[item.name] = row.ref

    def _present_disk(self, item: Item) -> Row | None:
        """Return the disk of this pool that an exported one is; one to be made anew is none of them."""
        ctx, wish = self._ctx, self._wish
        with ctx.db as db:
            mapped = item.values["other_config"].get(MAPS_TO, "") if wish.live else ""
            mapped = wish.found.get(item.values["uuid"], mapped)
            if mapped:
                row = db.find("VDI", mapped) or db.tables["VDI"].by_uuid.get(mapped)
                if row is None:
                    raise Failure("HANDLE_INVALID", "VDI", mapped)
                if wish.live:
                    self._dress(row, item)
                return row
            if wish.sr is not None and self._needs(item):
                return None
            return db.tables["VDI"].by_uuid.get(item.values["uuid"])

    def _dress(self, row: Row, item: Item) -> None:
        """Give a disk that came by storage motion the properties of the one it replaces."""
        fields = row.spec.fields
        values = {
            name: value
            for name, value in item.values.items()
            if name not in _SET_BY_FILES and name in fields and not isinstance(fields[name].type, Ref)
            and name not in ("allowed_operations", "current_operations", "VBDs", "crash_dumps", "snapshots", "managed")
        }  # fmt: skip
        values["other_config"] = {key: one for key, one in values["other_config"].items() if key != MAPS_TO}
        self._ctx.db.put(row, **values)

    def _make_disk(self, item: Item, sr: Row) -> Row:
        ctx, uuid = self._ctx, self._ctx.pool.ids.uuid()
        size = vdi.rounded(item.values["virtual_size"])
        kept = ("name_label", "name_description", "type", "sharable", "read_only", "other_config", "xenstore_data",
                "tags", "on_boot", "allow_caching", "is_a_snapshot", "snapshot_time")  # fmt: skip
        with vdi.on_sr(ctx, sr, "vdi_create"):
            with vdi.storage():
                ctx.pool.repository(sr).create(uuid, size)
            row = vdi.new_record(ctx, sr, uuid, **{name: item.values[name] for name in kept})
        self._made_disks.append(row)
        self.disks[item.name] = row
        return row

    def _networks(self) -> None:
        """Find each network by its label, else by its bridge; make one that is missing."""
        db = self._ctx.db
        for item in self._items("network"):
            networks = db.rows("network")
            same = [one for one in networks if one["name_label"] == item.values["name_label"]]
            same = same or [one for one in networks if one["bridge"] == item.values["bridge"]]
            if not same:
                number = int(db.notes.get("bridge", -1)) + 1
                db.note("bridge", number)
                kept = ("name_label", "name_description", "MTU", "other_config", "tags", "default_locking_mode")
                values = {name: item.values[name] for name in kept if name in item.values}
                same = [self._new("network", values | {"bridge": f"xapi{number}"})]
            self._refs[item.name] = same[0].ref

    def _replace_present(self) -> None:
        """Remove the halted VMs that a forced restore replaces; their disks stay."""
        db = self._ctx.db
        for item in self._items("VM") if self._wish.restore else []:
            present = db.tables["VM"].by_uuid.get(item.values["uuid"])
            if present is not None:
                vm_copy.remove(self._ctx, present)

    def _vm(self, item: Item) -> None:
        ids, wish = self._ctx.pool.ids, self._wish
        values = self._here(item) | vm_copy.fresh()
        other_config = item.values["other_config"]
        if not wish.restore or "mac_seed" not in other_config:
            values["other_config"] = other_config | {"mac_seed": self._seed_for(item)}
        kept = ("version", "snapshot_info", "snapshot_metadata", "is_default_template", "ha_restart_priority")
        values |= {name: item.values[name] for name in (*kept, *(("blocked_operations",) if wish.restore else ()))}
        image = self._refs.get(item.values["suspend_VDI"], NULL)
        if item.values["power_state"] == "Suspended" and image != NULL:
            values |= {"power_state": "Suspended", "suspend_VDI": image}
        values |= {
            "uuid": item.values["uuid"] if wish.restore else ids.uuid(),
            "metrics": self._metrics(values),
            "current_operations": {self._mark: "import"},
            "snapshot_of": NULL,
            "generation_id": item.values["generation_id"] if wish.restore else ids.generation_id(),
            "requires_reboot": False,
        }
        row = self._new("VM", values)
        self._refs[item.name] = row.ref
        self.vms.append(row)

    def _seed_for(self, item: Item) -> str:
        """Return the fresh mac_seed of a VM; its snapshots share it."""
        origin = self._refs.get(item.values["snapshot_of"])
        original = self._ctx.db.find("VM", origin) if origin else None
        return str(original["other_config"]["mac_seed"]) if original is not None else self._ctx.pool.ids.uuid()

    def _metrics(self, values: dict[str, Any]) -> str:
        return self._new("VM_metrics", {"current_domain_type": values["domain_type"]}).ref

    def _vbd(self, item: Item) -> None:
        if item.values["VM"] not in self._refs:
            return
        values = self._here(item)
        is_missing = item.values["VDI"] != NULL and values["VDI"] == NULL
        if is_missing and item.values["type"] == "Disk":
            return
        vm = self._ctx.db.row("VM", values["VM"])
        keeps = vm["power_state"] == "Suspended"
        values |= {
            "uuid": self._ctx.pool.ids.uuid(),
            "empty": values["empty"] or is_missing,
            "currently_attached": keeps and values["currently_attached"],
            "device": values["device"] if keeps else "",
            "allowed_operations": [],
            "current_operations": {},
            "metrics": self._new("VBD_metrics", {}).ref,
        }
        device_rules.refresh_device(self._ctx.db, self._new("VBD", values))

    def _vif(self, item: Item) -> None:
        if item.values["VM"] not in self._refs:
            return
        values, wish = self._here(item), self._wish
        vm = self._ctx.db.row("VM", values["VM"])
        mapped = item.values["other_config"].get(MAPS_TO, "") if wish.live else ""
        if mapped:
            self._ctx.db.row("network", mapped)
            values["network"] = mapped
            values["other_config"] = {key: one for key, one in values["other_config"].items() if key != MAPS_TO}
        if not wish.restore and item.values["MAC_autogenerated"]:
            values["MAC"] = mac_address(vm["other_config"]["mac_seed"], int(values["device"]))
        values |= {
            "uuid": self._ctx.pool.ids.uuid(),
            "currently_attached": vm["power_state"] == "Suspended" and values["currently_attached"],
            "allowed_operations": [],
            "current_operations": {},
            "metrics": self._new("VIF_metrics", {}).ref,
        }
        device_rules.refresh_device(self._ctx.db, self._new("VIF", values))

    def _relate(self) -> None:
        """Connect snapshots with what they are snapshots of."""
        db, refs = self._ctx.db, self._refs
        for item in [*self._items("VM"), *self._items("VDI")]:
            row = db.find(item.cls, refs.get(item.name, ""))
            if row is None:
                continue
            changes = {}
            for name in ("snapshot_of", "parent") if item.cls == "VM" else ("snapshot_of",):
                if item.values[name] in refs:
                    changes[name] = refs[item.values[name]]
            if changes and row.ref in {one.ref for one in [*self.vms, *self._made_disks]} | self._moved():
                db.put(row, **changes)
        self._set_order()

    def _moved(self) -> set[str]:
        return {self._refs[item.name] for item in self._items("VDI") if self._wish.live and item.name in self._refs}

    def _set_order(self) -> None:
        """Recompute what the new objects allow."""
        db = self._ctx.db
        for vm in self.vms:
            vm_rules.refresh(db, vm)
        for row in self._made_disks:
            device_rules.refresh_vdi(db, row)
