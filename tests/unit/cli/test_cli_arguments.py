"""`key=value` words and what becomes of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from worker.cli.arguments import request_of
from worker.cli.complaints import USAGE, Complaint
from worker.operations.request import InstanceRequest, Secret


class Inner(BaseModel):
    size: int = 0
    token: Secret | None = None


class Wish(InstanceRequest):
    name: str | None = Field(default=None, max_length=8)
    mode: Literal["fast", "slow"] = "fast"
    count: int = 1
    tags: list[str] = Field(default=[])
    properties: dict[str, str] = Field(default={})
    inner: Inner | None = None
    inners: list[Inner] = Field(default=[])
    password: Secret | None = None


def sealed(text: str) -> dict[str, str]:
    return {"sealed": f"box of {len(text)}"}


def parsed(*words: str) -> dict[str, Any]:
    return request_of("wish", Wish, words, sealed)


def refusal(*words: str) -> str:
    with pytest.raises(Complaint) as caught:
        parsed(*words)
    assert caught.value.status == USAGE
    return str(caught.value)


def test_dotted_keys_nest_and_json_values_are_read() -> None:
    words = ["instance.name=web01", "count=3", 'tags=["a","b"]', "inner.size=5", 'properties={"os":"linux"}']
    assert parsed(*words) == {
        "instance": {"name": "web01"},
        "count": 3,
        "tags": ["a", "b"],
        "inner": {"size": 5},
        "properties": {"os": "linux"},
    }


def test_a_whole_object_may_be_one_json_value() -> None:
    assert parsed('instance={"name": "web01"}') == {"instance": {"name": "web01"}}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *((text, text) for text in ("42", "true", "1e3", "[]", "NaN", "a=b", "", "x y")),
        ('"42"', "42"),
        ("null", None),  # the field may be null, so null it is
    ],
)
def test_what_reads_as_json_stays_text_where_text_is_wanted(text: str, name: str | None) -> None:
    assert parsed("instance.name=web01", f"name={text}")["name"] == name


def test_a_numeric_property_and_a_numeric_vm_name_stay_text() -> None:
    assert parsed("instance.name=007", "properties.os_version=12") == {
        "instance": {"name": "007"},
        "properties": {"os_version": "12"},
    }
    assert parsed("instance.name=12")["instance"] == {"name": "12"}


def test_a_word_that_is_no_pair_is_refused() -> None:
    assert "'web01' is not of the form key=value" in refusal("web01")
    assert "is not of the form" in refusal("=x")
    assert "is not of the form" in refusal("a..b=x")


def test_keys_that_do_not_go_together_are_refused() -> None:
    assert refusal("count=1", "count=2") == "count is given twice."
    assert "instance.name does not go together" in refusal("instance=web01", "instance.name=web01")
    assert "instance does not go together" in refusal("instance.name=web01", "instance=web01")


def test_a_request_that_is_not_valid_is_refused_with_every_reason_and_the_way_to_the_fields() -> None:
    told = refusal("instance.name=web01", "mode=quick", "colour=red", "count=many")
    for part in ("mode", "'fast' or 'slow'", "colour", "count", "`vmops tasks wish` lists its fields"):
        assert part in told


def test_a_missing_instance_is_refused() -> None:
    assert "instance: Field required" in refusal()


@pytest.mark.parametrize("key", ["password", "inner.token"])
def test_a_secret_in_clear_is_refused_without_being_repeated(key: str) -> None:
    told = refusal("instance.name=web01", f"{key}=hunter2")
    assert f"{key}=@file" in told
    assert "hunter2" not in told


def test_a_secret_comes_from_a_file_without_its_line_end_and_is_sealed(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("hunter2\n")
    values = parsed("instance.name=web01", f"password=@{tmp_path}/pw", f"inner.token=@{tmp_path}/pw")
    assert values["password"] == values["inner"]["token"] == {"sealed": "box of 7"}


def test_a_secret_inside_of_json_is_read_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("hunter2\n")
    values = parsed("instance.name=web01", f'inners=[{{"size": 1}}, {{"token": "@{tmp_path}/pw"}}]')
    assert values["inners"] == [{"size": 1}, {"token": {"sealed": "box of 7"}}]
    told = refusal("instance.name=web01", 'inners=[{"token": "hunter2"}]')
    assert "inners.*.token=@file" in told
    assert "hunter2" not in told


def test_a_secret_comes_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hunter2"))
    assert parsed("instance.name=web01", "password=@-")["password"] == {"sealed": "box of 7"}


def test_a_file_that_cannot_be_a_secret_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "missing of password cannot be read: No such file" in refusal(f"password=@{tmp_path}/missing")
    assert "empty of password is empty" in refusal(f"password=@{tmp_path}/empty")
    assert "binary of password cannot be read: it is not UTF-8" in refusal(f"password=@{tmp_path}/binary")


def test_an_at_sign_means_nothing_where_no_secret_is_wanted() -> None:
    assert parsed("instance.name=@home")["instance"] == {"name": "@home"}
