"""Checking a request, and what is secret in one."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from worker.errors import RequestError, SecretInClear
from worker.operations.request import (
    Instance,
    InstanceRequest,
    Request,
    Secret,
    check,
    label_of,
    secret_fields,
    with_secrets,
)


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int = 0
    token: Secret | None = None


class Example(InstanceRequest):
    """A request as operations have them."""

    size: int = 1
    password: Secret | None = None
    token: Secret = Secret(sealed="")
    inner: Inner | None = None
    inners: list[Inner] = Field(default=[])


def refuse(values: dict[str, Any]) -> str:
    with pytest.raises(RequestError) as refusal:
        check(Example, values, {"seal": None})
    return str(refusal.value)


def test_a_good_request_is_returned_as_its_model() -> None:
    request = check(Example, {"instance": {"name": "web01"}, "size": 3}, {})
    assert isinstance(request, Example)
    assert (request.size, request.label, request.on_conflict, request.pool) == (3, "web01", "wait", None)


def test_everything_that_is_wrong_is_told_in_one_sentence() -> None:
    text = refuse({"instance": {}, "size": "many", "colour": "red"})
    assert text == (
        "The request is not valid: instance: name the VM by uuid, name or vm_uuid; "
        "size: Input should be a valid integer, unable to parse string as an integer; "
        "colour: there is no such field."
    )


@pytest.mark.parametrize(
    ("instance", "part"),
    [
        ({"name": ""}, "instance.name: String should have at least 1 character"),
        ({"uuid": "x"}, "instance.uuid: Input should be a valid UUID"),
        ({"ref": "OpaqueRef:1"}, "instance.ref: there is no such field"),
        ("web01", "instance: should be an object"),
    ],
)
def test_a_vm_is_named_by_uuid_name_or_vm_uuid(instance: Any, part: str) -> None:
    assert part in refuse({"instance": instance})


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"instanc": {}}, "instanc: there is no such field (did you mean instance?)"),
        ({"inner": {"sise": 1}}, "inner.sise: there is no such field (did you mean size?)"),
        ({"inners": [{}, {"tokens": 1}]}, "inners.1.tokens: there is no such field (did you mean token?)"),
    ],
)
def test_the_nearest_field_is_named(values: dict[str, Any], part: str) -> None:
    assert part in refuse({"instance": {"name": "web01"}, **values})


def test_a_refusal_does_not_repeat_the_value() -> None:
    assert "hunter2" not in refuse({"instance": {"name": "web01"}, "size": "hunter2"})


@pytest.mark.parametrize("field", ["name", "uuid", "vm_uuid"])
def test_the_label_is_what_people_know(field: str) -> None:
    value = "5f3c9d0e-7a41-4b0f-9f0e-0d6c1f1a2b3c"
    assert Instance.model_validate({field: value}).label == value


class TestSecret:
    def test_clear_text_is_refused_without_repeating_it(self) -> None:
        with pytest.raises(
            SecretInClear, match=r"password: the secret came in clear; seal it \(VMOps\.seal\)"
        ) as refusal:
            check(Example, {"instance": {"name": "web01"}, "password": "hunter2"}, {"seal": None})
        assert "hunter2" not in str(refusal.value)

    def test_clear_text_is_sealed_on_arrival_where_that_is_allowed(self) -> None:
        request = check(
            Example, {"instance": {"name": "web01"}, "password": "hunter2"}, {"seal": lambda text: text[::-1]}
        )
        assert isinstance(request, Example)
        assert request.password == Secret(sealed="2retnuh")

    def test_shows_nothing(self) -> None:
        secret = Secret(sealed="c2VhbGVk")
        assert (
            f"{secret} {secret!r} {[secret]} {Example(instance=Instance(name='a'), password=secret)}".count("c2Vh") == 0
        )

    def test_the_fields_that_hold_secrets_are_known(self) -> None:
        assert secret_fields(Example) == ["password", "token", "inner.token", "inners.*.token"]
        assert secret_fields(Request) == []

    def test_they_are_changed_at_any_depth_and_nothing_else_is(self) -> None:
        values = {"password": "a", "inner": {"token": "b", "size": 1}, "inners": [{"token": "c"}, {"size": 2}]}
        before = deepcopy(values)
        assert with_secrets(values, secret_fields(Example), str.upper) == {
            "password": "A",
            "inner": {"token": "B", "size": 1},
            "inners": [{"token": "C"}, {"size": 2}],
        }
        assert values == before
        for odd in ({"inner": "b", "inners": {"token": "c"}}, {"inner": None, "inners": ["c"]}):
            assert with_secrets(odd, secret_fields(Example), str.upper) == odd


class TestLabel:
    """What an operation is about, before anybody has checked its request."""

    def test_it_is_the_vm_also_when_secrets_came_in_clear(self) -> None:
        values = {"instance": {"name": "web01"}, "password": "hunter2", "inners": [{"token": "clear"}]}
        assert label_of(Example, values) == "web01"

    @pytest.mark.parametrize("values", [{}, {"instance": "web01"}, {"instance": {"name": "web01"}, "colour": "red"}])
    def test_a_request_that_is_not_valid_has_none(self, values: dict[str, Any]) -> None:
        assert label_of(Example, values) == ""
