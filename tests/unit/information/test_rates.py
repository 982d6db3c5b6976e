"""From rates to bytes: the rule of integration, what is not known, counters that began anew."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.information.rates import transferred

NAN = math.nan


def test_the_worked_example_is_150_bytes() -> None:
    assert transferred([(5, 10), (10, NAN), (15, 30)], 0, 15, 5) == 150


def test_a_steady_rate_gives_rate_times_time() -> None:
    points = [(moment, 8.0) for moment in range(5, 65, 5)]
    assert transferred(points, 0, 60, 5) == 480


@pytest.mark.parametrize("unknown", [NAN, math.inf, -math.inf, -4e9, -0.5])
def test_a_counter_that_began_anew_adds_nothing_and_takes_nothing_away(unknown: float) -> None:
    points = [(5, 10.0), (10, unknown), (15, 10.0)]
    assert transferred(points, 0, 15, 5) == transferred([(5, 10.0), (10, 0.0), (15, 10.0)], 0, 15, 5) == 100


def test_nothing_is_counted_after_the_stop() -> None:
    points = [(5, 10.0), (10, 10.0), (15, 10.0), (20, 1000.0)]
    assert transferred(points, 0, 15, 5) == 150


def test_nothing_is_counted_before_the_start() -> None:
    points = [(5, 1000.0), (10, 10.0), (15, 10.0)]
    assert transferred(points, 10, 15, 5) == 50


def test_a_span_that_cuts_rows_gets_their_share() -> None:
    assert transferred([(0, 0.0), (10, 10.0)], 5, 10, 10) == pytest.approx(37.5)
    assert transferred([(0, 0.0), (10, 10.0)], 0, 5, 10) == pytest.approx(12.5)


def test_the_first_rate_is_assumed_for_one_row_only() -> None:
    """A start long before the oldest row must not make up hours of traffic."""
    assert transferred([(1_000_000, 7.0)], 0, 1_000_000, 5) == 35


def test_nothing_is_assumed_after_the_last_row() -> None:
    assert transferred([(5, 10.0), (10, 10.0)], 0, 3600, 5) == 100


@pytest.mark.parametrize("points", [[], [(5, NAN)], [(5, NAN), (10, NAN)], [(5, 0.0), (10, 0.0)]])
def test_no_figures_are_no_bytes(points: list[tuple[float, float]]) -> None:
    assert transferred(points, 0, 100, 5) == 0


def test_an_empty_span_has_no_bytes() -> None:
    assert transferred([(5, 10.0), (10, 10.0)], 7, 7, 5) == 0
    assert transferred([(5, 10.0), (10, 10.0)], 20, 10, 5) == 0


@given(
    rates=st.lists(st.one_of(st.floats(0, 1e10), st.just(NAN)), min_size=2, max_size=60),
    cuts=st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
def test_adjoining_spans_add_up_to_the_whole(rates: list[float], cuts: list[float]) -> None:
    points = [(5.0 * number, rate) for number, rate in enumerate(rates)]
    stop = points[-1][0]
    edges = [0.0, *sorted(cut * stop for cut in cuts), stop]
    parts = sum(transferred(points, begin, end, 5) for begin, end in pairwise(edges))
    assert parts == pytest.approx(transferred(points, 0, stop, 5), rel=1e-9, abs=1e-6)


def test_noise_on_the_rate_leaves_the_sum_close() -> None:
    noise = random.Random(7)
    points = [(5.0 * number, noise.uniform(0, 200)) for number in range(1, 2001)]
    assert transferred(points, 0, 10_000, 5) == pytest.approx(100 * 10_000, rel=0.05)
