"""The arithmetic of round-robin data: curves, archives, timelines, and that all figures agree with each other."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.metrics import archives, curves
from simulator.metrics.archives import ARCHIVES, Archive
from simulator.metrics.documents import number
from simulator.metrics.rrd import Rrd
from simulator.metrics.sources import Device, HostShape, Source, VmShape, host_sources, vm_sources
from simulator.metrics.timeline import SEGMENTS_KEPT, Segment, Timeline

START = 1_800_000_000.0


def segment(began: float, label: str = "h 1", *, live: bool = True, moves: bool = True, rate: float = 0.0) -> Segment:
    return Segment(began, label, is_live=live, is_moving=live and moves, levels=(rate, 1024.0 if live else 0.0))


def timeline(*segments: Segment) -> Timeline:
    found = Timeline([])
    for one in segments:
        found = found.then(one)
    return found


def sources(key: str = "0/vm") -> list[Source]:
    devices = (Device("vif_0"), Device("vbd_xvda", is_written=True))
    return vm_sources(VmShape(key, cpus=2, memory=1 << 30, reports_memory=True, devices=devices))


def rrd(made: Timeline, last_update: float) -> Rrd:
    return Rrd("vm", "uuid", made, sources(), last_update)


@given(st.text(max_size=20), st.floats(0, 1e8))
def test_a_wave_is_never_negative(key: str, moment: float) -> None:
    assert curves.dot(curves.wave(key), curves.values(moment)) >= 0


@given(st.text(max_size=20), st.floats(0, 1e7), st.floats(0, 1e5))
def test_the_integral_of_a_wave_never_falls(key: str, moment: float, passed: float) -> None:
    before = curves.dot(curves.wave(key), curves.integrals(moment))
    after = curves.dot(curves.wave(key), curves.integrals(moment + passed))
    assert after >= before - 1e-6


def test_the_integral_is_that_of_the_values() -> None:
    weights = curves.wave("any")
    steps = 20_000
    width = 300 / steps
    by_hand = math.fsum(curves.dot(weights, curves.values((index + 0.5) * width)) * width for index in range(steps))
    assert by_hand == pytest.approx(curves.dot(weights, curves.integrals(300)), rel=1e-6)


def test_the_archives_are_those_of_xapi() -> None:
    assert [(one.step_s, one.rows) for one in ARCHIVES] == [(5, 120), (60, 120), (3600, 168), (86400, 366)]


@given(st.floats(1e9, 2e9), st.sampled_from(ARCHIVES))
def test_rows_end_at_multiples_of_their_length_and_the_newest_is_complete(now: float, archive: Archive) -> None:
    ends = archive.ends(now)
    assert len(ends) == archive.rows
    assert all(end % archive.step_s == 0 for end in ends)
    assert ends[0] <= now < ends[0] + archive.step_s
    assert ends == sorted(ends, reverse=True)


@pytest.mark.parametrize(
    ("back_s", "interval_s", "step_s"),
    [(30, 0, 5), (30, 5, 5), (590, 5, 5), (601, 5, 60), (30, 60, 60), (7000, 0, 60), (8000, 0, 3600), (30, 3600, 3600),
     (700_000, 0, 86400), (30, 86400, 86400), (10**9, 0, 86400), (30, 10**6, 86400)],
)  # fmt: skip
def test_the_archive_is_the_finest_that_reaches_back_and_is_not_finer_than_asked(
    back_s: int, interval_s: int, step_s: int
) -> None:
    assert archives.choose(START, START - back_s, interval_s).step_s == step_s


def test_a_minute_is_the_mean_of_its_samples_and_an_hour_that_of_its_minutes() -> None:
    data = rrd(timeline(segment(START, rate=4096.0)), START + 8000)
    for archive, finer in ((ARCHIVES[1], ARCHIVES[0]), (ARCHIVES[2], ARCHIVES[1])):
        end = archive.newest(data.last_update)
        parts = [
            data.row(end - (n + 1) * finer.step_s, end - n * finer.step_s)
            for n in range(archive.step_s // finer.step_s)
        ]
        means = [math.fsum(column) / len(parts) for column in zip(*parts, strict=True)]
        assert data.row(end - archive.step_s, end) == pytest.approx(means, rel=1e-6, abs=1e-9)


def test_a_counter_is_the_sum_of_its_rates() -> None:
    made = timeline(segment(START, rate=4096.0), segment(START + 300, moves=False), segment(START + 400, rate=4096.0))
    data = rrd(made, START + 1000)
    names = [source.name for source in data.sources]
    for name in ("vif_0_rx", "vif_0_tx", "vbd_xvda_read", "vbd_xvda_write"):
        column = names.index(name)
        total = math.fsum(5 * data.row(START + 5 * n, START + 5 * n + 5)[column] for n in range(200))
        assert data.last_samples()[column] == pytest.approx(total, abs=1.5)


def test_a_paused_domain_stands_still_and_keeps_its_memory() -> None:
    made = timeline(segment(START, rate=4096.0), segment(START + 100, moves=False))
    data = rrd(made, START + 200)
    row = dict(zip([source.name for source in data.sources], data.row(START + 110, START + 120), strict=True))
    assert row["memory"] == 1024.0
    assert row["vif_0_rx"] == row["vbd_xvda_write"] == row["cpu0"] == row["cpu_usage"] == 0
    before = made.counters(START + 100)[0][: curves.WIDTH]
    assert made.counters(START + 200)[0][: curves.WIDTH] == before


def test_a_new_domain_counts_from_zero_and_history_stays() -> None:
    made = timeline(segment(START, rate=10.0), segment(START + 100, "h 2", rate=10.0))
    assert made.counters(START + 101)[0][0] == pytest.approx(1.0)
    assert made.between(START, START + 100).vector[curves.WIDTH] == pytest.approx(1000)
    assert made.between(START + 50, START + 150).vector[curves.WIDTH] == pytest.approx(1000)


def test_a_row_is_unknown_when_less_than_half_of_it_is_known() -> None:
    data = rrd(timeline(segment(START + 2), segment(START + 13, live=False)), START + 20)
    first, second, third, fourth = (data.row(START + 5 * n, START + 5 * n + 5)[0] for n in range(4))
    assert not math.isnan(first)
    assert not math.isnan(second)
    assert not math.isnan(third)
    assert math.isnan(fourth)


def test_the_data_of_an_ended_domain_stop_where_it_ended() -> None:
    made = timeline(segment(START), segment(START + 50, live=False), segment(START + 60, "h 2", live=False))
    assert made.last_alive == START + 50
    assert made.counters(START + 100)[1] == 50
    assert timeline(segment(START)).last_alive is None


def test_forgetting_old_segments_leaves_counters_exact() -> None:
    made = timeline(segment(START, rate=7.0))
    for index in range(1, 3 * SEGMENTS_KEPT):
        made = made.then(segment(START + index, moves=index % 2 == 0, rate=7.0))
    assert len(made.segments) == SEGMENTS_KEPT
    assert made.counters(START + 3 * SEGMENTS_KEPT)[0][curves.WIDTH] == pytest.approx(7.0 * 3 * SEGMENTS_KEPT)


def test_a_clock_set_back_loses_what_lies_ahead() -> None:
    made = timeline(segment(START), segment(START + 100, moves=False)).then(segment(START + 50, "h 2"))
    assert [one.began for one in made.segments] == [START, START + 50]


def test_a_timeline_survives_json() -> None:
    made = timeline(segment(START, rate=3.5), segment(START + 10, moves=False), segment(START + 20, live=False))
    again = Timeline.read(json.loads(json.dumps(made.packed())))
    assert again.segments == made.segments


def test_a_device_plugged_later_was_unknown_before_and_counts_from_its_plugging() -> None:
    made = timeline(segment(START))
    late = Device("vif_1", since=START + 100, start=tuple(made.counters(START + 100)[0]))
    shape = VmShape("0/vm", cpus=1, memory=1, reports_memory=False, devices=(late,))
    data = Rrd("vm", "uuid", made, vm_sources(shape), START + 200)
    names = [source.name for source in data.sources]
    column = names.index("vif_1_rx")
    assert math.isnan(data.row(START + 50, START + 55)[column])
    total = math.fsum(5 * data.row(START + 5 * n, START + 5 * n + 5)[column] for n in range(20, 40))
    assert data.last_samples()[column] == pytest.approx(total, abs=1.5)


def test_figures_that_belong_together_agree() -> None:
    data = rrd(timeline(segment(START, rate=4096.0)), START + 100)
    row = dict(zip([source.name for source in data.sources], data.latest(), strict=True))
    assert row["cpu_usage"] == pytest.approx((row["cpu0"] + row["cpu1"]) / 2)
    assert row["vbd_xvda_iops_total"] == pytest.approx(row["vbd_xvda_iops_read"] + row["vbd_xvda_iops_write"])
    assert row["vbd_xvda_io_throughput_total"] == pytest.approx((row["vbd_xvda_read"] + row["vbd_xvda_write"]) / 2**20)
    assert math.fsum(value for name, value in row.items() if name.startswith("runstate_")) == pytest.approx(1)


def test_figures_move_and_come_again_with_the_same_key() -> None:
    def column(key: str) -> list[float]:
        data = Rrd("vm", "uuid", timeline(segment(START)), sources(key), START + 600)
        return [row[0] for _end, row in data.rows(ARCHIVES[0])]

    assert column("1/a") == column("1/a")
    assert column("1/a") != column("2/a")
    assert len(set(column("1/a"))) == 120


def test_a_hosts_cpus_and_interfaces_sum_up() -> None:
    shape = HostShape("0/h", cpus=4, total_kib=1000, interfaces=("eth0", "eth1"), repositories=("aaaa-b", "cccc-d"))
    made = Timeline([]).then(Segment(START, "", is_live=True, is_moving=True, levels=(300.0, 2.0, 0.5, 100.0)))
    data = Rrd("host", "uuid", made, host_sources(shape), START + 100)
    row = dict(zip([source.name for source in data.sources], data.latest(), strict=True))
    assert row["cpu_avg"] == pytest.approx(math.fsum(row[f"cpu{n}"] for n in range(4)) / 4)
    assert all(0.5 < row[f"cpu{n}"] <= 1 for n in range(4))
    assert row["memory_free_kib"] == pytest.approx(700)
    assert row["pif_aggr_rx"] == pytest.approx(row["pif_eth0_rx"] + row["pif_eth1_rx"])
    assert {"io_throughput_total_aaaa", "iops_read_cccc"} <= row.keys()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (0.1, "0.1"),
        (1 / 3, "0.333333333333333"),
        (2147483648.0, "2147483648"),
    ],
)
def test_numbers_look_as_xapi_prints_them(value: float, text: str) -> None:
    assert number(value) == text
