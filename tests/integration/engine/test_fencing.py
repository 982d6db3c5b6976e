"""A worker that stood still beyond its lease must not act any more when it goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.engine import Toys
from tests.support.worker import eventually
from worker.cli.embedded import ManagedProcess

pytestmark = pytest.mark.slow

STEPS = {"first": 1, "second": 1, "third": 1, "fourth": 1}


@contextmanager
def stopped(process: ManagedProcess) -> Iterator[None]:
    """Let a worker with all its processes stand still."""
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGCONT)


def test_a_frozen_worker_makes_no_effect_after_another_has_finished_its_operation(own_toys: Toys) -> None:
    frozen = own_toys.deployment.worker("frozen")
    handle = own_toys.submit(freeze_at="second")
    own_toys.await_frozen(handle)
    with stopped(frozen):
        own_toys.deployment.worker("other")
        own_toys.deployment.beat()
        handle.wait(30)
        history = list(handle.events())
        own_toys.thaw(handle)
    eventually(lambda: f"second of {handle.id} gave up: the execution lease" in own_toys.deployment.log("frozen"))
    assert own_toys.made(handle) == STEPS
    assert own_toys.calls(handle)["second"] == 2, "the frozen worker had begun it, the other one has done it"
    assert list(handle.events()) == history, "the frozen worker has written nothing"


def test_a_worker_that_does_not_notice_its_lease_is_refused_by_the_journal(own_toys: Toys) -> None:
    """The step looks at no clock: the write that would end it is what holds it."""
    frozen = own_toys.deployment.worker("frozen")
    handle = own_toys.client.submit("careless", {"key": "careless"})
    own_toys.await_frozen(handle)
    with stopped(frozen):
        own_toys.deployment.worker("other")
        own_toys.deployment.beat()
        handle.wait(30)
        record = handle.record()
        history = list(handle.events())
        own_toys.thaw(handle)
    eventually(lambda: own_toys.calls(handle).get("ended") == 2)
    eventually(lambda: own_toys.deployment.log("frozen").count("vmops.careless.careless_step") >= 2)
    assert list(handle.events()) == history
    assert handle.record() == record
    eventually(lambda: own_toys.leftovers() == {})
