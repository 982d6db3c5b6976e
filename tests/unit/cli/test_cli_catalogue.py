"""The catalogue says what the workers do: it is read from the code that they run."""

from __future__ import annotations

import inspect
import json
import shlex
from dataclasses import replace

import pytest
from celery import Celery

from worker.app import make_app
from worker.cli import catalogue
from worker.cli.arguments import request_of
from worker.errors import UnknownOperation
from worker.members import SECRET_FIELDS
from worker.operations.catalogue import Definition, definition_of
from worker.operations.query import query_of
from worker.operations.record import Record
from worker.operations.request import check, secret_fields
from worker.settings import Settings


@pytest.fixture(scope="module")
def entries() -> dict[str, catalogue.Entry]:
    return {entry.task: entry for entry in catalogue.entries()}


@pytest.fixture(scope="module")
def app() -> Celery:
    made = make_app(Settings(pools={}))
    made.loader.import_default_modules()
    made.finalize()
    return made


def operations(entries: dict[str, catalogue.Entry]) -> list[catalogue.Entry]:
    """Return the operations of the product; other tests of this process may have declared toys."""
    found = [entry for entry in entries.values() if entry.kind == "operation"]
    return [entry for entry in found if is_ours(definition_of(entry.task.removeprefix("vmops.")))]


def is_ours(definition: Definition) -> bool:
    return definition.steps[0].run.__module__.startswith("tasks.")


def test_every_task_that_a_worker_has_is_listed_once_and_no_other(
    entries: dict[str, catalogue.Entry], app: Celery
) -> None:
    assert len(catalogue.entries()) == len(entries)
    assert set(entries) == {name for name in app.tasks if name.startswith("vmops.")}
    assert "vmops.snapshot" in entries


def test_clients_know_what_is_secret(entries: dict[str, catalogue.Entry]) -> None:
    names = [entry.task.removeprefix("vmops.") for entry in operations(entries)]
    found = {name: secret_fields(definition_of(name).request) for name in names}
    assert {name: fields for name, fields in found.items() if fields} == SECRET_FIELDS


def test_every_task_says_what_it_does(entries: dict[str, catalogue.Entry]) -> None:
    assert [entry.task for entry in entries.values() if len(entry.summary) < 10] == []


def test_a_request_is_described_by_the_model_that_checks_it(entries: dict[str, catalogue.Entry]) -> None:
    for entry in operations(entries):
        model = definition_of(entry.task.removeprefix("vmops.")).request
        assert set(entry.request["properties"]) == set(model.model_fields)
        assert entry.request["additionalProperties"] is False


def test_the_other_tasks_are_described_by_what_they_can_be_sent_with(
    entries: dict[str, catalogue.Entry], app: Celery
) -> None:
    for entry in entries.values():
        if entry.kind not in {"operation", "query"}:
            parameters = inspect.signature(app.tasks[entry.task].run).parameters
            assert set(entry.request["properties"]) == set(parameters), entry.task
            inspect.signature(app.tasks[entry.task].run).bind(**entry.example)


def test_an_operations_example_is_a_valid_request(entries: dict[str, catalogue.Entry]) -> None:
    for entry in operations(entries):
        assert entry.example
        check(definition_of(entry.task.removeprefix("vmops.")).request, dict(entry.example), {})


def test_an_operations_command_line_means_its_example(entries: dict[str, catalogue.Entry]) -> None:
    for entry in operations(entries):
        program, command, name, *words = shlex.split(catalogue.command_line(entry))
        assert (program, command, words.pop()) == ("vmops", "submit", "--wait")
        assert request_of(name, definition_of(name).request, words, lambda _: {}) == entry.example


def test_a_querys_example_is_a_valid_request_and_its_command_line_means_it(entries: dict[str, catalogue.Entry]) -> None:
    queries = [entry for entry in entries.values() if entry.kind == "query" and not entry.task.startswith("vmops.toy_")]
    assert {entry.task.removeprefix("vmops.") for entry in queries} >= {"list_instances", "get_info", "get_vnc_console"}
    for entry in queries:
        assert entry.example
        model = query_of(entry.task.removeprefix("vmops.")).request
        check(model, dict(entry.example), {})
        program, command, name, *words = shlex.split(catalogue.command_line(entry))
        assert (program, command) == ("vmops", "submit")
        assert request_of(name, model, words, lambda _: {}) == entry.example


def test_an_operation_names_its_steps_in_running_order_and_each_is_listed(entries: dict[str, catalogue.Entry]) -> None:
    for entry in operations(entries):
        definition = definition_of(entry.task.removeprefix("vmops."))
        assert entry.steps == [f"{entry.task}.{step.name}" for step in definition.steps]
        assert {entries[step].kind for step in entry.steps} == {"step"}
        undos = {f"{entry.task}.{step.undo.__name__}" for step in definition.steps if step.undo}
        assert {entries[undo].kind for undo in undos} <= {"undo"}


def test_the_fields_for_people_include_nested_ones_and_name_secrets(entries: dict[str, catalogue.Entry]) -> None:
    fields = {one.name: one for one in catalogue.fields_of(entries["vmops.snapshot"].request)}
    assert fields["instance.name"].type == "string"
    assert fields["image_token"].type == "secret"
    assert fields["format"].type == "vhd, raw, bundle"
    assert fields["format"].default == '"vhd"'
    assert fields["compression_level"].type == "integer from 1 to 9"
    sizes = {one.name: one for one in catalogue.fields_of(entries["vmops.spawn"].request)}
    assert sizes["flavor.memory_mb"].type == "integer from 16 to 12582912"
    assert all(one.description for one in fields.values())


def test_the_catalogue_is_plain_json(entries: dict[str, catalogue.Entry]) -> None:
    for entry in entries.values():
        assert json.loads(json.dumps(entry.as_json())) == entry.as_json()


@pytest.mark.parametrize("name", ["snapshot", "vmops.snapshot"])
def test_a_task_is_found_with_and_without_the_prefix(name: str) -> None:
    assert catalogue.find(name).task == "vmops.snapshot"


def test_what_another_release_has_begun_is_not_shown_with_the_steps_of_this_one() -> None:
    record = Record("id", "reboot", "lab", {})
    assert catalogue.definition_if_known(record) is catalogue.find_definition("reboot")
    (name, *_) = [step.name for step in catalogue.find_definition("reboot").steps]
    assert catalogue.definition_if_known(replace(record, position=0, step=name)) is not None
    assert catalogue.definition_if_known(replace(record, position=1, step=name)) is None
    assert catalogue.definition_if_known(replace(record, name="of_yore", position=0, step=name)) is None


def test_an_unknown_task_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownOperation, match=r"No task is called 'snapshoot'\. Did you mean snapshot\?"):
        catalogue.find("snapshoot")
    with pytest.raises(UnknownOperation, match=r"called 'snapshoot'\. Did you mean snapshot\?"):
        catalogue.find_definition("snapshoot")
