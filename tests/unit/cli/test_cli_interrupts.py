"""A signal raises once, and never inside a held block: nothing that was started is forgotten."""

from __future__ import annotations

import os
import signal

import pytest

from worker.cli.interrupts import KINDS, Interrupted, Interrupts


def send(kind: int) -> None:
    os.kill(os.getpid(), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_signal_raises_with_its_status(kind: signal.Signals) -> None:
    with Interrupts(), pytest.raises(Interrupted) as caught:
        send(kind)
    assert caught.value.status == 128 + kind


def test_only_the_first_signal_raises_so_that_cleaning_up_is_not_interrupted() -> None:
    with Interrupts():
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)
        send(signal.SIGINT)
        send(signal.SIGTERM)


def test_a_signal_in_a_held_block_raises_at_its_end() -> None:
    done = []
    with Interrupts() as interrupts, pytest.raises(Interrupted):  # noqa: PT012 - the block's order is what is tested
        with interrupts.held():
            send(signal.SIGINT)
            done.append("inside")
        done.append("behind")
    assert done == ["inside"]


def test_the_error_of_a_held_block_comes_before_a_signal() -> None:
    with Interrupts() as interrupts, pytest.raises(KeyError), interrupts.held():  # noqa: PT012 - as above
        send(signal.SIGINT)
        raise KeyError


def test_the_handlers_of_before_are_back_afterwards() -> None:
    before = [signal.getsignal(kind) for kind in KINDS]
    with Interrupts():
        assert [signal.getsignal(kind) for kind in KINDS] != before
    assert [signal.getsignal(kind) for kind in KINDS] == before
