"""Every class, field by field, as xenapi.json has it."""

from __future__ import annotations

import pytest

from simulator.model.enums import ENUMS
from simulator.model.schema import CLASSES
from tests.conformance import datamodel, differences

NAMES = sorted(CLASSES)


def test_no_class_is_missing_and_none_is_made_up() -> None:
    assert set(CLASSES) == set(datamodel.load())


@pytest.mark.parametrize("name", NAMES)
def test_fields_have_the_names_the_order_and_the_types_of_the_datamodel(name: str) -> None:
    ours = [(one.name, one.type.name) for one in CLASSES[name].fields.values() if not one.is_hidden]
    assert ours == [(one.name, one.type) for one in datamodel.load()[name].fields]


@pytest.mark.parametrize("name", NAMES)
def test_fields_may_be_written_by_those_whom_the_datamodel_lets(name: str) -> None:
    qualifiers = {(True, True): "RW", (True, False): "RO/constructor", (False, False): "RO/runtime"}
    ours = {
        one.name: (qualifiers[one.in_constructor, one.has_setter], one.is_removed)
        for one in CLASSES[name].fields.values()
        if not one.is_hidden
    }
    assert ours == {one.name: (one.qualifier, one.is_removed) for one in datamodel.load()[name].fields}


@pytest.mark.parametrize("name", NAMES)
def test_fields_start_as_the_datamodel_says(name: str) -> None:
    ours = {one.name: one.default for one in CLASSES[name].fields.values() if not one.is_hidden}
    theirs = {one.name: datamodel.initial_value(one.type, one.default) for one in datamodel.load()[name].fields}
    unlike = {key: (ours[key], value) for key, value in theirs.items() if ours[key] != value}
    assert {key: values for key, values in unlike.items() if (name, key) not in differences.DEFAULTS} == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_constructor_asks_for_what_has_no_default(name: str) -> None:
    ours = {one.name for one in CLASSES[name].fields.values() if one.is_mandatory}
    fields = datamodel.load()[name].fields
    assert ours == {one.name for one in fields if one.qualifier != "RO/runtime" and one.default is None}


def test_enumerations_have_the_values_of_the_datamodel() -> None:
    theirs = {name: values for one in datamodel.load().values() for name, values in one.enums.items()}
    assert theirs == ENUMS
