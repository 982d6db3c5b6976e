"""A step's conversation with the agent inside a guest (dom0-and-guest.md 6). A silent agent holds no worker.

    talk = Talk.with_guest(op, pool, settings)
    talk.require("resetnetwork")
    talk.expect("network", agent.reset_network(), settings.agent_resetnetwork_timeout_s)

Each question is one call of the plugin in dom0 which ends when the agent has answered, or its time is over. The step
parks on that call's task; the answers it has had are in the journal, so its next run, on whatever worker, goes on where
it was. Ids of questions are made of the operation, so that a question which was asked already is not asked twice.

A guest that reboots in between gets a new domain: it is waited for and then asked what it can do anew, and what was
done is not done again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Self
from uuid import NAMESPACE_OID, uuid5

from tasks.parts.instances import acting, take_fresh
from worker.errors import (
    AgentError,
    AgentNotImplemented,
    AgentTimeout,
    GuestRebooted,
    GuestUnable,
    PluginTimeout,
    WrongPowerState,
)
from worker.guest import agent
from worker.guest.agent import Answer, Question
from worker.guest.dh import SimpleDH
from worker.guest.live import Domain
from worker.operations.op import Op
from worker.operations.wait import Until, Wait
from worker.settings import Settings
from worker.xenapi import plugin, vm_guest, vm_power, xapi_task
from worker.xenapi.session import Session
from worker.xenapi.vm import Found
from worker.xenapi.xapi_task import Outcome

PLUGIN = "vmops-agent"
#: What an agent forgets when it is started anew.
_OF_ONE_BOOT = ("version", "features", "keyinit")
#: The plugin ends by itself; XAPI and dom0 may add so much to its time, and then nobody waits for it any longer.
_OVERTIME_S = 60.0
_CHECK_S = 60.0
#: Between two looks for an agent that answers, but not yet as it should.
_AGAIN_S = 5.0
_SOON_S = 0.2
_FOREVER_S = 7 * 86400.0
_KEY_BYTES = 10
_EXCHANGES = 2


class Talk:
    """One step's conversation; see the module."""

    def __init__(self, op: Op, pool: Session, settings: Settings, wait_s: int | None = None) -> None:
        """Go on with the conversation that the step has begun; `wait_s` for each answer instead of the settings'."""
        self._op = op
        self._pool = pool
        self._settings = settings
        self._wait_s = wait_s or settings.agent_timeout_s
        self._network_wait_s = wait_s or settings.agent_resetnetwork_timeout_s
        self._state: dict[str, Any] = op.data["talk"]

    @classmethod
    def with_guest(
        cls, op: Op, pool: Session, settings: Settings, wait_s: int | None = None
    ) -> tuple[Self, Found | None]:
        """Talk to the guest of the request's VM, of an instance in rescue to the rescue VM's.

        Returns the VM too when the conversation begins only now. Raises as `take`, WrongPowerState.
        """
        found = None
        if "talk" not in op.data:
            found = acting(pool, take_fresh(op, pool))
            _begin(op, found)
        return cls(op, pool, settings, wait_s), found

    @classmethod
    def with_new_vm(cls, op: Op, pool: Session, settings: Settings) -> Self:
        """Talk to the guest of the VM that the operation has made. Raises WrongPowerState."""
        if "talk" not in op.data:
            vm_ref = op.data["vm"]["ref"]
            _begin(op, Found(vm_ref, vm_power.get(pool, vm_ref)))
        return cls(op, pool, settings)

    @property
    def vm_uuid(self) -> str:
        """XAPI's uuid of the VM."""
        return str(self._state["domain"]["vm_uuid"])

    @property
    def title(self) -> str:
        """How messages call the VM."""
        return f"VM {self._state['name']!r}"

    def is_windows(self) -> bool:
        """Tell whether the guest reports a Windows; it is asked once."""
        if "is_windows" not in self._state:
            rec = vm_power.get(self._pool, self._state["vm_ref"])
            self._state["is_windows"] = vm_guest.is_windows(self._pool, rec)
            self._save()
        return bool(self._state["is_windows"])

    # -- questions

    def ask(self, label: str, question: Question, wait_s: int, patience_s: float = 0.0) -> Answer:
        """Ask once, and return the answer, also that of an earlier run; `label` tells the step's questions apart.

        A question that gets no answer within `wait_s` is asked again until `patience_s` are over. Raises Wait,
        AgentTimeout, AgentError for what is no answer, TooLarge before anything is sent, and as plugins do.
        """
        while label not in self._state["heard"]:
            asked = self._state["asked"].setdefault(label, {"task": None, "try": 0, "since_s": self._op.waited_s})
            if asked["task"] is None:
                if self._op.record.failures:
                    self._turn_if_moved()
                asked["task"] = self._begin_call(label, question, wait_s)
                self._save()
                raise self._waiting(question, asked)
            outcome = xapi_task.look(self._pool, asked["task"])
            spent_s = self._op.waited_s - asked["since_s"]
            if not outcome.is_final:
                if spent_s > max(wait_s, patience_s) + _OVERTIME_S:
                    raise self._silent(question, spent_s)
                raise self._waiting(question, asked)
            try:
                self._hear(label, question, outcome)
            except GuestRebooted:
                self._follow()
            except PluginTimeout as error:
                if spent_s >= patience_s:
                    raise self._silent(question, max(wait_s, spent_s)) from error
                asked["try"] += 1
                self._sweep(wait_s)
        return Answer(*self._state["heard"][label])

    def expect(self, label: str, question: Question, wait_s: int) -> Answer:
        """As `ask`, for an answer that means success. Raises AgentError for another one."""
        answer = self.ask(label, question, wait_s)
        if answer.code not in question.success:
            said = f"code {answer.code}" if question.is_secret else agent.shown(answer)
            raise AgentError(f"The agent of {self.title} did not do what it was asked for ({question.name}): {said}.")
        return answer

    def has_done(self, label: str, success: Collection[str] = agent.SUCCESS) -> bool:
        """Tell whether a question had this answer before, in this boot of the guest or an earlier one."""
        return label in self._state["heard"] and self._state["heard"][label][0] in success

    def version(self, patience_s: float) -> str:
        """Return the agent's version; it may take its time to come up. Raises Wait, AgentTimeout."""
        question = agent.version()
        answer = self.ask("version", question, self._wait_s, patience_s)
        if answer.code in question.success:
            return agent.printable(answer.message)
        since_s = self._state.setdefault("version_since_s", self._op.waited_s)
        if self._op.waited_s - since_s >= patience_s:
            raise AgentError(f"The agent of {self.title} does not tell its version: {agent.shown(answer)}.")
        self._forget("version")
        self._state["round"] += 1
        self._save()
        raise Wait(f"the agent of {self.title} is not ready", check_every_s=_AGAIN_S, deadline_s=_FOREVER_S)

    def features(self) -> frozenset[str] | None:
        """Return what the agent offers; None for one that does not know the question. Raises as `ask`."""
        patience_s = self._settings.agent_version_timeout_s if self._state["boots"] else 0.0
        answer = self.ask("features", agent.features(), self._wait_s, patience_s)
        return agent.read_features(answer)

    def require(self, *names: str) -> frozenset[str] | None:
        """Return what the agent offers. Raises AgentNotImplemented unless all the names are among it.

        Agents answer "0" to what they do not know: so nothing is sent that they do not offer.
        """
        offered = self.features()
        missing = [] if offered is None else [name for name in names if name not in offered]
        if offered is not None and missing:
            offers = agent.printable(", ".join(sorted(offered))) or "nothing"
            raise AgentNotImplemented(
                f"The agent of {self.title} does not offer {' and '.join(missing)} (it offers {offers}): update it, or "
                "use a config drive."
            )
        return offered

    # -- what several operations ask for

    def set_password(self, new_password: str, *, is_windows: bool | None) -> None:
        """Set the administrator's password.

        Agents have one key at a time, for one password: whatever goes wrong, it begins anew with the key exchange. The
        private key is nowhere but in the worker that needs it: any worker computes the same one. Raises as `expect`,
        AgentNotImplemented, RequestError for a password that the guest cannot set.
        """
        if self.has_done("password"):
            return
        agent.check_password(new_password, is_windows=self.is_windows() if is_windows is None else is_windows)
        self.require("keyinit", "password")
        while True:
            exchange = self._state.setdefault("exchange", 0)
            private = self._op.derive(f"agent key {self._state['boots']} {exchange}")
            dh = SimpleDH(int.from_bytes(private[:_KEY_BYTES]) or 1)
            try:
                keys = self.expect("keyinit", agent.key_init(dh), self._wait_s)
                dh.compute_shared(agent.read_public(keys))
                self.expect("password", agent.password(dh, new_password), self._wait_s)
            except (AgentError, AgentTimeout):
                self._forget("keyinit", "password")
                self._state["exchange"] = exchange + 1
                self._save()
                if exchange + 1 == _EXCHANGES:
                    raise
            else:
                return

    def write_file(self, label: str, path: str, contents: bytes) -> None:
        """Write a file in the guest. Raises as `expect`, AgentNotImplemented, RequestError, TooLarge."""
        if self.has_done(label):
            return
        offered = self.features()
        if offered is not None and not offered.intersection(agent.FILE_FEATURES):
            self.require(agent.FILE_FEATURES[-1])
        self.expect(label, agent.inject_file(path, contents, offered), self._wait_s)

    def set_up_network(self) -> Answer:
        """Let the agent set the network up as vm-data/networking says. Raises as `expect`, AgentNotImplemented."""
        question = agent.reset_network()
        if not self.has_done("network", question.success):
            self.require(question.name)
        return self.expect("network", question, self._network_wait_s)

    def update(self, url: str, md5sum: str) -> Answer:
        """Let the agent replace itself; it may be silent for a while then. Raises as `expect`, AgentNotImplemented."""
        question = agent.update(url, md5sum)
        if not self.has_done("update"):
            self.require(question.name)
        return self.expect("update", question, self._wait_s)

    # -- behind it

    def _begin_call(self, label: str, question: Question, wait_s: int) -> str:
        state, op = self._state, self._op
        tries = (state["boots"], state["round"], state.get("exchange", 0), state["asked"][label]["try"])
        domain = Domain(**state["domain"])
        arguments = {
            **domain.arguments,
            "request_id": str(uuid5(NAMESPACE_OID, f"{op.id} {op.record.step} {label} {tries}")),
            "payload": question.payload(),
            "timeout": str(wait_s),
        }
        with plugin.explained(self._pool, domain.host_ref, PLUGIN):
            return plugin.begin(self._pool, domain.host_ref, PLUGIN, "call", arguments)

    def _waiting(self, question: Question, asked: dict[str, Any]) -> Wait:
        return Wait(
            f"the agent of {self.title} has not answered ({question.name})",
            until=[Until("task", asked["task"], "status", ["pending"])],
            check_every_s=_CHECK_S,
            deadline_s=_FOREVER_S,
        )

    def _silent(self, question: Question, spent_s: float) -> AgentTimeout:
        return AgentTimeout(
            f"The agent of {self.title} did not answer within {spent_s:.0f} s ({question.name}): is it installed in "
            "the guest, and running?"
        )

    def _hear(self, label: str, question: Question, outcome: Outcome) -> None:
        """Note what came of a call that has ended. Raises as `plugin.result` and `agent.read`."""
        asked = self._state["asked"][label]
        if outcome.status != "vanished":
            xapi_task.finish(self._pool, asked["task"])
        asked["task"] = None
        self._save()
        said = plugin.result(self._pool, self._state["domain"]["host_ref"], PLUGIN, outcome)
        answer = agent.read(str(said["response"]))
        self._state["heard"][label] = [answer.code, "" if question.is_secret else answer.message]
        self._save()

    def _sweep(self, older_s: int) -> None:
        """Remove old questions, also those of others: some agents die of a malformed one at each of their starts."""
        self._save()
        domain = Domain(**self._state["domain"])
        plugin.call(self._pool, domain.host_ref, PLUGIN, "sweep", {**domain.arguments, "older_than": str(2 * older_s)})

    def _turn_if_moved(self) -> None:
        """Turn to the VM's domain when that is another one by now: the step begins anew there. Raises Wait."""
        state = self._state
        rec = vm_power.get(self._pool, state["vm_ref"])
        domain = _domain_of(rec)
        if rec["power_state"] != "Running" or domain == state["domain"]:
            return
        self._op.note(f"the guest was rebooted or moved: domain {state['domain']['domid']} became {domain['domid']}")
        self._forget(*_OF_ONE_BOOT)
        state.pop("gone_s", None)
        state["asked"] = {}
        state["domain"] = domain
        state["boots"] += 1
        self._save()
        raise Wait(f"{self.title} has a new domain", check_every_s=_SOON_S, deadline_s=_FOREVER_S)

    def _follow(self) -> None:
        """Wait for the domain that the VM has instead of its old one. Raises Wait, GuestUnable when there is none."""
        state = self._state
        gone_s = state.setdefault("gone_s", self._op.waited_s)
        self._turn_if_moved()
        limit_s = self._settings.agent_version_timeout_s
        left_s = limit_s - (self._op.waited_s - gone_s)
        if left_s <= 0:
            raise GuestUnable(
                f"{self.title} left its domain while its agent was asked, and has no new one after {limit_s:g} s: look "
                "at its power state."
            )
        self._save()
        raise Wait(
            f"{self.title} has no new domain",
            until=[Until("vm", state["vm_ref"], "domid", ["-1", state["domain"]["domid"]])],
            check_every_s=min(_CHECK_S, left_s),
            deadline_s=_FOREVER_S,
        )

    def _forget(self, *labels: str) -> None:
        for label in labels:
            self._state["heard"].pop(label, None)
            self._state["asked"].pop(label, None)

    def _save(self) -> None:
        self._op.remember(talk=self._state)


def _begin(op: Op, found: Found) -> None:
    rec = found.rec
    if rec["power_state"] != "Running":
        state = str(rec["power_state"]).lower()
        raise WrongPowerState(f"VM {rec['name_label']!r} is {state}: its agent answers only while it runs.")
    op.remember(
        talk={
            "vm_ref": found.ref,
            "name": rec["name_label"],
            "domain": _domain_of(rec),
            "boots": 0,
            "round": 0,
            "heard": {},
            "asked": {},
        }
    )


def _domain_of(rec: dict[str, Any]) -> dict[str, str]:
    domain = Domain.of(rec)
    return {"host_ref": domain.host_ref, "domid": domain.domid, "vm_uuid": domain.vm_uuid}
