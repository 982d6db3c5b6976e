"""How often the operations ask the pool: no more than the limits say, and not more in a larger pool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.rig import Rig
from tests.support.roundtrips import ROWS, SETTINGS, Rounds

BYSTANDERS = 60


@pytest.fixture
def rounds(tmp_path: Path) -> Iterator[Rounds]:
    """A pool of its own, in which nothing but the operations asks."""
    with Rig(tmp_path, SETTINGS, simulator_options=("--guest-writes", "0"), store="directory") as rig:
        yield Rounds(rig)


@pytest.mark.slow
def test_no_operation_asks_more_often_than_its_limit_or_more_in_a_larger_pool(rounds: Rounds) -> None:
    rounds.run()
    few = {row.name: rounds.total(row) for row in ROWS}
    assert {row.name: few[row.name] for row in ROWS if row.most is not None and few[row.name] > row.most} == {}
    rounds.fill(BYSTANDERS)
    rounds.run()
    assert {row.name: rounds.total(row) for row in ROWS} == few
