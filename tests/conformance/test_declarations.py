"""What holds of the declarations by themselves, without xenapi.json."""

from __future__ import annotations

import pytest

from simulator.api.catalogue import METHODS
from simulator.api.registry import parse_param
from simulator.model.calls import CALLS
from simulator.model.enums import ENUMS
from simulator.model.schema import CLASSES, PLAIN_RECORDS
from simulator.model.types import Enum, MapOf, OptionOf, Record, Ref, SetOf, Type, parse_type

NAMES = sorted(CLASSES)


def parts_of(kind: Type) -> list[Type]:
    """Return a type and the types inside it."""
    if isinstance(kind, MapOf):
        return [kind, *parts_of(kind.key), *parts_of(kind.item)]
    return [kind, *parts_of(kind.item)] if isinstance(kind, SetOf | OptionOf) else [kind]


@pytest.mark.parametrize("name", NAMES)
def test_fields_are_made_of_declared_types(name: str) -> None:
    for field in CLASSES[name].fields.values():
        for kind in parts_of(field.type):
            assert not isinstance(kind, Ref) or kind.class_name in CLASSES, field
            assert not isinstance(kind, Enum) or kind.name in ENUMS, field
            assert not isinstance(kind, Record) or kind.class_name in {*CLASSES, "<class>"}, field


@pytest.mark.parametrize("name", NAMES)
def test_a_default_is_a_value_of_its_type(name: str) -> None:
    for field in CLASSES[name].fields.values():
        if field.default is not None and not (isinstance(field.type, Enum) and field.default == ""):
            assert field.type.decode(field.default) == field.default, field


def test_objects_have_a_uuid_first_and_plain_records_are_no_objects() -> None:
    firsts = {name: next(iter(spec.fields), "") for name, spec in CLASSES.items()}
    assert {name for name, first in firsts.items() if first != "uuid"} == PLAIN_RECORDS - {"sr_stat"}


@pytest.mark.parametrize("name", NAMES)
def test_a_relation_has_both_its_ends(name: str) -> None:
    for field in CLASSES[name].fields.values():
        if not field.mirrors:
            continue
        assert isinstance(field.type, SetOf)
        assert isinstance(field.type.item, Ref)
        other = CLASSES[field.type.item.class_name]
        end = other.fields[field.mirrors]
        assert other.inverse[field.mirrors] == (name, field.name)
        if isinstance(end.type, SetOf):
            assert end.mirrors == field.name, "both ends of a relation of many to many mirror each other"
            end_type = end.type.item
        else:
            end_type = end.type
        assert isinstance(end_type, Ref)
        assert end_type.class_name == name


@pytest.mark.parametrize("name", sorted({name.partition(".")[0] for name in CALLS}))
def test_whoever_carries_a_call_out_declares_it_as_the_datamodel_does(name: str) -> None:
    unlike = {}
    for spec in CALLS.values():
        if spec.cls != name:
            continue
        method = METHODS[spec.name]
        declared = (
            [parse_param(one).name for one in spec.params],
            sum(1 for one in spec.params if not one.endswith("?")),
            spec.has_async,
            spec.needs_session,
        )
        found = ([one.name for one in method.params], method.mandatory, method.has_async, method.needs_session)
        if found != declared:
            unlike[spec.name] = (found, declared)
    assert unlike == {}


@pytest.mark.parametrize("name", sorted({name.partition(".")[0] for name in CALLS} - {"event"}))
def test_whoever_carries_a_call_out_returns_what_the_datamodel_says(name: str) -> None:
    pairs = {spec.name: (METHODS[spec.name].result.name, spec.result) for spec in CALLS.values() if spec.cls == name}
    assert {name: pair for name, pair in pairs.items() if pair[0] != parse_type(pair[1]).name} == {}


def test_every_call_is_declared_or_comes_with_its_class() -> None:
    finders = ("get_record", "get_by_uuid", "get_all", "get_all_records", "get_all_records_where", "get_all_where")
    generated = {f"{name}.{verb}" for name in CLASSES for verb in (*finders, "get_by_name_label")}
    changes = ("get_", "set_", "add_to_", "remove_from_", "add_", "remove_")
    generated |= {
        f"{name}.{verb}{field}" for name, spec in CLASSES.items() for field in spec.fields for verb in changes
    }
    assert METHODS.keys() - CALLS.keys() - generated == {"system.listMethods"}


def test_every_call_belongs_to_a_class() -> None:
    strangers = {name for name in METHODS if name.partition(".")[0] not in CLASSES}
    assert {name.partition(".")[0] for name in strangers} == {"system"}
    assert {spec.cls for spec in CALLS.values()} <= CLASSES.keys()
