"""Every call there is, in any order, with parameters of the right types: never a defect, never a half-done pool."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from simulator.api.registry import METHODS, Constructor, Method, Row_
from simulator.build import Builder
from simulator.model.schema import CLASSES
from simulator.model.types import NULL, Bool, Enum, Float, Int, MapOf, OptionOf, Ref, SetOf, Time, Type
from tests.support.model_pool import MIB, PATIENCE_S, RESTARTING, PoolInside, check_references, check_relations, profile

pytestmark = [pytest.mark.slow, pytest.mark.timeout(PATIENCE_S)]
#: Calls that wait for something from outside, run programs, or end the session.
_SPARED = frozenset(
    {
        "event.next",
        "event.from",
        "session.logout",
        "session.local_logout",
        "session.logout_subject_identifier",
        "session.destroy",
        "session.change_password",
        "host.call_plugin",
        "VM.call_plugin",
        "VM.call_host_plugin",
        "pool.join",
        "pool.join_force",
        "VM.migrate_send",
        "VDI.pool_migrate",
        "system.listMethods",
    }
)
NAMES = sorted(METHODS.keys() - _SPARED - RESTARTING)
#: Those that change things get half of the turns; getters are many.
CHANGES = [name for name in NAMES if not name.partition(".")[2].startswith("get_")]
_TEXTS = ("", "a", "true", "0", "7", "4096", "192.0.2.1", "é", 'field "uuid" = ""', "ext", "autodetect", "xenbr0")
_NUMBERS = (-1, 0, 1, 2, 9, 1500, 1 << 20, 1 << 28)
_PLAIN: dict[type, tuple[Any, ...]] = {
    Bool: (True, False),
    Int: _NUMBERS,
    Float: (-1.0, 0.0, 0.5, 1e9),
    Time: ("19700101T00:00:00Z", "20300101T12:00:00Z"),
}


class Maker:
    """Makes values of any type, from what there is in the pool."""

    def __init__(self, inside: PoolInside, seed: int) -> None:
        self._inside = inside
        self._random = random.Random(seed)

    def arguments(self, method: Method) -> list[Any]:
        """Return parameters for a call; optional ones may be missing."""
        count = self._random.randint(method.mandatory, len(method.params))
        return [self.value(kind) for kind in method.params[:count]]

    def value(self, kind: Type) -> Any:
        """Return a value that fits a type."""
        if isinstance(kind, Row_ | Ref):
            # What is not looked up is stored as it is, by XAPI, too: only what exists may be given.
            return self._reference(kind.class_name, ("OpaqueRef:none", NULL) if isinstance(kind, Row_) else (NULL,))
        if isinstance(kind, Constructor | OptionOf | SetOf | MapOf):
            return self._compound(kind)
        texts = sorted(kind.values) if isinstance(kind, Enum) else (*_TEXTS, self._uuid())
        return self._random.choice(_PLAIN.get(type(kind), texts))

    def _compound(self, kind: Constructor | OptionOf | SetOf | MapOf) -> Any:
        count = self._random.choice((0, 1, 2))
        if isinstance(kind, Constructor):
            return {one.name: self.value(one.type) for one in kind._fields if one.is_mandatory or self._one_of(3)}
        if isinstance(kind, OptionOf):
            return self.value(kind.item)
        if isinstance(kind, SetOf):
            return [self.value(kind.item) for _ in range(count)]
        return {self._key(kind.key): self.value(kind.item) for _ in range(count)}

    def _one_of(self, number: int) -> bool:
        return self._random.randrange(number) == 0

    def _key(self, kind: Type) -> str:
        return str(self.value(kind)).translate({ord("<"): "", ord("&"): "", ord(">"): ""})

    def _reference(self, cls: str, nothing: tuple[str, ...]) -> str:
        rows = self._inside.db.rows(cls) if cls in CLASSES else []
        if not rows or self._random.random() < 0.1:
            return self._random.choice(nothing)
        return self._random.choice(rows).ref

    def _uuid(self) -> str:
        rows = self._inside.db.rows(self._random.choice(("VM", "VDI", "SR", "host")))
        return str(self._random.choice(rows)["uuid"]) if rows else ""


class CallMachine(RuleBasedStateMachine):
    """A client that knows the data model, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="simulator-properties-"))
        self.inside = PoolInside(self.folder)
        for running in (True, False):
            Builder(self.inside.pool).add_vm({"name": "vm", "disks": [{"size": 2 * MIB}], "running": running})

    def teardown(self) -> None:
        """Compare with what a restart would find."""
        try:
            self.inside.collect()
            self.inside.check_log()
        finally:
            self.inside.pool.stop()
            shutil.rmtree(self.folder, ignore_errors=True)

    @rule(name=st.sampled_from(CHANGES), seeds=st.lists(st.integers(0, 1 << 20), min_size=1, max_size=4))
    def change(self, name: str, seeds: list[int]) -> None:
        """Call something, a few times."""
        for seed in seeds:
            self._call(name, seed)

    @rule(names=st.lists(st.sampled_from(NAMES), min_size=5, max_size=20), seed=st.integers(0, 1 << 20))
    def calls(self, names: list[str], seed: int) -> None:
        """Call many things."""
        for name in names:
            self._call(name, seed)

    @rule(cls=st.sampled_from(sorted(CLASSES)), seed=st.integers(0, 1 << 20))
    def one_class(self, cls: str, seed: int) -> None:
        """Call everything of a class."""
        names = [name for name in CHANGES if name.startswith(f"{cls}.")]
        random.Random(seed).shuffle(names)
        for number, name in enumerate(names[:40]):
            self._call(name, seed + number)

    def _call(self, name: str, seed: int) -> None:
        method = METHODS[name]
        params = Maker(self.inside, seed).arguments(method)
        if method.needs_session:
            if self.inside.db.find("session", self.inside.session) is None:
                self.inside.log_in()
            self.inside.call(name, *params)

    @rule()
    def restart(self) -> None:
        """Restart the toolstack."""
        self.inside.restart()

    @invariant()
    def the_pool_is_whole(self) -> None:
        """References and relations hold, and a client that follows events knows it all."""
        with self.inside.db as db:
            check_references(db)
            check_relations(db)
            self.inside.check_events()


CallMachine.TestCase.settings = profile(examples=10, steps=12)
TestCalls = CallMachine.TestCase
