"""Round-robin data on the wire: documents, redirects, data sources, and figures that agree with what happened."""

from __future__ import annotations

import http.client
import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.simulator import Client, SimulatorProcess
from tests.support.worker import eventually

_WRITE = 4096


class Caller(Client):
    """A client that can also GET."""

    def __init__(self, simulator: SimulatorProcess) -> None:
        super().__init__(simulator)
        self.simulator = simulator

    def get(self, path: str, address: str | None = None, **headers: str) -> tuple[int, dict[str, str], str]:
        """Return status, headers (names in lower case) and body of a GET with the session."""
        target = f"{path}{'&' if '?' in path else '?'}session_id={self.ref}"
        return self.fetch(target, address, **headers)

    def fetch(self, target: str, address: str | None = None, **headers: str) -> tuple[int, dict[str, str], str]:
        """Return the same without a session."""
        host = address or "127.0.0.1"
        with closing(http.client.HTTPConnection(host, self.simulator.port, timeout=30)) as connection:
            connection.request("GET", target, headers=headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()

    def updates(self, query: str) -> dict[str, Any]:
        """Return /rrd_updates as JSON."""
        status, _headers, body = self.get(f"/rrd_updates?{query}&json=true")
        assert status == http.HTTPStatus.OK, body
        found: dict[str, Any] = json.loads(body)
        return found

    def column(self, query: str, name: str) -> list[float]:
        """Return one column, newest first."""
        document = self.updates(query)
        (position,) = [at for at, entry in enumerate(document["meta"]["legend"]) if entry.endswith(f":{name}")]
        return [float(row["values"][position]) for row in document["data"]]

    def advance(self, seconds: float) -> int:
        """Push the pool's clock forward; return its time."""
        return int(self.simulator.control("POST", "clock", {"advance": seconds})["now"])

    def full(self, path: str, address: str | None = None) -> dict[str, Any]:
        """Return a full document by data source name."""
        status, _headers, body = self.get(f"{path}&json", address)
        assert status == http.HTTPStatus.OK, body
        return {source["name"]: source for source in json.loads(body)["ds"]}


OPTIONS = ("--hosts", "2", "--seed", "7")


@pytest.fixture
def call(simulator: SimulatorProcess) -> Iterator[Caller]:
    with closing(Caller(simulator)) as client:
        yield client


@pytest.fixture
def vm(call: Caller) -> Iterator[tuple[str, str]]:
    """A VM that runs on the master: reference and uuid."""
    made = call.simulator.add_vm(name="measured")
    call("VM.start_on", made["ref"], master(call), False, False)
    eventually(lambda: bool(call("VM_guest_metrics.get_os_version", call("VM.get_guest_metrics", made["ref"]))))
    yield made["ref"], made["uuid"]
    if call("VM.get_power_state", made["ref"]) != "Halted":
        call("VM.hard_shutdown", made["ref"])
    call("VM.destroy", made["ref"])


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314 - the simulator's own document


def master(call: Caller) -> str:
    (pool,) = call("pool.get_all_records").values()
    ref: str = pool["master"]
    return ref


def other_host(call: Caller) -> str:
    (ref,) = set(call("host.get_all")) - {master(call)}
    return str(ref)


def test_updates_are_an_xport_document_newest_row_first(call: Caller, vm: tuple[str, str]) -> None:
    now = call.advance(300)
    status, headers, body = call.get(f"/rrd_updates?start={now - 60}&host=true&cf=AVERAGE&interval=5")
    assert status == http.HTTPStatus.OK
    assert headers["content-type"] == "text/xml"
    root = parsed(body)
    assert [child.tag for child in root] == ["meta", "data"]
    meta = {child.tag: child.text for child in root[0]}
    legend = [entry.text or "" for entry in root.iterfind("meta/legend/entry")]
    rows = root.findall("data/row")
    ends = [int(row.findtext("t", "")) for row in rows]
    assert list(meta) == ["start", "step", "end", "rows", "columns", "legend"]
    assert meta["step"] == "5"
    assert (int(meta["rows"] or 0), int(meta["columns"] or 0)) == (len(rows), len(legend))
    assert ends == sorted(ends, reverse=True)
    assert {one - two for one, two in pairwise(ends)} == {5}
    assert (meta["start"], meta["end"]) == (str(ends[-1]), str(ends[0]))
    assert min(ends) > now - 60
    assert all(len(row.findall("v")) == len(legend) for row in rows)
    kinds = {tuple(entry.split(":", 3)[:3]) for entry in legend}
    host_uuid = call("host.get_uuid", master(call))
    assert {("AVERAGE", "vm", vm[1]), ("AVERAGE", "host", host_uuid)} <= kinds
    names = {entry.split(":", 3)[3] for entry in legend if vm[1] in entry}
    assert {"cpu0", "memory", "memory_target", "memory_internal_free", "vif_0_rx", "vif_0_tx", "vbd_xvda_read",
            "vbd_xvda_write"} <= names  # fmt: skip


def test_json_has_the_same_figures_and_every_number_is_a_string(call: Caller, vm: tuple[str, str]) -> None:
    now = call.advance(300)
    query = f"/rrd_updates?start={now - 120}&vm_uuid={vm[1]}&interval=60"
    _status, headers, body = call.get(query, Accept="application/json")
    assert headers["content-type"] == "application/json"
    document = json.loads(body, parse_int=pytest.fail, parse_float=pytest.fail)
    root = parsed(call.get(query)[2])
    assert document["meta"]["step"] == root.findtext("meta/step") == "60"
    assert document["meta"]["legend"] == [entry.text for entry in root.iterfind("meta/legend/entry")]
    by_xml = [[value.text for value in row] for row in root.iterfind("data/row")]
    assert [[row["t"], *row["values"]] for row in document["data"]] == by_xml


def test_updates_want_a_session_and_a_start(call: Caller, vm: tuple[str, str]) -> None:
    assert call.fetch("/rrd_updates?start=0")[0] == http.HTTPStatus.UNAUTHORIZED
    assert call.get("/rrd_updates")[0] == http.HTTPStatus.BAD_REQUEST
    assert call.get("/rrd_updates?start=soon")[0] == http.HTTPStatus.BAD_REQUEST
    assert call.get("/rrd_updates?start=0&cf=MAX")[0] == http.HTTPStatus.INTERNAL_SERVER_ERROR
    assert call.get("/rrd_updates?start=0&vm_uuid=none")[0] == http.HTTPStatus.INTERNAL_SERVER_ERROR
    assert call.updates(f"start=0&cf=AVERAGE&vm_uuid={vm[1]}")["meta"]["step"] == "86400"


def test_a_negative_start_counts_from_the_last_sample(call: Caller, vm: tuple[str, str]) -> None:
    call.advance(300)
    assert len(call.updates(f"start=-60&vm_uuid={vm[1]}")["data"]) in (12, 13)


def test_vm_uuid_may_be_repeated_and_keeps_others_out(call: Caller, vm: tuple[str, str]) -> None:
    (dom0,) = (uuid for uuid in (call("VM.get_uuid", call("host.get_control_domain", master(call))),))
    legend = call.updates(f"start=-30&vm_uuid={vm[1]}&vm_uuid={dom0}")["meta"]["legend"]
    assert {entry.split(":")[2] for entry in legend} == {vm[1], dom0}
    legend = call.updates(f"start=-30&vm_uuid={vm[1]}")["meta"]["legend"]
    assert {entry.split(":")[2] for entry in legend} == {vm[1]}


def test_figures_cover_the_time_that_the_clock_jumped(call: Caller, vm: tuple[str, str]) -> None:
    now = call.advance(3 * 3600)
    rates = call.column(f"start={now - 7000}&interval=60&vm_uuid={vm[1]}", "vif_0_rx")
    assert len(rates) > 110
    assert all(rate > 0 for rate in rates)
    assert len(set(rates)) == len(rates)
    assert call.column(f"start={now - 7000}&interval=60&vm_uuid={vm[1]}", "vif_0_rx")[-100:] == rates[-100:]


def test_the_guests_disk_shows_what_the_guest_writes(call: Caller, vm: tuple[str, str]) -> None:
    call.advance(60)
    assert call("VM.query_data_source", vm[0], "vbd_xvda_write") == pytest.approx(5 * _WRITE)
    call.simulator.control("POST", f"guests/{vm[1]}", {"writes_per_s": 50})
    call("VM.add_tags", vm[0], "seen")
    call.advance(60)
    assert call("VM.query_data_source", vm[0], "vbd_xvda_write") == pytest.approx(50 * _WRITE)


def test_counters_grow_by_the_rates_and_begin_anew_with_a_domain(call: Caller, vm: tuple[str, str]) -> None:
    call.advance(60)
    path = f"/vm_rrd?uuid={vm[1]}"
    before = call.full(path)
    call.advance(600)
    after = call.full(path)
    for name in ("vif_0_rx", "vif_0_tx", "vbd_xvda_read"):
        rates = call.column(f"start=-590&interval=5&vm_uuid={vm[1]}", name)
        grown = float(after[name]["last_ds"]) - float(before[name]["last_ds"])
        assert grown == pytest.approx(600 * sum(rates) / len(rates), rel=0.1)
        assert after[name]["type"] == "DERIVE"
    assert after["memory"]["last_ds"] == str(256 << 20)
    call("VM.hard_reboot", vm[0])
    call.advance(10)
    rebooted = call.full(path)
    assert float(rebooted["vif_0_rx"]["last_ds"]) < float(after["vif_0_rx"]["last_ds"]) / 2
    assert sum(math.isnan(rate) for rate in call.column(f"start=-500&interval=5&vm_uuid={vm[1]}", "vif_0_rx")) <= 2


def test_a_paused_vm_uses_no_cpu(call: Caller, vm: tuple[str, str]) -> None:
    call("VM.pause", vm[0])
    call.advance(60)
    assert call("VM.query_data_source", vm[0], "cpu0") == 0
    assert call("VM.query_data_source", vm[0], "memory") == 256 << 20
    call("VM.unpause", vm[0])
    call.advance(60)
    assert call("VM.query_data_source", vm[0], "cpu0") > 0


def test_the_full_document_is_laid_out_as_rrdd_writes_it(call: Caller, vm: tuple[str, str]) -> None:
    call.advance(900)
    status, headers, body = call.get(f"/vm_rrd?uuid={vm[1]}")
    assert status == http.HTTPStatus.OK
    assert headers["access-control-allow-origin"] == "*"
    root = parsed(body)
    assert [child.tag for child in root][:4] == ["version", "step", "lastupdate", "ds"]
    assert (root.findtext("version"), root.findtext("step")) == ("0003", "5")
    assert [child.tag for child in root.findall("ds")[0]] == [
        "name", "type", "minimal_heartbeat", "min", "max", "last_ds", "value", "unknown_sec",
    ]  # fmt: skip
    shapes = [(rra.findtext("pdp_per_row"), len(rra.findall("database/row"))) for rra in root.findall("rra")]
    assert shapes == [("1", 120), ("12", 120), ("720", 168), ("17280", 366)]
    count = len(root.findall("ds"))
    assert all(len(row.findall("v")) == count for row in root.iterfind("rra/database/row"))
    assert all(len(rra.findall("cdp_prep/ds")) == count for rra in root.findall("rra"))
    newest = root.findall("rra")[0].findall("database/row")[-1].findtext("v")
    assert float(newest or "nan") == pytest.approx(call("VM.query_data_source", vm[0], "cpu0"), rel=0.9)


def test_a_vm_elsewhere_is_redirected_to_and_an_ended_one_is_the_masters(call: Caller, vm: tuple[str, str]) -> None:
    elsewhere = call("host.get_address", other_host(call))
    path = f"/vm_rrd?uuid={vm[1]}"
    status, headers, _body = call.get(path, elsewhere)
    assert status == http.HTTPStatus.FOUND
    target = urlsplit(headers["location"])
    assert target.hostname == "127.0.0.1"
    assert call.fetch(f"{target.path}?{target.query}", target.hostname)[0] == http.HTTPStatus.OK
    call("VM.hard_shutdown", vm[0])
    call("VM.start_on", vm[0], other_host(call), False, False)
    assert call.get(path)[0] == http.HTTPStatus.FOUND
    assert call.get(path, elsewhere)[0] == http.HTTPStatus.OK
    assert not any(vm[1] in entry for entry in call.updates("start=-30")["meta"]["legend"])
    call("VM.hard_shutdown", vm[0])
    assert call.get(path)[0] == http.HTTPStatus.OK
    assert call.get(path, elsewhere)[0] == http.HTTPStatus.FOUND


def test_what_was_never_measured_is_not_found(call: Caller) -> None:
    made = call.simulator.add_vm(name="never ran")
    assert call.get(f"/vm_rrd?uuid={made['uuid']}")[0] == http.HTTPStatus.NOT_FOUND
    for path in ("/vm_rrd", "/sr_rrd"):
        assert call.get(path)[0] == http.HTTPStatus.BAD_REQUEST
        assert call.get(f"{path}?uuid=nobody")[0] == http.HTTPStatus.NOT_FOUND
    call("VM.destroy", made["ref"])


def test_host_and_repository_have_data_of_their_own(call: Caller) -> None:
    call.advance(60)
    host = call.full("/host_rrd?x")
    assert {"cpu0", "cpu_avg", "loadavg", "memory_total_kib", "memory_free_kib", "pif_eth0_rx", "pif_aggr_tx"} <= set(
        host
    )
    assert host["memory_total_kib"]["last_ds"] == str(
        int(call("host_metrics.get_memory_total", call("host.get_metrics", master(call)))) // 1024
    )
    (pool,) = call("pool.get_all_records").values()
    sr_uuid = call("SR.get_uuid", pool["default_SR"])
    assert "io_throughput_total" in call.full(f"/sr_rrd?uuid={sr_uuid}")
    legend = call.updates(f"start=-30&sr_uuid={sr_uuid}&vm_uuid=none")["meta"]["legend"]
    assert {entry.split(":")[1] for entry in legend} == {"sr"}


@pytest.mark.parametrize("cls", ["VM", "host", "SR"])
def test_data_sources_are_recorded_forgotten_and_asked_for(call: Caller, vm: tuple[str, str], cls: str) -> None:
    (pool,) = call("pool.get_all_records").values()
    ref = {"VM": vm[0], "host": pool["master"], "SR": pool["default_SR"]}[cls]
    name = {"VM": "vif_0_rx_errors", "host": "running_domains", "SR": "inflight"}[cls]
    call.advance(30)
    listed = {one["name_label"]: one for one in call(f"{cls}.get_data_sources", ref)}
    assert set(listed[name]) == {
        "name_label",
        "name_description",
        "enabled",
        "standard",
        "units",
        "min",
        "max",
        "value",
    }
    assert (listed[name]["enabled"], listed[name]["standard"]) == (False, False)
    assert call.error(f"{cls}.query_data_source", ref, name)[0] == "INTERNAL_ERROR"
    call(f"{cls}.record_data_source", ref, name)
    call.advance(30)
    assert call(f"{cls}.query_data_source", ref, name) >= 0
    call(f"{cls}.forget_data_source_archives", ref, name)
    assert call.error(f"{cls}.query_data_source", ref, name)[0] == "INTERNAL_ERROR"
    for operation in ("query_data_source", "record_data_source", "forget_data_source_archives"):
        assert call.error(f"{cls}.{operation}", ref, "nothing of the kind")[0] == "INTERNAL_ERROR"


def test_the_data_sources_of_a_halted_vm_are_refused_as_seen(call: Caller, vm: tuple[str, str]) -> None:
    call("VM.hard_shutdown", vm[0])
    refusal = ["VM_BAD_POWER_STATE", vm[0], "running;paused", "halted"]
    assert call.error("VM.query_data_source", vm[0], "cpu0") == refusal
    assert call.error("VM.get_data_sources", vm[0]) == refusal


def test_free_memory_follows_the_vms(call: Caller, vm: tuple[str, str]) -> None:
    metrics = call("host.get_metrics", master(call))

    def free() -> int:
        call.advance(10)
        return int(call("host_metrics.get_record", metrics)["memory_free"])

    eventually(lambda: free() == int(call("host.compute_free_memory", master(call))))
    running = free()
    call("VM.hard_shutdown", vm[0])
    eventually(lambda: free() >= running + (256 << 20))
    assert free() == int(call("host.compute_free_memory", master(call)))
    call("host.backup_rrds", master(call), 0.0)


def test_the_data_outlive_the_process() -> None:
    with SimulatorProcess("--vms", "1", "--guest-writes", "0") as simulator:
        with closing(Caller(simulator)) as before:
            uuid = before("VM.get_uuid", before.find_vm("demo-01"))
            eventually(lambda: before.get(f"/vm_rrd?uuid={uuid}")[0] == http.HTTPStatus.OK)
            began = before.simulator.control("POST", "clock", {"advance": 0})["now"]
        simulator.stop()
        simulator.start()
        with closing(Caller(simulator)) as after:
            after.advance(65)  # the first of the intervals of 5 s may be cut
            known = after.column(f"start={int(began) - 30}&interval=5&vm_uuid={uuid}", "cpu0")
            assert sum(not math.isnan(value) for value in known) >= 12
