"""Every call as xenapi.json has it: the accessors, and those that do something."""

from __future__ import annotations

import pytest

from simulator.api.accessors import removed
from simulator.api.catalogue import METHODS
from simulator.api.registry import Method
from simulator.model.calls import CALLS
from simulator.model.schema import CLASSES
from tests.conformance import datamodel, differences

NAMES = sorted(CLASSES)


def shape(method: Method) -> tuple[tuple[str, ...], str, bool]:
    """Return parameters, result and whether a session is needed."""
    return tuple(one.name for one in method.params), method.result.name, method.needs_session


@pytest.mark.parametrize("name", NAMES)
def test_no_call_is_missing(name: str) -> None:
    assert [one.name for one in datamodel.load()[name].calls if one.name not in METHODS] == []


@pytest.mark.parametrize("name", NAMES)
def test_calls_take_and_return_what_the_datamodel_says(name: str) -> None:
    unlike = {}
    for one in datamodel.load()[name].calls:
        params = one.params + differences.LATER_PARAMETERS.get(one.name, ())
        if shape(METHODS[one.name]) != (params, one.result, one.needs_session):
            unlike[one.name] = (shape(METHODS[one.name]), (params, one.result, one.needs_session))
    assert unlike == {}


@pytest.mark.parametrize("name", NAMES)
def test_only_parameters_that_xapi_lets_one_leave_out_are_optional(name: str) -> None:
    unlike = {}
    for one in datamodel.load()[name].calls:
        method = METHODS[one.name]
        optional = len(method.params) - method.mandatory
        expected = differences.OPTIONAL.get(one.name, 0) + len(differences.LATER_PARAMETERS.get(one.name, ()))
        if optional != expected:
            unlike[one.name] = (optional, expected)
    assert unlike == {}


@pytest.mark.parametrize("name", NAMES)
def test_removed_calls_say_so_and_no_other_does(name: str) -> None:
    theirs = {one.name for one in datamodel.load()[name].calls if one.is_removed}
    ours = {one.name for one in datamodel.load()[name].calls if METHODS[one.name].body is removed}
    assert ours == theirs


@pytest.mark.parametrize("name", NAMES)
def test_accessors_have_no_async_form_and_constructors_have_one(name: str) -> None:
    without = {"session", "event", "task", "data_source", "blob", "message"}
    for one in datamodel.load()[name].calls:
        if one.is_implicit:
            is_maker = one.name.endswith((".create", ".destroy")) and name not in without
            assert METHODS[one.name].has_async is is_maker, one.name


def test_nothing_is_made_up() -> None:
    theirs = {one.name for cls in datamodel.load().values() for one in cls.calls}
    queries = {
        f"{name.removesuffix('.get_all')}.{verb}"
        for name in theirs
        if name.endswith(".get_all")
        for verb in ("get_all_where", "get_all_records_where")
    }
    hidden = {name for name, spec in CALLS.items() if "hidden" in spec.marks}
    assert METHODS.keys() - theirs - queries - hidden == {"system.listMethods"}
    assert not hidden & theirs, "the published reference has them"
