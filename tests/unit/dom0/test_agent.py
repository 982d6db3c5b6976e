"""vmops-agent: asked once, answered whatever the agent does, and nothing left behind that could kill it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from vmops_lib import agent
from vmops_lib.arguments import Arguments
from vmops_lib.failures import BadArgument, Busy, Failure, Rebooted, TimedOut, TooLarge

from simulator.dom0.nodes import XenStoreError
from simulator.dom0.tree import Domain
from tests.support.dom0 import OTHER_VM_UUID, VM_UUID, Host

PATIENCE_S = 30
DOMIDS = iter(range(100, 10_000))
QUESTION = json.dumps({"name": "version", "value": "agent"})
ANSWER = json.dumps({"returncode": "0", "message": "2.1.22"})


class Guest:
    """A domain, and an agent in it that does what a test wants."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.store = host.store
        self.domain: Domain = host.begin(next(DOMIDS))
        self.request_id = str(uuid4())

    def path(self, kind: str, request_id: str = "") -> str:
        return f"{self.domain.path}/{kind}/{request_id or self.request_id}"

    def has(self, kind: str) -> bool:
        return self.store.exists(self.path(kind))

    def args(self, **more: str) -> Arguments:
        return Arguments({"dom_id": str(self.domain.domid), "vm_uuid": VM_UUID, **more})

    def call(self, *, request_id: str = "", payload: str = QUESTION, timeout: int = 20) -> str:
        """Ask; return the answer."""
        args = self.args(request_id=request_id or self.request_id, payload=payload, timeout=str(timeout))
        return agent.call(args)["response"]

    def answer(self, text: str = ANSWER, request_id: str = "") -> None:
        """Do as agents do: take the question away, then answer."""
        self.take(request_id)
        self.store.update({self.path("data/guest", request_id): text})

    def take(self, request_id: str = "") -> None:
        wait_for(lambda: self.store.exists(self.path("data/host", request_id)))
        self.store.update({self.path("data/host", request_id): None})

    def left(self) -> list[str]:
        """Return what is left of exchanges."""
        kinds = ("data/host", "data/guest", "vmops")
        return [kind for kind in kinds if self._names(f"{self.domain.path}/{kind}")]

    def _names(self, path: str) -> list[str]:
        try:
            return list(self.store.directory(path))
        except XenStoreError:
            return []


@pytest.fixture
def guest(inside: Host) -> Guest:
    return Guest(inside)


def wait_for(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def meanwhile(work: Callable[..., Any], *args: Any) -> Iterator[None]:
    """Do something in another thread."""
    thread = threading.Thread(target=work, args=args)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE_S)


def test_the_answer_comes_as_it_is_and_the_question_is_gone(guest: Guest) -> None:
    with meanwhile(guest.answer):
        assert guest.call() == ANSWER
    assert not guest.has("data/host")


def test_an_agent_that_answers_before_it_takes_the_question_away_is_understood(guest: Guest) -> None:
    def answer_first() -> None:
        wait_for(lambda: guest.has("data/host"))
        guest.store.update({guest.path("data/guest"): ANSWER})

    with meanwhile(answer_first):
        assert guest.call() == ANSWER
    assert not guest.has("data/host")


def test_a_repeated_call_finds_the_answer_and_asks_nothing(guest: Guest) -> None:
    with meanwhile(guest.answer):
        guest.call()
    assert guest.call() == ANSWER
    assert not guest.has("data/host")
    assert agent.cancel(guest.args(request_id=guest.request_id)) == {"removed": True}
    assert agent.cancel(guest.args(request_id=guest.request_id)) == {"removed": False}
    assert guest.left() == []


def test_a_question_that_nobody_took_is_withdrawn_and_may_be_asked_again(guest: Guest) -> None:
    with pytest.raises(TimedOut, match="did not look at the question within 1 s"):
        guest.call(timeout=1)
    assert guest.left() == []
    with meanwhile(guest.answer):
        assert guest.call() == ANSWER


def test_a_question_that_was_taken_is_not_asked_twice_and_its_late_answer_found(guest: Guest) -> None:
    with meanwhile(guest.take), pytest.raises(TimedOut, match="took the question and did not answer within 1 s"):
        guest.call(timeout=1)
    with pytest.raises(TimedOut):
        guest.call(timeout=1)
    assert not guest.has("data/host")
    guest.store.update({guest.path("data/guest"): ANSWER})
    assert guest.call(timeout=1) == ANSWER


def test_a_domain_that_ends_ends_the_wait(guest: Guest) -> None:
    def end() -> None:
        wait_for(lambda: guest.has("data/host"))
        guest.host.end(guest.domain)

    with meanwhile(end), pytest.raises(Rebooted, match=r"Domain \d+ is gone"):
        guest.call()


def test_a_domain_of_another_vm_is_not_spoken_to(guest: Guest) -> None:
    args = {"dom_id": str(guest.domain.domid), "vm_uuid": OTHER_VM_UUID, "request_id": guest.request_id}
    with pytest.raises(Rebooted, match="belongs to another VM"):
        agent.call(Arguments({**args, "payload": QUESTION}))
    assert guest.left() == []


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "no json",
        "[]",
        '{"name": "version"}',
        '{"name": 1, "value": ""}',
        '{"name": "keyinit", "value": 5}',
        '{"name": "version", "value": "", "more": ""}',
        '{"name": "version", "value": "\u00e9"}',
        '{"name": "version", "value": "\n"}',
    ],
)
def test_what_would_kill_an_agent_is_never_written(guest: Guest, payload: str) -> None:
    with pytest.raises(BadArgument, match="payload"):
        guest.call(payload=payload)
    assert guest.left() == []


def test_a_question_that_does_not_fit_is_refused_before_it_is_written(guest: Guest) -> None:
    room = 4096 - len(guest.path("data/host")) - 1
    frame = len(json.dumps({"name": "injectfile", "value": ""}))
    fitting = json.dumps({"name": "injectfile", "value": "x" * (room - frame)})
    with pytest.raises(TooLarge, match="1 more than XenStore takes"):
        guest.call(payload=fitting.replace("xx", "xxx", 1))
    assert guest.left() == []
    with meanwhile(guest.answer):
        assert guest.call(payload=fitting) == ANSWER


@pytest.mark.parametrize("answer", ['"quotes" \\ back', "\x00\x1b[2J", "\u00e4\u20ac", "[" * 3000])
def test_whatever_the_guest_writes_comes_back(guest: Guest, answer: str) -> None:
    with meanwhile(guest.answer, answer):
        assert guest.call() == answer


def test_an_answer_that_is_no_text_harms_nobody(guest: Guest) -> None:
    def answer() -> None:
        guest.take()
        guest.store.write(guest.path("data/guest"), b"\xff\xfe")

    with meanwhile(answer):
        assert guest.call() == "\ufffd\ufffd"


def test_a_second_exchange_with_the_same_guest_has_to_wait(guest: Guest) -> None:
    errors: list[Failure] = []

    def second() -> None:
        wait_for(lambda: guest.has("data/host"))
        try:
            guest.call(request_id=str(uuid4()), timeout=1)
        except Failure as failure:
            errors.append(failure)
        guest.answer()

    with meanwhile(second):
        assert guest.call() == ANSWER
    assert [type(error) for error in errors] == [Busy]


def test_a_question_of_a_killed_plugin_is_waited_for_and_not_asked_again(guest: Guest) -> None:
    guest.store.update({guest.path("data/host"): QUESTION, guest.path("vmops"): str(int(time.time()))})
    with meanwhile(guest.answer, "the first answer"):
        assert guest.call() == "the first answer"


def test_old_exchanges_are_swept_by_the_next_call_and_all_by_sweep(guest: Guest) -> None:
    old, new, others = str(uuid4()), str(uuid4()), str(uuid4())
    now = int(time.time())
    for request_id, asked in ((old, now - agent.SWEEP_S), (new, now)):
        guest.store.update({guest.path("vmops", request_id): str(asked), guest.path("data/guest", request_id): ANSWER})
    guest.store.update({guest.path("data/host", others): "poison"})
    with meanwhile(guest.answer):
        guest.call()
    assert not guest.store.exists(guest.path("data/guest", old))
    assert guest.store.exists(guest.path("data/guest", new))
    assert agent.sweep(guest.args(older_than="300")) == {"removed": 1}  # what others left has no age
    assert not guest.store.exists(guest.path("data/host", others))
    assert agent.sweep(guest.args()) == {"removed": 2}
    assert guest.left() == []


def test_an_interrupted_call_withdraws_its_question(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the alarm of the dispatcher interrupts: by an exception, wherever the call is."""

    def interrupt(*_: object) -> bytes:
        raise TimedOut("alarm")

    monkeypatch.setattr(agent, "_await", interrupt)
    with pytest.raises(TimedOut, match="alarm"):
        guest.call()
    assert guest.left() == []
