"""What a declaration says."""

from __future__ import annotations

import pytest

from tests.support.toy import first, fourth, noops, second, third, toy, undo_first, undo_second
from worker.errors import UnknownOperation
from worker.operations.catalogue import definition_of, definitions, is_declared, queue_of
from worker.operations.definition import step
from worker.operations.record import Direction

RUN, UNDO = Direction.RUN, Direction.UNDO


def test_a_declared_operation_is_known_by_name() -> None:
    assert definition_of("toy") is toy
    assert toy in definitions()
    assert is_declared("toy")
    assert not is_declared("tyo")
    with pytest.raises(UnknownOperation, match=r"No operation is called 'tyo'\. Did you mean toy\?"):
        definition_of("tyo")
    with pytest.raises(UnknownOperation, match=r"No operation is called 'zzz'\. There are: .*toy"):
        definition_of("zzz")


def test_its_tasks_are_named_after_the_functions() -> None:
    assert toy.task_name == "vmops.toy"
    assert [toy.step_task_name(RUN, position) for position in range(4)] == [
        "vmops.toy.first",
        "vmops.toy.second",
        "vmops.toy.third",
        "vmops.toy.fourth",
    ]
    assert [toy.step_task_name(UNDO, position) for position in range(2)] == [
        "vmops.toy.undo_first",
        "vmops.toy.undo_second",
    ]


def test_each_direction_has_its_body() -> None:
    assert [one.body(RUN) for one in toy.steps] == [first, second, third, fourth]
    assert [one.body(UNDO) for one in toy.steps[:2]] == [undo_first, undo_second]
    with pytest.raises(LookupError, match="step third has nothing to undo"):
        toy.steps[2].body(UNDO)


def test_undoing_goes_backwards_from_the_failed_step_and_skips_what_cannot_be_undone() -> None:
    assert toy.undo_positions(3) == [1, 0]
    assert toy.undo_positions(1) == [1, 0]
    assert toy.undo_positions(0) == [0]
    assert toy.next_undo(1) == 0
    assert toy.next_undo(0) is None
    assert noops.undo_positions(3) == []


def test_the_links_of_a_chain_begin_where_the_journal_says() -> None:
    assert list(toy.positions(RUN, 2)) == [2, 3]
    assert list(toy.positions(UNDO, 1)) == [1, 0]


def test_without_a_word_everything_may_be_undone() -> None:
    assert noops.point_of_no_return == 3
    assert toy.point_of_no_return == 2


def test_transfers_have_a_queue_of_their_own() -> None:
    @step(queue="transfers", weight=90)
    def push(op: object) -> None:
        """Move a disk."""

    assert push.__vmops_step__.queue == "transfers"  # type: ignore[attr-defined]  # the mark that `step` leaves
    assert toy.queue(0, "lab") == queue_of("toy", 0, "lab") == "vmops.steps.lab"
    assert queue_of("toy", -1, "lab") == queue_of("tyo", 0, "lab") == "vmops.control"
