"""Weighted progress of an operation, and the progress rule of a list of functions (operations.md 5.1, 10)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from worker.operations.progress import make_step_decorator, percent

weights = some.lists(some.floats(min_value=0, max_value=1000, allow_nan=False), min_size=1, max_size=12)


class TestPercent:
    def test_counts_the_weights_of_the_steps_that_are_done(self) -> None:
        assert percent([1, 8, 1], 0) == 0.0
        assert percent([1, 8, 1], 1) == 10.0
        assert percent([1, 8, 1], 2) == 90.0

    def test_adds_the_fraction_of_the_step_in_progress(self) -> None:
        assert percent([1, 8, 1], 1, 0.5) == 50.0
        assert percent([1, 8, 1], 1, 7.0) == percent([1, 8, 1], 2), "more than all of it is all of it"
        assert percent([1, 8, 1], 1, -1.0) == percent([1, 8, 1], 1)

    def test_is_0_without_any_weight(self) -> None:
        assert percent([], 0) == 0.0
        assert percent([0, 0], 1) == 0.0

    @given(weights)
    def test_never_decreases_and_never_reaches_100(self, given_weights: list[float]) -> None:
        seen = [
            percent(given_weights, position, tenth / 10)
            for position in range(len(given_weights) + 1)
            for tenth in range(11)
        ]
        assert seen == sorted(seen)
        assert all(0 <= value <= 99.9 for value in seen)


class TestStepDecorator:
    def test_reports_after_each_function_that_returned(self) -> None:
        told: list[tuple[int, int, int]] = []
        step = make_step_decorator(lambda *values: told.append(values))
        first, second, third = (step(len) for _ in range(3))
        assert first("abc") == 3, "arguments and result are passed through"
        assert told == [(1, 3, 33)]
        second("")
        third("")
        assert told == [(1, 3, 33), (2, 3, 67), (3, 3, 100)]

    def test_a_function_that_raises_does_not_count(self) -> None:
        told: list[tuple[int, int, int]] = []
        step = make_step_decorator(lambda *values: told.append(values))
        fails, works = step(int), step(len)
        with pytest.raises(ValueError, match="invalid literal"):
            fails("x")
        assert told == []
        works("")
        assert told == [(1, 2, 50)]

    def test_a_repeated_function_counts_once(self) -> None:
        told: list[tuple[int, int, int]] = []
        step = make_step_decorator(lambda *values: told.append(values))
        one, other = step(len), step(len)
        for _ in range(5):
            one("")
        other("")
        assert told[-1] == (2, 2, 100)
        assert max(value for _, _, value in told) == 100

    def test_the_offset_counts_steps_that_are_done_elsewhere(self) -> None:
        """A migration has five steps, the last of them on the destination."""
        told: list[int] = []
        step = make_step_decorator(lambda _current, _total, value: told.append(value), total_offset=1)
        steps = [step(len) for _ in range(4)]
        for one in steps:
            one("")
        assert told == [20, 40, 60, 80]

    @pytest.mark.parametrize(
        ("total", "expected"), [(7, [14, 29, 43, 57, 71, 86, 100]), (8, [12, 25, 38, 50, 62, 75, 88, 100])]
    )
    def test_rounds_as_documented(self, total: int, expected: list[int]) -> None:
        """Spawn has seven steps; with eight, halves show which way is even."""
        told: list[int] = []
        step = make_step_decorator(lambda _current, _total, value: told.append(value))
        for one in [step(len) for _ in range(total)]:
            one("")
        assert told == expected

    def test_keeps_the_name_of_the_function(self) -> None:
        def create_disks() -> None:
            """Make them."""

        step = make_step_decorator(lambda *_: None)
        assert step(create_disks).__name__ == "create_disks"
