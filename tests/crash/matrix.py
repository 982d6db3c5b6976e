"""The crash matrix of one operation: at every call, before and after it took effect, worker killed or wire cut.

    destroying = Matrix(CALLS, prepare=make_vm, submit=destroy_vm, check=assert_destroyed)

    def test_the_matrix_has_every_call(rig: Rig) -> None:
        destroying.assert_is_complete(rig)

    @destroying.at_every_call
    def test_accident(rig: Rig, accident: Accident) -> None:
        destroying.endure(rig, accident)

`prepare` makes what the operation works on, with whatever calls it likes: accidents happen to what `submit` starts.
`check` states what an undisturbed run leaves, and is the same after every accident.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import pytest
from _pytest.mark import ParameterSet

from tests.support.rig import Rig
from tests.support.simulator import SimulatorProcess
from worker.client import Handle

T = TypeVar("T")

#: Calls of the watcher and of waits for a task; how many there are depends on time.
LOOKS = frozenset({"event.from", "task.get_record"})
#: Nobody asked for these in particular: a worker that starts logs in.
_LOGIN = "session.login_with_password"
_PATIENCE_S = 60.0
_MAKES = re.compile(r"\.(create|clone|destroy|start\w*|hard_\w+|clean_\w+|suspend|resume)$|^PUT ")


@dataclass(frozen=True, slots=True)
class Accident:
    """What happens at one call."""

    kind: Literal["killed", "cut"]
    """The worker is killed while the call is held, or the connection is cut."""
    moment: Literal["before", "after"]
    """Before or after the call took effect."""
    call: str
    nth: int
    """Which call of that name, counted from the submission."""

    def __str__(self) -> str:
        return f"{self.kind} {self.moment} {self.call} {self.nth}"

    def case(self, *values: object, telling: Collection[tuple[str, int]] | None = None) -> ParameterSet:
        """Return the accident as a test case, behind other values.

        `make test` has the deaths after a call that makes or unmakes something, which leave most behind, or after the
        `telling` ones; `make test-matrix` has every one.
        """
        is_chosen = _MAKES.search(self.call) if telling is None else (self.call, self.nth) in telling
        is_telling = (self.kind, self.moment) == ("killed", "after") and is_chosen
        marks = () if is_telling else (pytest.mark.matrix,)
        return pytest.param(*values, self, id=" ".join(map(str, (*values, self))), marks=marks)


@dataclass(frozen=True)
class Matrix(Generic[T]):
    """One operation under test."""

    calls: Sequence[tuple[str, int]]
    """Every call of an undisturbed run but looks and those `apart`, as (call, which one of that name)."""
    prepare: Callable[[Rig], T]
    submit: Callable[[Rig, T], Handle]
    check: Callable[[Rig, T, Handle], None]
    looks: Sequence[tuple[str, int]] = ()
    """Looks at which accidents shall happen, too."""
    kinds: Sequence[Literal["killed", "cut"]] = ("killed", "cut")
    pool: str = "simulator"
    """The rig's attribute that is the pool of the accidents."""
    apart: Mapping[str, int] = field(default_factory=dict)
    """Calls of the run without accidents here: another matrix has them, or somebody else makes them."""
    telling: Collection[tuple[str, int]] | None = None
    """The calls after which `make test` has a death; default: all that make or unmake something."""

    @property
    def accidents(self) -> list[Accident]:
        """Every accident that may happen."""
        moments: tuple[Literal["before", "after"], ...] = ("before", "after")
        return [
            Accident(kind, moment, call, nth)
            for kind in self.kinds
            for call, nth in [*self.calls, *self.looks]
            for moment in moments
        ]

    @property
    def at_every_call(self) -> pytest.MarkDecorator:
        """Parametrises a test over `accident`."""
        return pytest.mark.parametrize("accident", [one.case(telling=self.telling) for one in self.accidents])

    def endure(self, rig: Rig, accident: Accident) -> None:
        """Let the accident happen to a run, and check what it leaves."""
        subject = self.prepare(rig)
        pool: SimulatorProcess = getattr(rig, self.pool)
        effect = "pause" if accident.kind == "killed" else "reset"
        fault = pool.add_fault(match=accident.call, nth=accident.nth, effect=effect, when=accident.moment)
        handle = self.submit(rig, subject)
        if accident.kind == "killed":
            pool.wait_for_hit(fault, _PATIENCE_S)
            kill_and_go_on(rig, pool)
        rig.wait(handle, 2 * _PATIENCE_S)
        if accident.kind == "cut":
            assert [one["hits"] for one in pool.faults() if one["id"] == fault] == [1], "it did not happen"
            pool.clear_faults()
        self.check(rig, subject, handle)

    def assert_is_complete(self, rig: Rig) -> None:
        """Run undisturbed, and compare the calls that were made with the matrix."""
        self._run(rig)  # logs in, and may fill what workers keep
        made = self._run(rig)
        assert made == Counter(name for name, _ in self.calls) + Counter(self.apart), made

    def _run(self, rig: Rig) -> Counter[str]:
        subject = self.prepare(rig)
        pool: SimulatorProcess = getattr(rig, self.pool)
        pool.reset_stats()
        handle = self.submit(rig, subject)
        rig.wait(handle, 2 * _PATIENCE_S)
        calls = pool.calls()
        self.check(rig, subject, handle)
        return Counter({name: count for name, count in calls.items() if name not in LOOKS and name != _LOGIN})


def kill_and_go_on(rig: Rig, pool: SimulatorProcess | None = None) -> None:
    """Kill the worker where it stands, let what held it (in `pool`) go, and start another."""
    rig.kill_worker()
    (pool or rig.simulator).clear_faults()
    rig.glance.reset()
    rig.start_worker()
