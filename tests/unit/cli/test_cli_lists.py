"""The tables in terminals of every width."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from worker.cli import catalogue
from worker.cli.lists import OperationsList, catalogue_table, operation_details
from worker.operations.record import Record
from worker.operations.states import State

ID = "3be93abc-79f6-4c78-960a-035de3d923be"
FAILED = Record(
    id=ID,
    name="migrate_disk_and_power_off",
    pool="lab",
    request={"instance": {"name": "web01"}},
    label="web01",
    state=State.FAILED,
    step="look_at_both",
    created_at=1_790_000_000_000,
    times={"look_at_both": [1_790_000_000_000, 1_790_000_001_000]},
    error={"step": "look_at_both", "message": "Pool 'lab' is away.", "code": "PoolUnreachable"},
)


def drawn(what: object, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(what)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 149, 150, 200])
def test_an_operation_is_read_at_any_width(width: int) -> None:
    told = drawn(OperationsList([FAILED, FAILED]), width)
    for whole in (ID, FAILED.name, "web01", " failed ", " 0 %  "):
        assert told.count(whole) == 2, whole
    assert "Pool 'lab' is away." in " ".join(told.split())
    assert len(told.splitlines()) <= (8 if width >= 150 else 4)


def test_an_operation_in_full_breaks_no_name_at_80_columns() -> None:
    catalogue.load()
    definition = catalogue.find_definition(FAILED.name)
    told = drawn(operation_details(FAILED, definition, 0), 80)
    for step in definition.steps:
        assert f" {step.name} " in told


def test_a_result_is_never_cut_off() -> None:
    digest = "0123456789abcdef" * 8
    told = drawn(operation_details(replace(FAILED, result={"sha512": digest}), None, 0), 80)
    assert digest in "".join(told.split())


def test_the_catalogue_breaks_no_name_at_80_columns() -> None:
    entries = catalogue.entries()
    told = drawn(catalogue_table(entries), 80)
    for entry in entries:
        assert (f" {entry.task} " in told) == (entry.kind in {"operation", "query", "periodic"})
