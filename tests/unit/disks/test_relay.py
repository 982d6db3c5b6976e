"""A relay proves that all arrived, and says nothing of a disk before."""

from __future__ import annotations

import random

import pytest

from tests.support.partitioned import MIB, Stream, Watch, export
from worker.disks import relay
from worker.errors import ImageFormatRefused, TruncatedStream
from worker.images import vhd

RAW = random.Random(1).randbytes(5 * MIB)
AFTER = RAW[: 3 * MIB] + bytes(16) + RAW[3 * MIB + 16 :]


@pytest.mark.parametrize(("data", "kind"), [(export(RAW), vhd.DYNAMIC), (export(AFTER, RAW), vhd.DIFFERENCING)])
def test_every_byte_arrives(data: bytes, kind: int) -> None:
    source, target = Stream(data), Stream()
    relay.relay(source, relay.open_head(source, kind), target, Watch())
    assert target.data == data
    assert source.is_confirmed
    assert target.is_confirmed


@pytest.mark.parametrize("lost", [1, 512, 513, 3 * MIB])
def test_an_export_that_breaks_off_never_gets_its_closing_footer(lost: int) -> None:
    data = export(RAW)
    source, target = Stream(data[:-lost]), Stream()
    with pytest.raises(TruncatedStream):
        relay.relay(source, relay.open_head(source, vhd.DYNAMIC), target, Watch())
    assert len(target.data) <= len(data) - 512
    assert not target.is_confirmed


def test_a_stream_that_goes_on_is_none() -> None:
    source, target = Stream(export(RAW) + b"x"), Stream()
    with pytest.raises(TruncatedStream, match="goes on"):
        relay.relay(source, relay.open_head(source, vhd.DYNAMIC), target, Watch())
    assert not target.is_confirmed


def test_a_difference_is_not_taken_for_a_disk_nor_a_disk_for_a_difference() -> None:
    with pytest.raises(ImageFormatRefused):
        relay.open_head(Stream(export(AFTER, RAW)), vhd.DYNAMIC)
    with pytest.raises(ImageFormatRefused, match="a difference was asked for"):
        relay.open_head(Stream(export(RAW)), vhd.DIFFERENCING)


def test_the_pool_is_asked_before_the_end_is_told() -> None:
    class Doubtful(Stream):
        def confirm(self, *, verified: bool = False) -> None:
            assert verified
            raise TruncatedStream("the pool says no")

    source, target = Doubtful(export(RAW)), Stream()
    with pytest.raises(TruncatedStream, match="says no"):
        relay.relay(source, relay.open_head(source, vhd.DYNAMIC), target, Watch())
    assert len(target.data) == len(source.data) - 512
