"""What XenStore takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import RequestError, TooLarge
from worker.guest import xenstore

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.mark.parametrize("path", ["vm-data", "vm-data/user-metadata/a_b-c@1", "x" * 1004])
def test_letters_digits_and_three_signs_make_a_path(path: str) -> None:
    assert xenstore.check_path(path) == path
    assert xenstore.is_path(path)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("", "at least one name"),
        ("/vm-data", "begins or ends with a slash"),
        ("vm-data/", "begins or ends with a slash"),
        ("vm-data//a", "two in a row"),
        ("vm-data/a.b", "'a.b' cannot be part"),
        ("vm-data/a b", "cannot be part"),
        ("vm-data/ä", "cannot be part"),
        ("vm-data/a\\b", "cannot be part"),
        ("vm-data/a\n", "cannot be part"),
        ("x" * 1005, "at most 1004 characters"),
    ],
)
def test_any_other_path_is_refused_with_what_is_wrong(path: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        xenstore.check_path(path)
    assert not xenstore.is_path(path)


@pytest.mark.parametrize("path", ["device/vbd/768", "name", "vm-datax", "memory"])
def test_only_what_host_and_guest_share_is_reached(path: str) -> None:
    with pytest.raises(ValueError, match="none of the guest's business"):
        xenstore.check_shared(path)


def test_xapi_mirrors_two_folders() -> None:
    assert all(map(xenstore.is_mirrored, ("vm-data", "vm-data/a", "FIST/a")))
    assert not any(map(xenstore.is_mirrored, ("data/a", "vm-datax", "attr")))


@settings(max_examples=20)
@given(JSON)
def test_every_value_comes_back_as_it_was_and_travels_in_ascii(value: Any) -> None:
    text = xenstore.text_of(value)
    assert text.isascii()
    assert xenstore.value_of(text) == value


@pytest.mark.parametrize("text", ["web01", "C:\\temp", "größer", "{broken"])
def test_plain_text_of_others_reads_as_text(text: str) -> None:
    assert xenstore.value_of(text) == text


def test_nothing_reads_as_nothing() -> None:
    assert xenstore.value_of(None) is None


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(RequestError, match="cannot be written as JSON"):
        xenstore.text_of(float("nan"))


@pytest.mark.parametrize(("path", "most"), [("vm-data/a", 2048), ("data/a", 4096 - 20 - 6 - 1)])
def test_a_value_fits_to_the_byte(path: str, most: int) -> None:
    assert xenstore.check_size(path, "x" * most)
    with pytest.raises(TooLarge, match=f"takes {most + 1} bytes as JSON, and XenStore {most} there"):
        xenstore.check_size(path, "x" * (most + 1))


def test_below_and_without_keep_to_whole_names() -> None:
    entries = {"vm-data": "", "vm-data/a": "1", "vm-data/a/b": "2", "vm-data/ab": "3"}
    assert xenstore.below(entries, "vm-data/a") == {"b": "2"}
    assert xenstore.without(entries, ["vm-data/a"]) == {"vm-data": "", "vm-data/ab": "3"}
