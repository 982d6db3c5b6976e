"""`event.from`: what changed since a token, and waiting until something does (xapi.md 12.1, xapi-observed.md).

The older `event.register`/`event.next` are in `simulator.api.event`, on top of this.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from simulator.core.database import Database, Row
from simulator.core.failures import Failure
from simulator.model.schema import CLASSES
from simulator.model.types import STRING, MapOf, TaggedInt, Type
from simulator.model.words import words

#: Pause between being woken and looking, so that changes which belong together arrive together.
BATCHING_S = 0.05
#: XAPI keeps a time-out and this much more (seen: 0.2 -> 0.76 s, 30 -> 30.57 s; 0 stays 0).
EXTRA_WAIT_S = 0.55
LONGEST_WAIT_S = 86400.0

_TOKEN = re.compile(r"(\d+),(\d+)\Z")
#: Classes that XAPI counts beside the simulated ones.
_EMPTY_CLASSES = words(
    """
    diagnostics vdi_nbd_server_info user tunnel subject sr_stat secret role probe_result pool_update pool_patch
    network_sriov message host_patch host_crashdump event data_source crashdump blob auth vusb vtpm vm_appliance
    vmss vmpp vlan vgpu_type vgpu usb_group sdn_controller repository pvs_site pvs_server pvs_proxy
    pvs_cache_storage pusb pgpu pci observer lvhd gpu_group feature dr_task cluster_host cluster certificate
    bond
    """
)
_SPECS = {name.lower(): spec for name, spec in CLASSES.items()}
#: The class that XAPI keeps outside its database: no count of references, numbers of their own in tokens (seen).
_MESSAGE = "message"
_NO_EVENTS = frozenset({"session"})
#: The key under which all who wait are found; no class has this name.
_EVERYONE = ""

COUNTS = MapOf(STRING, TaggedInt())


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a batch; `xml` and `values` are None for `del`."""

    generation: int
    cls: str
    operation: str
    ref: str
    row: Row | None
    stamp: str = "0.0"


class EventsType(Type):
    """The type of event.from's answer: {events, valid_ref_counts, token}."""

    name = "an event batch"

    def xml(self, value: Any) -> str:
        """Return the struct."""
        events = "".join(_event_xml(one) for one in value["events"])
        return (
            f"<value><struct><member><name>events</name><value><array><data>{events}</data></array></value></member>"
            f"<member><name>valid_ref_counts</name>{COUNTS.xml(value['valid_ref_counts'])}</member>"
            f"<member><name>token</name><value>{value['token']}</value></member></struct></value>"
        )

    def json(self, value: Any) -> Any:
        """Return the dict."""
        return value | {"events": [_event_json(one) for one in value["events"]]}


def _event_xml(event: Event) -> str:
    snapshot = f"<member><name>snapshot</name>{event.row.xml()}</member>" if event.row else ""
    return (
        f"<value><struct><member><name>id</name><value>{event.generation}</value></member>"
        f"<member><name>timestamp</name><value>{event.stamp}</value></member>"
        f"<member><name>class</name><value>{event.cls}</value></member>"
        f"<member><name>operation</name><value>{event.operation}</value></member>"
        f"<member><name>ref</name><value>{event.ref}</value></member>{snapshot}</struct></value>"
    )


def _event_json(event: Event) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "id": str(event.generation),
        "timestamp": event.stamp,
        "class": event.cls,
        "operation": event.operation,
        "ref": event.ref,
    }
    if event.row:
        answer["snapshot"] = event.row.spec.json(event.row.values)
    return answer


@dataclass(frozen=True, slots=True)
class Subscription:
    """What one call wants to hear about."""

    classes: frozenset[str]
    objects: frozenset[tuple[str, str]]

    def concerns(self, cls: str) -> bool:
        """Tell whether anything of a class is part of it."""
        return cls in self.classes or any(cls == one for one, _ref in self.objects)

    def wants(self, cls: str, ref: str) -> bool:
        """Tell whether an object is part of it."""
        return cls in self.classes or (cls, ref) in self.objects


def subscription(texts: list[str]) -> Subscription:
    """Read `*`, `VM`, `vm`, `vm/OpaqueRef:...`. Unknown classes are accepted and never heard of (seen)."""
    classes: set[str] = set()
    objects: set[tuple[str, str]] = set()
    for text in texts:
        name, _, ref = text.partition("/")
        if name == "*":
            classes.update(spec.name for key, spec in _SPECS.items() if key not in _NO_EVENTS)
        elif name.lower() in _SPECS and name.lower() not in _NO_EVENTS:
            cls = _SPECS[name.lower()].name
            if ref:
                objects.add((cls, ref))
            else:
                classes.add(cls)
    return Subscription(frozenset(classes), frozenset(objects))


class Waiter:
    """Somebody who waits for a commit that concerns them."""

    def __init__(self) -> None:
        self.woken = threading.Event()


class EventHub:
    """All who wait for changes of one database."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._waiters: dict[str | tuple[str, str], set[Waiter]] = {}
        """By class, and by (class, ref): a commit costs nothing for those whom it does not concern."""
        self._lock = threading.Lock()
        database.on_commit = self._committed

    def _committed(self, touched: set[tuple[str, str]]) -> None:
        if not self._waiters:
            return
        keys: set[str | tuple[str, str]] = {cls for cls, _ref in touched}
        keys |= touched
        with self._lock:
            for key in keys & self._waiters.keys():
                for waiter in self._waiters[key]:
                    waiter.woken.set()

    def wake_all(self) -> None:
        """Make every waiter look again (a session ended, the toolstack goes)."""
        with self._lock:
            for waiter in self._waiters.get(_EVERYONE, ()):
                waiter.woken.set()

    @contextlib.contextmanager
    def _waiting(self, wants: Subscription) -> Iterator[Waiter]:
        """Be woken by commits that concern a subscription, and by `wake_all`."""
        waiter = Waiter()
        keys: list[str | tuple[str, str]] = [_EVERYONE, *wants.classes, *wants.objects]
        with self._lock:
            for key in keys:
                self._waiters.setdefault(key, set()).add(waiter)
        try:
            yield waiter
        finally:
            with self._lock:
                for key in keys:
                    self._waiters[key].discard(waiter)
                    if not self._waiters[key]:
                        del self._waiters[key]

    def token(self, *, counts_messages: bool = False) -> str:
        """Return the token of this moment; messages are counted apart, for those who want them (seen)."""
        messages = self._message_generation() if counts_messages else 0
        return f"{self._db.generation:020d},{messages:020d}"

    def _message_generation(self) -> int:
        """Return when the last message came or went."""
        table = self._db.tables["message"]
        newest = next(reversed(table.recent), None)
        came = table.rows[newest].modified if newest is not None else 0
        return max(came, table.deleted[-1][1] if table.deleted else 0)

    def wait_from(self, wants: Subscription, token: str, timeout_s: float, check: Callable[[], None]) -> dict[str, Any]:
        """Answer event.from. `check` raises when the caller's session has ended meanwhile.

        Raises EVENT_FROM_TOKEN_PARSE_FAILURE.
        """
        since = _generations_of(token)
        limit = min(timeout_s, LONGEST_WAIT_S)
        deadline = time.monotonic() + (limit + EXTRA_WAIT_S if limit > 0 else 0)
        with self._waiting(wants) as waiter:
            while True:
                with self._db:
                    check()
                    events = self._collect(wants, since)
                    left = deadline - time.monotonic()
                    if events or left <= 0:
                        return self._answer(events, wants)
                    waiter.woken.clear()
                if waiter.woken.wait(left):
                    time.sleep(BATCHING_S)

    def _answer(self, events: list[Event], wants: Subscription) -> dict[str, Any]:
        counts = dict.fromkeys(_EMPTY_CLASSES, 0)
        counts |= {name.lower(): len(table.rows) for name, table in self._db.tables.items()}
        counts[_MESSAGE] = 0
        token = self.token(counts_messages=wants.concerns(_MESSAGE))
        return {"events": events, "valid_ref_counts": counts, "token": token}

    def _collect(self, wants: Subscription, since: tuple[int, int]) -> list[Event]:
        """Return what changed: messages first, then all other classes, additions before changes before deletions."""
        classes = wants.classes | {cls for cls, _ref in wants.objects}
        messages = self._changes(wants, classes & {_MESSAGE}, since[1])
        return [replace(one, generation=0) for one in messages] + self._changes(wants, classes - {_MESSAGE}, since[0])

    def _changes(self, wants: Subscription, classes: frozenset[str], since: int) -> list[Event]:
        added, changed, gone = [], [], []
        for cls in classes:
            table, whole, name = self._db.tables[cls], cls in wants.classes, cls.lower()
            for row in table.changed_since(since):
                if whole or (cls, row.ref) in wants.objects:
                    if row.created > since:
                        added.append(Event(row.modified, name, "add", row.ref, row))
                    else:
                        changed.append(Event(row.modified, name, "mod", row.ref, row))
            for created, deleted, ref in table.deleted:
                if created <= since < deleted and (whole or (cls, ref) in wants.objects):
                    gone.append(Event(deleted, name, "del", ref, None))
        return [*reversed(added), *reversed(changed), *gone]


def _generations_of(token: str) -> tuple[int, int]:
    """Return the two numbers of a token: how far its owner has seen objects, and messages."""
    if token == "":
        return -1, -1
    match = _TOKEN.match(token)
    if not match:
        raise Failure("EVENT_FROM_TOKEN_PARSE_FAILURE", token)
    return int(match[1]), int(match[2])
