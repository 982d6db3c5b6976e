"""The VHD structures against vectors, and the two bitmap helpers against a simple spelling of what they do."""

from __future__ import annotations

import random

import pytest

from simulator.storage import vhd
from simulator.storage.streams import vhd_length
from simulator.storage.vhd import Footer, Header, VhdFormatError
from simulator.storage.vhdfile import FULL, mask, runs

MIB = 1024**2
GIB = 1024**3


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (16 * MIB, (481, 4, 17)),
        (5 * MIB + 512, (150, 4, 17)),
        (1900 * GIB, (65535, 16, 255)),
        (2040 * GIB, (65535, 16, 255)),
        (504 * MIB, (1024, 16, 63)),
    ],
)
def test_geometry_is_the_one_other_writers_compute(size: int, expected: tuple[int, int, int]) -> None:
    assert vhd.geometry(size // 512) == expected


def test_geometry_never_exceeds_the_disk() -> None:
    chosen = random.Random(1)
    for _ in range(2000):
        sectors = chosen.randrange(1, 2 ** chosen.randrange(1, 33))
        cylinders, heads, per_track = vhd.geometry(sectors)
        assert cylinders * heads * per_track <= sectors
        assert cylinders <= 65535
        assert heads <= 16
        assert per_track <= 255


def test_footer_is_packed_byte_by_byte_as_the_format_says() -> None:
    raw = Footer(16 * MIB, vhd.TYPE_DYNAMIC, bytes(range(16)), hidden=True).pack()
    size = (16 * MIB).to_bytes(8, "big")
    expected = (
        b"conectix" + bytes.fromhex("00000002 00010000 0000000000000200 00000000") + b"tap\0"
        + bytes.fromhex("00000001 00000000") + size + size + bytes.fromhex("01e1 04 11 00000003")
        + raw[64:68] + bytes(range(16)) + b"\0\x01" + bytes(426)
    )  # fmt: skip
    assert raw == expected
    assert int.from_bytes(raw[64:68], "big") == 0xFFFFFFFF - sum(raw[:64] + raw[68:])


@pytest.mark.parametrize("at", [0, 12, 50, 64, 85, 511])
def test_a_footer_with_any_byte_changed_is_refused(at: int) -> None:
    raw = bytearray(Footer(16 * MIB, vhd.TYPE_DYNAMIC, bytes(16)).pack())
    raw[at] ^= 1
    with pytest.raises(VhdFormatError):
        Footer.parse(raw)


def test_footer_and_header_come_back_as_they_were_packed() -> None:
    footer = Footer(5 * MIB + 512, vhd.TYPE_DIFFERENCING, vhd.new_id(), hidden=True, creator=b"caml", creator_version=7)
    assert Footer.parse(footer.pack()) == footer
    locators, sectors = vhd.locators_for("base.vhd", 4096)
    header = Header(1536, 3, parent_id=vhd.new_id(), parent_name="base.vhd", locators=locators)
    assert Header.parse(header.pack()) == header
    assert [locator.code for locator in locators] == [b"MacX", b"W2ku", b"W2ru"]
    assert len(sectors) == 3 * 512


@pytest.mark.parametrize(("at", "text"), [(0, "cxsparse"), (24, "version"), (300, "checksum")])
def test_a_header_with_any_byte_changed_is_refused(at: int, text: str) -> None:
    raw = bytearray(Header(1536, 3).pack())
    raw[at] ^= 1
    with pytest.raises(VhdFormatError, match=text):
        Header.parse(raw)


def test_short_structures_are_refused() -> None:
    with pytest.raises(VhdFormatError):
        Footer.parse(b"conectix")
    with pytest.raises(VhdFormatError):
        Header.parse(b"cxsparse")


def test_length_of_an_export_is_the_one_measured_on_a_real_tool() -> None:
    assert vhd_length(GIB, 37) == 77_618_176


def test_metadata_takes_what_a_real_pool_shows() -> None:
    """3584 bytes for an empty disk (xapi-observed.md), 5120 for an empty child of 16 MiB (images.md 8.7)."""
    assert vhd.metadata_size(4, differencing=False) + 512 == 3584
    assert vhd.metadata_size(8, differencing=True) + 512 == 5120


def test_mask_and_runs_agree_with_one_bit_at_a_time() -> None:
    chosen = random.Random(2)
    for _ in range(50):
        spans: list[tuple[int, int]] = []
        at = 0
        while at < 4096 and len(spans) < 40:
            start = at + chosen.randrange(1, 60)
            count = chosen.randrange(1, 200)
            if start + count > 4096:
                break
            spans.append((start, count))
            at = start + count
        bits = 0
        for start, count in spans:
            bits |= mask(start, count)
        assert list(runs(bits)) == spans
        set_sectors = {sector for start, count in spans for sector in range(start, start + count)}
        assert {sector for sector in range(4096) if bits >> (4095 - sector) & 1} == set_sectors
    assert list(runs(FULL)) == [(0, 4096)]
    assert list(runs(0)) == []
    assert list(runs(0b1011, width=8)) == [(4, 1), (6, 2)]
