"""The guests' agents of a pool: when they run, what they look at, what happens to them.

An agent has no thread: a change below the domain's `data/host` plans its next look, on the scheduler, for the moment
its poll interval says. An idle one costs nothing.
"""

from __future__ import annotations

import contextlib
import copy
import math
import threading
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from simulator.agent import habits as agent_habits
from simulator.agent.agent import Agent, Died, Reply, parsed
from simulator.agent.habits import Accident, AgentHabits
from simulator.agent.inside import Inside
from simulator.agent.nova import NovaAgent
from simulator.agent.process import Process
from simulator.agent.unix import UnixAgent
from simulator.agent.windows import WindowsAgent
from simulator.api import domains
from simulator.api.registry import Context
from simulator.core.database import Row
from simulator.core.failures import Failure
from simulator.dom0.tree import Domain
from simulator.dom0.xenstore import XenStore

if TYPE_CHECKING:
    from simulator.pool import Pool

_AGENTS: Mapping[str, type[Agent]] = {"nova-agent": NovaAgent, "unix": UnixAgent, "windows": WindowsAgent}


class Agents:
    """All agents."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._processes: dict[str, Process] = {}
        self._booting: set[str] = set()
        """VMs whose guests have not booted yet."""
        self._insides: dict[str, Inside] = {}
        """By the VM's uuid."""
        self._met: dict[str, Counter[int]] = {}
        """By VM: how many requests matched each of its accidents."""
        self._lock = threading.RLock()
        pool.dom0s.on_begin.append(self._entered)

    # -- life; the database is locked

    def booting(self, vm: Row) -> None:
        """End what ran in the VM's guest: it boots."""
        self._stop(vm.ref)
        self._booting.add(vm.ref)

    def booted(self, vm: Row) -> None:
        """Start the agent of a guest that has booted, if it is to have one and has none yet."""
        self._booting.discard(vm.ref)
        if vm.ref not in self._processes:
            self._start(vm)

    def changed(self, vm: Row, wish: Mapping[str, Any]) -> None:
        """Let changed habits act: on the process that runs, or on another one."""
        if "agent_accidents" in wish:
            self._met.pop(vm.ref, None)
        if wish.keys() & agent_habits.STARTS_ANEW:
            self._stop(vm.ref)
            if vm["power_state"] in ("Running", "Paused") and vm.ref not in self._booting:
                self._start(vm)
        process = self._processes.get(vm.ref)
        if process is not None:
            process.agent.habits = self._pool.guests.habits(vm)
            self._poke(process, anew=True)

    def resumed(self, vm: Row) -> None:
        """Let an agent look at what came while the guest stood still; start one that it is to have since then."""
        with self._pool.db:
            process = self._processes.get(vm.ref)
            if process is not None:
                self._poke(process)
            elif vm.ref not in self._booting:
                self._start(vm)

    def _start(self, vm: Row) -> None:
        habits: AgentHabits = self._pool.guests.habits(vm)
        found = self._pool.dom0s.domain_of(vm)
        if habits.guest_agent is None or found is None:
            return
        process = Process(self._pool, vm, self._pool.clock.now())
        process.agent = _AGENTS[habits.guest_agent](habits, process, self.inside(vm))
        self._processes[vm.ref] = process
        process.enter(*found)
        process.ended_by = process.agent.reason_to_leave()
        self._watch(process)

    def _stop(self, vm_ref: str) -> None:
        process = self._processes.pop(vm_ref, None)
        if process is not None:
            process.end("stopped")

    def _entered(self, vm: Row, store: XenStore, domain: Domain) -> None:
        """Let an agent go on in the domain that took its guest over: after a migration, or a suspension."""
        process = self._processes.get(vm.ref)
        if process is not None:
            process.enter(store, domain)
            self._watch(process)

    def _watch(self, process: Process) -> None:
        if process.is_alive:
            process.watch(partial(self._poke, process))

    # -- what tests see

    def inside(self, vm: Row) -> Inside:
        """Return what agents left in a guest; the database is locked."""
        uuid = vm["uuid"]
        if uuid not in self._insides:
            self._insides[uuid] = Inside(**copy.deepcopy(self._pool.db.notes.get(f"inside/{uuid}", {})))
        return self._insides[uuid]

    def forget(self, vm: Row) -> None:
        """Forget a VM that is destroyed; the database is locked."""
        self._stop(vm.ref)
        self._booting.discard(vm.ref)
        self._met.pop(vm.ref, None)
        self._insides.pop(vm["uuid"], None)
        self._pool.db.note(f"inside/{vm['uuid']}", None)

    def describe(self, vm: Row) -> dict[str, Any]:
        """Return what the agent is and has done; the database is locked."""
        process = self._processes.get(vm.ref)
        values = self.inside(vm).values()
        is_alive = process is not None and process.is_alive and vm["power_state"] != "Halted"
        if process is not None:
            values["version"] = values["version"] or process.agent.habits.agent_version or process.agent.version
        return {"agent_is_alive": is_alive, "agent_ended_by": process.ended_by if process else ""} | values

    # -- looking

    def _poke(self, process: Process, *, anew: bool = False) -> None:
        """Plan the next look, unless one is under way, or planned (`anew`: another one instead)."""
        with self._lock:
            if process.is_looking or not process.is_alive or (process.is_planned and not anew):
                return
            process.is_planned = True
            process.plan += 1
            plan = process.plan
        self._pool.scheduler.later(self._until_poll_s(process), partial(self._look, process, plan))

    def _until_poll_s(self, process: Process) -> float:
        """Return how long it is until the agent looks again: it does so at fixed times since it started."""
        poll_s = process.agent.habits.agent_poll_s
        age_s = self._pool.clock.now() - process.started_at
        return math.ceil(age_s / poll_s) * poll_s - age_s if poll_s else 0.0

    def _look(self, process: Process, plan: int) -> None:
        """List the requests, and begin with the first; nothing happens when another plan took this one's place."""
        with self._lock:
            if plan != process.plan:
                return
            process.is_planned = False
            process.is_looking = True
        if self._runs(process):
            names = process.requests()
            process.waiting = names[:1] if process.agent.takes_one else names
        self._go_on(process)

    def _runs(self, process: Process) -> bool:
        """Tell whether the agent's guest runs now; forget the agent of one that is down."""
        with self._pool.db as db:
            vm = db.find("VM", process.vm_ref)
            if vm is None or vm["power_state"] == "Halted":
                if self._processes.get(process.vm_ref) is process:
                    self._stop(process.vm_ref)
                return False
            return process.is_alive and vm["power_state"] == "Running" and self._pool.hosts.has_domain(vm)

    def _go_on(self, process: Process) -> None:
        """Meet the requests of this look one after the other; then look again if there are others."""
        while process.is_alive and process.waiting:
            request = process.waiting.pop(0)
            answer = self._meet(process, request)
            if answer is not None and process.agent.habits.agent_work_s:
                later = partial(self._finish_later, process, request, answer)
                self._pool.scheduler.later(process.agent.habits.agent_work_s, later)
                return
            if answer is not None:
                process.finish(request, answer)
        process.waiting.clear()
        with self._lock:
            process.is_looking = False
        if process.is_alive and process.requests() and self._runs(process):
            self._poke(process)

    def _finish_later(self, process: Process, request: str, answer: str) -> None:
        if process.is_alive:
            process.finish(request, answer)
        self._go_on(process)

    # -- meeting a request

    def _meet(self, process: Process, request: str) -> str | None:
        """Do what a request says, or what happens to the agent then. Return the answer's text, if there is to be one.

        Without one the request has been dealt with, or stays where it is.
        """
        try:
            text = process.request(request)
            if text is None:
                process.agent.on_vanished()
                return None
            command = _name(text)
            accident = self._accident(process, command)
            reply = self._carry_out(process, text, command, accident)
        except Died as died:
            process.end(str(died))
            return None
        if accident is not None:
            return self._suffer(process, request, text, accident)
        if reply is None:
            process.leave(request, text)
            return None
        return reply.text()

    def _accident(self, process: Process, command: str) -> Accident | None:
        """Return what happens to the agent at this request."""
        met = self._met.setdefault(process.vm_ref, Counter())
        found = None
        for number, accident in enumerate(process.agent.habits.accidents()):
            if accident.matches(command):
                met[number] += 1
                if found is None and accident.acts_on(met[number]):
                    found = accident
        return found

    def _carry_out(self, process: Process, text: str, command: str, accident: Accident | None) -> Reply | None:
        """Let the agent do it, and keep what that left in the guest. Raises Died."""
        if accident is not None and accident.effect == "silent":
            return None
        with self._pool.db as db:
            vm = db.find("VM", process.vm_ref)
            if vm is None:
                return None
            inside = process.agent.inside
            inside.count(command)
            before = dict(inside.networks)
            try:
                does_it = accident is None or accident.when == "after"
                return process.agent.handle(text) if does_it else None
            finally:
                db.note(f"inside/{vm['uuid']}", inside.values())
                if inside.networks != before:
                    self._pool.guests.addressed(vm)

    def _suffer(self, process: Process, request: str, text: str, accident: Accident) -> str | None:
        if accident.effect == "answer":
            return accident.answer
        if accident.effect == "silent":
            process.leave(request, text)
        elif accident.effect == "die":
            process.end(f"an accident with {_name(text) or 'a request'}")
        else:
            process.take(request)
            if accident.effect == "reboot":
                process.end("the guest reboots")
                threading.Thread(target=self._reboot, args=(process.vm_ref,), name="guest-reboot", daemon=True).start()
        return None

    def _reboot(self, vm_ref: str) -> None:
        """Let a guest boot again by itself."""
        vm = self._pool.db.find("VM", vm_ref)
        if vm is not None and vm["power_state"] == "Running":
            with contextlib.suppress(Failure):
                domains.reboot(Context(self._pool, "guest", None), vm)


def _name(text: str) -> str:
    """Return the command of a request; nothing for one that is malformed."""
    try:
        return parsed(text)[0]
    except ValueError:
        return ""
