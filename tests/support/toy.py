"""Operations without a pool: their effects are counted in a Redis that no fault touches. A module for `celery -I`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any, Literal

import redis

from worker.errors import PermanentError, PoolUnreachable, XenAPIFailure
from worker.operations.definition import operation, step
from worker.operations.op import Op
from worker.operations.query import query
from worker.operations.request import Request, Secret
from worker.operations.wait import Redo, Until, Wait

#: KEYS: effects, made. ARGV: operation and step, step, who. Whoever is first has taken effect.
_MAKE = """
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[3]) == 0 then return 0 end
return redis.call('HINCRBY', KEYS[2], ARGV[2], 1)
"""

#: KEYS: effects, undone. ARGV: operation and step, step.
_TAKE_BACK = """
if redis.call('HDEL', KEYS[1], ARGV[1]) == 1 then redis.call('RPUSH', KEYS[2], ARGV[2]) end
"""


class ToyRequest(Request):
    """What the toys are told to do. A `_at` names a step: first, second, third or fourth."""

    key: str = "toy"
    vm: str | None = None
    on_conflict: Literal["wait", "fail"] = "wait"
    fail_at: str = ""
    xapi_error: str = ""
    """The step that fails does so with this XAPI code."""
    transient_failures: int = 0
    """Failures of `second` that are worth another try; -1: for ever."""
    kill_at: str = ""
    kills: int = 0
    """How often the process kills itself in the step `kill_at`."""
    freeze_at: str = ""
    """In this step the process stands still until the test lets it go on: `Toys.thaw`."""
    sleep_s: float = 0.0
    wait_s: float = 0.0
    wait_deadline_s: float = 60.0
    redos: int = 0
    undo_fails: str = ""
    """The undo that fails until `repair` was called: first or second."""
    undo_transient_failures: int = 0
    password: Secret | None = None


def ledger() -> redis.Redis:
    """Return where the effects are."""
    return redis.Redis.from_url(os.environ["VMOPS_TEST_EFFECTS"], decode_responses=True)


def _effect(op: Op, name: str) -> None:
    """Do something once, as a step does: find it by its mark, otherwise make it."""
    request = op.request(ToyRequest)
    with ledger() as store:
        store.hincrby(f"calls:{request.key}", name, 1)
        if request.freeze_at == name and store.incr(f"frozen:{request.key}") == 1:
            store.blpop([f"thaw:{request.key}"], 60)
        op.guard()
        store.eval(_MAKE, 2, f"effects:{request.key}", f"made:{request.key}", f"{op.id}:{name}", name, str(os.getpid()))
        if request.kill_at == name and store.incr(f"kills:{request.key}") <= request.kills:
            os.kill(os.getpid(), signal.SIGKILL)
    if request.sleep_s:
        _work(op, request.sleep_s)
    if request.fail_at == name:
        if request.xapi_error:
            raise XenAPIFailure([request.xapi_error, "a parameter"], call="Toy.fail")
        raise PermanentError(f"{name} was told to fail")


def _work(op: Op, duration_s: float) -> None:
    begun_s = time.monotonic()
    while (elapsed_s := time.monotonic() - begun_s) < duration_s:
        time.sleep(0.02)
        op.check()
        op.progress(elapsed_s / duration_s)


def _undo(op: Op, name: str) -> None:
    request = op.request(ToyRequest)
    with ledger() as store:
        store.hincrby(f"calls:{request.key}", f"undo_{name}", 1)
        if request.undo_fails == name and not store.exists(f"repaired:{request.key}"):
            raise PermanentError(f"the undo of {name} was told to fail")
        if store.incr(f"undo-failures:{request.key}") <= request.undo_transient_failures:
            raise PoolUnreachable("the undo is to be tried again")
        op.guard()
        store.eval(_TAKE_BACK, 2, f"effects:{request.key}", f"undone:{request.key}", f"{op.id}:{name}", name)


def undo_first(op: Op) -> None:
    """Take `first` back."""
    _undo(op, "first")


@step(undo=undo_first)
def first(op: Op) -> None:
    """Hold the VM, then take effect."""
    request = op.request(ToyRequest)
    if request.vm:
        op.hold(f"vm:{request.vm}", queue=request.on_conflict == "wait")
    _effect(op, "first")


def undo_second(op: Op) -> None:
    """Take `second` back."""
    _undo(op, "second")


@step(undo=undo_second, weight=8)
def second(op: Op) -> None:
    """Take effect after failing, or waiting, as often as told."""
    request = op.request(ToyRequest)
    failures = op.record.failures
    if request.transient_failures < 0 or failures < request.transient_failures:
        raise PoolUnreachable(f"failure {failures + 1}")
    if request.wait_s and op.waited_s < request.wait_s:
        raise Wait("time to pass", check_every_s=request.wait_s, deadline_s=request.wait_deadline_s)
    secret = op.secret("password")
    if secret is not None:
        op.remember(secret_length=len(secret()))
    _effect(op, "second")


@step
def third(op: Op) -> None:
    """Take effect; go back to `second` as often as told."""
    request = op.request(ToyRequest)
    if op.data.get("redone", 0) < request.redos:
        op.remember(redone=op.data.get("redone", 0) + 1)
        raise Redo("second", "the work of second has vanished")
    _effect(op, "third")


@step
def fourth(op: Op) -> None:
    """Take effect and say the result. The operation cannot be undone any more."""
    _effect(op, "fourth")
    op.set_result(key=op.request(ToyRequest).key, secret_length=op.data.get("secret_length", 0))


toy = operation("toy", ToyRequest, first, second, third, fourth, point_of_no_return=third)


@step
def careless_step(op: Op) -> None:
    """Stand still once, and look at no clock afterwards."""
    key = op.request(ToyRequest).key
    with ledger() as store:
        if store.incr(f"frozen:{key}") == 1:
            store.blpop([f"thaw:{key}"], 60)
        store.hincrby(f"calls:{key}", "ended", 1)


careless = operation("careless", ToyRequest, careless_step)


class WatchRequest(Request):
    """A wait for an object of the pool."""

    ref: str = "OpaqueRef:none"
    cls: str = "task"
    check_every_s: float = 600.0
    look_s: float = 0.0
    is_held: bool = False
    """Behind its look the step stands still until the test lets it go on."""


@step
def watched(op: Op) -> None:
    """Wait until the watcher has seen a change; the second run ends it."""
    request = op.request(WatchRequest)
    if not op.data.get("seen"):
        op.remember(seen=True)
        time.sleep(request.look_s)
        if request.is_held:
            with ledger() as store:
                store.set(f"held:{op.id}", 1)
                store.blpop([f"go-on:{op.id}"], 60)
        raise Wait(
            "a change in the pool",
            until=[Until(request.cls, request.ref, "status", ["pending"])],
            check_every_s=request.check_every_s,
            deadline_s=3600,
        )
    op.set_result(woken_at=time.time())


watch = operation("watch_toy", WatchRequest, watched)


def _noop(number: int) -> Callable[..., Any]:
    def body(op: Op) -> None:
        """Do nothing."""

    body.__name__ = f"noop_{number}"
    return step(body)


noops = operation("noops", Request, *(_noop(number) for number in range(4)))


class LookRequest(Request):
    """What a query of the toys is told to do."""

    key: str = "toy"
    failures: int = 0
    """How often it fails in a way that is worth another try."""
    xapi_error: str = ""
    """It fails for good with this XAPI code."""
    secret: str = ""


@query("toy_look", LookRequest)
def toy_look(request: LookRequest) -> dict[str, Any]:
    """Tell how often one has looked."""
    with ledger() as store:
        looks = store.hincrby(f"calls:{request.key}", "look", 1)
    if request.xapi_error:
        raise XenAPIFailure([request.xapi_error, "a parameter"], call="Toy.look")
    if looks <= request.failures:
        raise PoolUnreachable(f"failure {looks}")
    return {"looks": looks}


@query("toy_secret", LookRequest, is_secret=True)
def toy_secret(request: LookRequest) -> dict[str, Any]:
    """Answer what nobody else may see."""
    return {"secret": request.secret[::-1]}
