"""get_all_records_where against expressions that are made together with what they mean (grammar: xapi.md 12.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import given

from simulator.core.database import Row
from simulator.model.types import NULL
from tests.support.model_pool import PATIENCE_S, PoolInside, profile
from tests.support.simulator import vm_record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(PATIENCE_S)]


class Value(NamedTuple):
    """One side of an equation: how it is written, and its text for an object."""

    words: tuple[str, ...]
    of: Callable[[Row], str]


class Made(NamedTuple):
    """An expression, and whether it holds for an object."""

    words: tuple[str, ...]
    holds: Callable[[Row], bool]


#: Fields by the name that queries know, with the text that they compare as.
_FIELDS: dict[str, Callable[[Row], str]] = {
    "uuid": lambda vm: str(vm["uuid"]),
    "_ref": lambda vm: vm.ref,
    "name__label": lambda vm: str(vm["name_label"]),
    "power_state": lambda vm: str(vm["power_state"]),
    "is_a_template": lambda vm: "true" if vm["is_a_template"] else "false",
    "is_control_domain": lambda vm: "true" if vm["is_control_domain"] else "false",
    "memory__static_max": lambda vm: str(vm["memory_static_max"]),
    "VCPUs__max": lambda vm: str(vm["VCPUs_max"]),
    "snapshot_of": lambda vm: str(vm["snapshot_of"]),
    "resident_on": lambda vm: str(vm["resident_on"]),
    "tags": lambda vm: "(" + " ".join(f"'{tag}'" for tag in vm["tags"]) + ")",
    "domain_type": lambda vm: str(vm["domain_type"]),
}
_LITERALS = ("", "vm", "Halted", "Running", "true", "false", NULL, "1", "2", "268435456", "()", "('a')", "hvm", "and")


def _field(name: str) -> Value:
    return Value(("field", f'"{name}"'), _FIELDS[name])


def _literal(text: str) -> Value:
    return Value((f'"{text}"',), lambda _vm: text)


_SIDES = st.sampled_from(sorted(_FIELDS)).map(_field) | st.sampled_from(_LITERALS).map(_literal)
_TRUTHS = st.sampled_from([Made(("true",), lambda _vm: True), Made(("false",), lambda _vm: False)])


def _equation(sides: tuple[Value, Value]) -> Made:
    left, right = sides
    return Made((*left.words, "=", *right.words), lambda vm: left.of(vm) == right.of(vm))


def _in_brackets(inner: Made) -> Made:
    return Made(("(", *inner.words, ")"), inner.holds)


def _not(inner: Made) -> Made:
    return Made(("not", *inner.words), lambda vm: not inner.holds(vm))


def _joined(left: Made, word: str, right: Made) -> Made:
    words = (*left.words, word, *right.words)
    if word == "and":
        return Made(words, lambda vm: left.holds(vm) and right.holds(vm))
    return Made(words, lambda vm: left.holds(vm) or right.holds(vm))


def _chains(terms: st.SearchStrategy[Made]) -> st.SearchStrategy[Made]:
    """Make `a and b or c ...`, of one level and from the left, with a `not` that takes all that follows."""
    words = st.sampled_from(["and", "or"])
    return st.builds(
        _chain, terms, st.lists(st.tuples(words, terms), max_size=3), st.none() | words, terms, st.booleans()
    )


def _chain(first: Made, more: list[tuple[str, Made]], before_not: str | None, denied: Made, is_denied: bool) -> Made:  # noqa: FBT001 - drawn
    whole = first
    for word, term in more:
        whole = _joined(whole, word, term)
    if before_not:
        whole = _joined(whole, before_not, _not(denied))
    return _not(whole) if is_denied else whole


_TERMS = st.tuples(_SIDES, _SIDES).map(_equation) | _TRUTHS
EXPRESSIONS = st.recursive(_chains(_TERMS), lambda inner: _chains(_TERMS | inner.map(_in_brackets)), max_leaves=4)


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoolInside]:
    folder: Path = tmp_path_factory.mktemp("pool")
    with PoolInside(folder) as pool:
        for number, tags in enumerate(([], ["a"], ["a", "b"])):
            record = vm_record(name_label=("vm", "", "and")[number], tags=tags, VCPUs_max=str(number + 1))
            vm_ref = pool.must("VM.create", record | {"is_a_template": number == 1, "suspend_SR": NULL})
            if number != 1:
                pool.must("VM.snapshot", vm_ref, "snapshot")
        yield pool


@profile(examples=150, steps=1)
@given(made=EXPRESSIONS, blanks=st.sampled_from([" ", "  ", "\n ", "\t"]))
def test_a_query_gives_what_its_expression_means(inside: PoolInside, made: Made, blanks: str) -> None:
    expected = {vm.ref for vm in inside.rows("VM") if made.holds(vm)}
    expression = blanks.join(made.words)
    found = inside.must("VM.get_all_records_where", expression)
    assert {vm.ref for vm in found} == expected
    assert set(inside.must("VM.get_all_where", expression)) == expected


@profile(examples=150, steps=1)
@given(
    words=st.lists(
        st.sampled_from(["true", "not", "and", "or", "(", ")", "=", "field", '"uuid"', '"', "é", "&"]), max_size=8
    )
)
def test_any_words_are_a_query_or_refused_as_one(inside: PoolInside, words: list[str]) -> None:
    expression = " ".join(words)
    answer = inside.call("VM.get_all_where", expression)
    if answer.error:
        assert answer.error[0] == "INVALID_VALUE"
        assert answer.error[1] == expression


def test_not_takes_all_that_follows(inside: PoolInside) -> None:
    every = set(inside.must("VM.get_all_where", "true"))
    assert set(inside.must("VM.get_all_where", "not false and false")) == every
    assert inside.must("VM.get_all_where", "(not false) and false") == []
    assert inside.must("VM.get_all_where", "true or false and false") == []


def test_an_unknown_field_fails_where_there_are_objects(inside: PoolInside) -> None:
    query = 'field "name_label" = "vm"'
    assert inside.call("VM.get_all_where", query).error == ["INTERNAL_ERROR", "missing field", "name_label", ""]
    assert inside.call("VMSS.get_all_where", 'field "nonsense" = ""').value == []
