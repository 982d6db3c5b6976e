"""The control plane under /simulator/: what tests and demonstrations do to a pool that no XenAPI client could.

GET    stats                   {"calls": {name: count}, "total", "sessions"}
POST   stats/reset
GET    faults | POST faults | DELETE faults | DELETE faults/<id>    (simulator.faults)
GET    guests/<vm uuid> | POST guests/<vm uuid>                     (simulator.guests.Habits; {"console": text} prints;
                               {"writes_at": [first byte, ...]} writes 4 KiB of noise at each, on the first disk;
                               "inside" of the answer is simulator.agent.inside)
POST   guests/<vm uuid>/xenstore  {"xenstore": path of a socket, "domid"}     (simulator.dom0.guest_sockets)
GET    hosts | POST hosts/<uuid>                                    (simulator.control_hosts)
POST   xapi                    {"action": "restart" | "kill" | "flush"[, "downtime_s", "booting_s": seconds]}
GET    storage | POST storage  {"coalesce_now", "wait_s", "pause", "quiet_period_s", "step_s", "bytes_per_s",
                               "latency_s", "scan_s", "snapshot_s", "lock_retry_s": [from, to],
                               "lock_wakes_early"[, "sr": uuid]}
POST   clock                   {"advance": seconds}
POST   consoles                {"limit_console_sessions": bool, "vm_console_idle_timeout": seconds}
GET    leaks                   objects that no VM owns
GET    dom0                    {host uuid: {"name_label", "root", "xenstore"}}    (simulator.dom0.root)
GET    vdis/<uuid>             {"sha256", "sha256_at_snapshot", "depth", "chain", "snapshot_digests": {uuid: sha256}}
POST   vms | POST vdis         make many quickly; a kill does not lose them   (simulator.build)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from simulator.build import Builder
from simulator.collector import TASK_LABEL
from simulator.control_hosts import HostControl, NotFound
from simulator.core.database import Row
from simulator.core.failures import Failure
from simulator.model.words import words
from simulator.pool import Pool
from simulator.storage import StorageError
from simulator.wire.http import CONTROL_PREFIX, Connection, Request

_STORAGE_KEYS = frozenset(
    words(
        """
        sr coalesce_now wait_s pause quiet_period_s step_s bytes_per_s latency_s scan_s snapshot_s lock_retry_s
        lock_wakes_early
        """
    )
)


class Control:
    """Answers requests under /simulator/."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._hosts = HostControl(pool)
        self._builder = Builder(pool)
        self._routes: dict[tuple[str, str], Callable[..., Any]] = {
            ("GET", "stats"): self._stats,
            ("POST", "stats"): self._reset_stats,
            ("GET", "faults"): self._list_faults,
            ("POST", "faults"): self._add_fault,
            ("DELETE", "faults"): self._remove_faults,
            ("GET", "guests"): self._guest,
            ("POST", "guests"): self._change_guest,
            ("GET", "hosts"): self._hosts.describe,
            ("POST", "hosts"): self._hosts.act,
            ("POST", "xapi"): self._toolstack,
            ("GET", "storage"): self._storage,
            ("POST", "storage"): self._change_storage,
            ("POST", "clock"): self._clock,
            ("POST", "consoles"): self._consoles,
            ("GET", "leaks"): self._leaks,
            ("GET", "dom0"): self._dom0,
            ("GET", "vdis"): self._vdi,
            ("POST", "vms"): self._add_vms,
            ("POST", "vdis"): self._add_vdis,
        }

    def answer(self, request: Request, connection: Connection) -> bytes:
        """Return the whole HTTP answer."""
        status = 200
        try:
            result = self._route(request, connection)
        except NotFound as error:
            status, result = 404, {"error": str(error)}
        except (ValueError, TypeError, KeyError) as error:
            status, result = 400, {"error": f"{error}"}
        except Failure as failure:
            status, result = 409, {"error": failure.details}
        except StorageError as error:
            status, result = 409, {"error": str(error)}
        body = json.dumps(result).encode()
        keep = "keep-alive" if request.keeps_alive else "close"
        head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\nconnection:{keep}\r\n"
        return head.encode() + b"content-type:application/json\r\n\r\n" + body

    def _route(self, request: Request, connection: Connection) -> Any:
        section, _, rest = request.path[len(CONTROL_PREFIX) :].partition("/")
        handler = self._routes.get((request.method, section))
        if handler is None:
            raise NotFound(f"no {request.method} {request.path}")
        wish = json.loads(request.body) if request.body else {}
        if not isinstance(wish, dict):
            raise TypeError("the body must be a JSON object")
        if handler in (self._toolstack, self._hosts.act):
            return handler(rest, wish, connection)
        return handler(rest, wish)

    # -- statistics and faults

    def _stats(self, _rest: str, _wish: dict[str, Any]) -> Any:
        calls = dict(self._pool.calls)
        sessions = len(self._pool.db.tables["session"].rows)
        return {"calls": calls, "total": sum(calls.values()), "sessions": sessions}

    def _reset_stats(self, rest: str, _wish: dict[str, Any]) -> Any:
        if rest != "reset":
            raise NotFound(f"stats/{rest}")
        self._pool.calls.clear()
        return {}

    def _list_faults(self, _rest: str, _wish: dict[str, Any]) -> Any:
        return self._pool.faults.all()

    def _add_fault(self, _rest: str, wish: dict[str, Any]) -> Any:
        return self._pool.faults.add(wish).describe()

    def _remove_faults(self, rest: str, _wish: dict[str, Any]) -> Any:
        return {"removed": self._pool.faults.remove(rest or None)}

    # -- guests, hosts, toolstack

    def _vm(self, uuid: str) -> Row:
        return self._by_uuid("VM", uuid)

    def _by_uuid(self, cls: str, uuid: str) -> Row:
        row = self._pool.db.tables[cls].by_uuid.get(uuid)
        if row is None:
            raise NotFound(f"no {cls} {uuid}")
        return row

    def _guest(self, rest: str, _wish: dict[str, Any]) -> Any:
        return self._pool.guests.describe(self._vm(rest))

    def _change_guest(self, rest: str, wish: dict[str, Any]) -> Any:
        uuid, _, part = rest.partition("/")
        vm = self._vm(uuid)
        if part == "xenstore":
            return {"xenstore": str(self._pool.guest_sockets.open(vm)), "domid": vm["domid"]}
        if part:
            raise NotFound(f"guests/{rest}")
        text = wish.pop("console", "")
        if text and not self._pool.dom0s.print_console(vm, str(text)):
            raise ValueError("console: the VM does not run")
        if places := wish.pop("writes_at", None):
            self._pool.guests.writes.at(vm, places)
        return self._pool.guests.change(vm, wish)

    def _toolstack(self, _rest: str, wish: dict[str, Any], connection: Connection) -> Any:
        if wish.get("action") == "flush":
            self._pool.db.flush()
            return {}
        return self._hosts.toolstack(wish, connection)

    # -- storage

    def _srs(self, wish: dict[str, Any]) -> list[Row]:
        if "sr" in wish:
            return [self._by_uuid("SR", wish["sr"])]
        return [sr for sr in self._pool.db.rows("SR") if self._pool.has_repository(sr)]

    def _storage(self, _rest: str, _wish: dict[str, Any]) -> Any:
        answer = {}
        for sr in self._srs({}):
            nodes = self._pool.repository(sr).nodes()
            known = {vdi["uuid"] for vdi in self._pool.db.linked(sr, "VDIs", "VDI")}
            answer[sr["uuid"]] = self._pool.collector(sr).describe() | {
                "files": len(nodes),
                "without_record": sorted(set(nodes) - known),
                "path": str(self._pool.sr_path(sr["uuid"])),
            }
        return answer

    def _change_storage(self, rest: str, wish: dict[str, Any]) -> Any:
        if set(wish) - _STORAGE_KEYS:
            raise ValueError(f"unknown keys; known: {', '.join(sorted(_STORAGE_KEYS))}")
        for sr in self._srs(wish):
            collector = self._pool.collector(sr)
            collector.quiet_period_s = float(wish.get("quiet_period_s", collector.quiet_period_s))
            collector.step_s = float(wish.get("step_s", collector.step_s))
            collector.is_paused = bool(wish.get("pause", collector.is_paused))
            if wish.get("coalesce_now"):
                collector.hurry()
                collector.wait_idle(float(wish.get("wait_s", 0)))
        pool = self._pool
        pool.transfers.bytes_per_s = wish.get("bytes_per_s", pool.transfers.bytes_per_s)
        pool.latency_s = float(wish.get("latency_s", pool.latency_s))
        pool.scan_s = float(wish.get("scan_s", pool.scan_s))
        pool.snapshot_s = float(wish.get("snapshot_s", pool.snapshot_s))
        pool.operations.wakes_early = bool(wish.get("lock_wakes_early", pool.operations.wakes_early))
        low, high = wish.get("lock_retry_s", pool.operations.retry_s)
        pool.operations.retry_s = (float(low), float(high))
        return self._storage(rest, {})

    def _clock(self, _rest: str, wish: dict[str, Any]) -> Any:
        self._pool.clock.advance(float(wish.get("advance", 0)))
        return {"now": self._pool.clock.now()}

    def _consoles(self, _rest: str, wish: dict[str, Any]) -> Any:
        return self._pool.consoles.change(wish)

    # -- looking

    def _leaks(self, _rest: str, _wish: dict[str, Any]) -> Any:
        """Return what belongs to nobody: disks without VM, dom0's VBDs, pending tasks, running transfers."""
        db = self._pool.db
        with db:
            dom0 = {vm.ref for vm in db.rows("VM") if vm["is_control_domain"]}
            vbds = [vbd for vbd in db.rows("VBD") if vbd["VM"] in dom0]
            tasks = [task for task in db.rows("task") if task["status"] == "pending"]
            return {
                "vdis": [self._lost(vdi) for vdi in db.rows("VDI") if self._is_lost(vdi, dom0)],
                "vbds": [{"uuid": vbd["uuid"], "vdi": self._uuid_of(vbd["VDI"])} for vbd in vbds],
                "tasks": [{"uuid": task["uuid"], "name_label": task["name_label"]} for task in tasks
                          if task["name_label"] != TASK_LABEL],
                "transfers": self._pool.transfers.running(),
            }  # fmt: skip

    def _is_lost(self, vdi: Row, dom0: set[str]) -> bool:
        if not vdi["managed"]:
            return False
        db = self._pool.db
        owners = [vbd["VM"] for vbd in db.linked(vdi, "VBDs", "VBD") if vbd["VM"] not in dom0]
        return not owners and not any(vm["suspend_VDI"] == vdi.ref for vm in db.rows("VM"))

    def _uuid_of(self, vdi_ref: str) -> str:
        vdi = self._pool.db.find("VDI", vdi_ref)
        return str(vdi["uuid"]) if vdi is not None else ""

    def _lost(self, vdi: Row) -> dict[str, Any]:
        names = ("uuid", "name_label", "is_a_snapshot", "other_config")
        found = f"found/{vdi['uuid']}" in self._pool.db.notes
        return {name: vdi[name] for name in names} | {"ref": vdi.ref, "found_by_scan": found}

    def _vdi(self, rest: str, _wish: dict[str, Any]) -> Any:
        vdi = self._by_uuid("VDI", rest)
        repository = self._pool.repository_of(vdi)
        chain = []
        uuid: str | None = vdi["uuid"]
        while uuid is not None:
            chain.append(uuid)
            uuid = repository.node(uuid).parent
        with self._pool.guests.writes.paused(vdi["uuid"]):
            digest = repository.sha256(vdi["uuid"])
        return {
            "sha256": digest,
            "sha256_at_snapshot": self._pool.db.notes.get(f"digest/{rest}"),
            "snapshot_digests": self._pool.db.notes.get(f"digests/{rest}", {}),
            "depth": repository.depth(vdi["uuid"]),
            "chain": chain,
        }

    def _dom0(self, _rest: str, _wish: dict[str, Any]) -> Any:
        return self._pool.dom0s.describe()

    # -- making many

    def _add_vms(self, _rest: str, wish: dict[str, Any]) -> Any:
        made = self._builder.add_vm(wish)
        self._pool.db.flush()
        return made

    def _add_vdis(self, _rest: str, wish: dict[str, Any]) -> Any:
        made = self._builder.add_vdis(wish)
        self._pool.db.flush()
        return made
