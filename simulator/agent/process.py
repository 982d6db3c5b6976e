"""One agent's process: the domain that it is in, and what it knows of its mailbox."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from simulator.agent.agent import Agent
from simulator.core.database import Row
from simulator.dom0.tree import Domain
from simulator.dom0.xenstore import Watch, XenStore, XenStoreError

if TYPE_CHECKING:
    from simulator.pool import Pool

_REQUESTS, _ANSWERS = "data/host", "data/guest"


class Process:
    """An agent that runs in a guest, and the guest as it sees it: with the rights of its domain."""

    agent: Agent

    def __init__(self, pool: Pool, vm: Row, started_at: float) -> None:
        self._pool = pool
        self.vm_ref = vm.ref
        self.started_at = started_at
        self.is_planned = False
        self.is_looking = False
        self.plan = 0
        """The number of the last plan: only its look takes place."""
        self.waiting: list[str] = []
        """Requests of this look."""
        self.ended_by = ""
        """Why it runs no more."""
        self._left: dict[str, str] = {}
        """Requests that stay where they are, with their texts."""
        self._store: XenStore | None = None
        self._domid = 0
        self._watch: Watch | None = None

    # -- life

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return not self.ended_by

    def enter(self, store: XenStore, domain: Domain) -> None:
        """Be in this domain from now on: what lay in the mailbox of another one is gone."""
        self._unwatch()
        self._left.clear()
        self._store, self._domid = store, domain.domid

    def watch(self, changed: Callable[[], None]) -> None:
        """Let changes of the mailbox be told."""
        if self._store is not None:
            folder = f"/local/domain/{self._domid}/{_REQUESTS}"
            self._watch = self._store.watch(folder, self.vm_ref, lambda _path, _token: changed())

    def end(self, why: str) -> None:
        """Run no more."""
        self.ended_by = self.ended_by or why
        self._unwatch()

    def _unwatch(self) -> None:
        if self._watch is not None and self._store is not None:
            self._store.unwatch(self._watch)
            self._watch = None

    # -- what an agent sees of its guest

    def read(self, path: str) -> str | None:
        """Return a value of the guest's own tree."""
        if self._store is None:
            return None
        try:
            return self._store.read(path, who=self._domid).decode("utf-8", "surrogateescape")
        except XenStoreError:
            return None

    def names(self, path: str) -> list[str]:
        """Return the names below a node there."""
        if self._store is None:
            return []
        try:
            return self._store.directory(path, who=self._domid)
        except XenStoreError:
            return []

    def interfaces(self) -> list[str]:
        """Return the interfaces' MACs: upper case, no colons."""
        with self._pool.db as db:
            vm = db.find("VM", self.vm_ref)
            vifs = db.linked(vm, "VIFs", "VIF") if vm is not None else []
            attached = sorted((vif["device"], vif["MAC"]) for vif in vifs if vif["currently_attached"])
        return [mac.replace(":", "").upper() for _device, mac in attached]

    # -- the mailbox

    def requests(self) -> list[str]:
        """Return the names of requests, in the order they were made, without those that are left alone."""
        return [one for one in self.names(_REQUESTS) if one not in self._left or self._left[one] != self.request(one)]

    def request(self, name: str) -> str | None:
        """Return a request's text."""
        return self.read(f"{_REQUESTS}/{name}")

    def leave(self, name: str, text: str) -> None:
        """Look at a request no more, unless another one takes its place."""
        self._left[name] = text

    def take(self, name: str) -> None:
        """Remove a request."""
        with contextlib.suppress(XenStoreError):
            if self._store is not None:
                self._store.rm(f"{_REQUESTS}/{name}", who=self._domid)

    def answer(self, name: str, text: str) -> None:
        """Write an answer; one that is too long is not written, and the agent only logs that."""
        with contextlib.suppress(XenStoreError):
            if self._store is not None:
                self._store.write(f"{_ANSWERS}/{name}", text.encode("utf-8", "surrogateescape"), who=self._domid)

    def finish(self, name: str, text: str) -> None:
        """Remove a request and write its answer, in the order of the agent's kind."""
        if self.agent.answers_first:
            self.answer(name, text)
            self.take(name)
        else:
            self.take(name)
            self.answer(name, text)
