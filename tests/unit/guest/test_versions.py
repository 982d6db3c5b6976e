"""The order of versions."""

from __future__ import annotations

import pytest

from worker.guest.versions import cmp_version, is_older


@pytest.mark.parametrize(
    ("a", "b", "sign"),
    [
        ("0.0.1.10", "0.0.1.9", 1),
        ("1.0", "1.0.0", -1),
        ("1.0.0", "1.0", 1),
        ("1.2.3.5", "1.2.3.1", 1),
        ("1.2.3.1", "1.2.3.5", -1),
        ("2", "10", -1),
        ("1.2.3", "1.2.3", 0),
        ("01.2", "1.2", 0),
    ],
)
def test_versions_are_compared_part_by_part_as_numbers(a: str, b: str, sign: int) -> None:
    result = cmp_version(a, b)
    assert (result > 0) - (result < 0) == sign
    assert is_older(a, b) is (sign < 0)


def test_the_first_difference_is_returned() -> None:
    assert cmp_version("1.9.7", "1.4.99") == 5


@pytest.mark.parametrize("bad", ["", "1.x", "1..2", "beta"])
def test_a_part_that_is_no_number_is_an_error(bad: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        cmp_version(bad, "1.0")
    assert not is_older(bad, "1.0"), "what is unknown is not updated"
