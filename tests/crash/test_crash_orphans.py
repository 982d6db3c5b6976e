"""The crash matrix of a sweep that cleans: what was left over is gone, and nothing else."""

from __future__ import annotations

import pytest

from tests.crash.matrix import Accident, Matrix
from tests.support.leftovers import disk, left_over
from tests.support.rig import Rig
from worker.client import Handle

pytestmark = [pytest.mark.crash, pytest.mark.slow]

Disks = tuple[str, str]
"""What was left over, and what is somebody's."""


def prepare(rig: Rig) -> Disks:
    """Make both."""
    return left_over(rig), disk(rig, name="somebody's")


def submit(rig: Rig, _disks: Disks) -> Handle:
    """Clean at once."""
    return rig.client.poll_orphans(clean=True, grace_s=0)


def check(rig: Rig, disks: Disks, handle: Handle) -> None:
    """One disk is gone, the other one is there."""
    orphan, foreign = disks
    record = rig.wait(handle)
    assert record.state == "succeeded", record.error
    (one,) = record.result["found"]
    assert one["uuid"] == orphan
    assert one["fate"] in {"destroyed", "gone meanwhile"}
    with rig.simulator.session() as call:
        found = {rec["uuid"]: ref for ref, rec in call("VDI.get_all_records").items()}
        assert orphan not in found
        call("VDI.destroy", found[foreign])
    rig.assert_nothing_is_left()


MATRIX = Matrix(
    [("host.get_servertime", 1), ("VDI.get_record", 1), ("Async.VDI.destroy", 1), ("task.destroy", 1)],
    prepare,
    submit,
    check,
)


def test_the_matrix_has_every_call(rig: Rig) -> None:
    MATRIX.assert_is_complete(rig)


@MATRIX.at_every_call
def test_an_accident_changes_nothing(rig: Rig, accident: Accident) -> None:
    MATRIX.endure(rig, accident)
