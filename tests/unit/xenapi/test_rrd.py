"""Round-robin documents: what is read of them, and what is refused."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.unit.xenapi.stub import Call, StubHost, pool_of
from worker.errors import PermanentError, PoolUnreachable, TruncatedStream
from worker.xenapi import rrd
from worker.xenapi.rrd_xml import Figures, FiguresReader, Incomplete, Malformed, Updates, UpdatesReader
from worker.xenapi.session import Session

VM = "11111111-2222-3333-4444-555555555555"
XPORT = f"""<?xml version="1.0" encoding="UTF-8"?>
<xport><meta><start>10</start><step>5</step><end>20</end><rows>3</rows><columns>3</columns>
<legend><entry>AVERAGE:vm:{VM}:cpu0</entry><entry>AVERAGE:vm:{VM}:vif_0_rx</entry>
<entry>AVERAGE:vm:{VM}:vif_0_tx</entry></legend></meta><data>
<row><t>20</t><v>0.25</v><v>300.5</v><v>NaN</v></row>
<row><t>15</t><v>0.0</v><v>Infinity</v><v>1e3</v></row>
<row><t>10</t><v>0.0</v><v>-Infinity</v><v>0.0</v></row></data></xport>"""
RRD = """<?xml version="1.0" encoding="UTF-8"?>
<rrd><version>0003</version><step>5</step><lastupdate>1767225600.123</lastupdate>
<ds><name>cpu0</name><type>DERIVE</type><value>0.75</value></ds>
<ds><name>memory</name><type>GAUGE</type><value>5.0</value></ds>
<rra><cf>AVERAGE</cf><pdp_per_row>1</pdp_per_row><params><xff>0.5</xff></params>
<cdp_prep><ds><name>not a source</name><value>9.0</value></ds></cdp_prep>
<database><row><v>0.1</v><v>1.0</v></row><row><v>0.2</v><v>268435456.0</v></row></database></rra>
<rra><cf>AVERAGE</cf><pdp_per_row>12</pdp_per_row><database><row><v>0.9</v><v>9.0</v></row></database></rra></rrd>"""
LAUGHS = """<?xml version="1.0"?><!DOCTYPE xport [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<xport><meta><step>&b;</step></meta></xport>"""
OUTSIDE = """<?xml version="1.0"?><!DOCTYPE xport SYSTEM "file:///etc/passwd"><xport/>"""


def is_vif(entry: str) -> bool:
    return ":vif_" in entry


def read(text: str, *, pieces_of: int = 7, max_bytes: int = 1 << 20) -> Updates:
    reader = UpdatesReader(is_vif, max_bytes)
    feed(reader.feed, text, pieces_of)
    reader.close()
    return reader.updates


def read_figures(text: str) -> Figures:
    reader = FiguresReader(1 << 20)
    feed(reader.feed, text, 11)
    reader.close()
    return reader.figures


def feed(take: Callable[[bytes], None], text: str, pieces_of: int) -> None:
    data = text.encode()
    for begin in range(0, len(data), pieces_of):
        take(data[begin : begin + pieces_of])


@pytest.mark.parametrize("pieces_of", [1, 7, 64, 100_000])
def test_only_the_wanted_columns_are_kept_oldest_row_first(pieces_of: int) -> None:
    updates = read(XPORT, pieces_of=pieces_of)
    assert updates.columns == [f"AVERAGE:vm:{VM}:vif_0_rx", f"AVERAGE:vm:{VM}:vif_0_tx"]
    assert updates.step_s == 5
    assert [moment for moment, _ in updates.rows] == [10, 15, 20]
    assert updates.rows[0][1] == [-math.inf, 0]
    assert updates.rows[1][1] == [math.inf, 1000]
    assert updates.rows[2][1][0] == 300.5
    assert math.isnan(updates.rows[2][1][1])


def test_a_document_without_rows_is_one() -> None:
    updates = read("<xport><meta><step>5</step><legend/></meta><data/></xport>")
    assert (updates.columns, updates.rows) == ([], [])


def test_the_newest_row_of_the_finest_archive_tells_the_figures() -> None:
    figures = read_figures(RRD)
    assert figures.last_update == 1767225600.123
    assert figures.values == {"cpu0": 0.2, "memory": 268435456.0}


def test_a_source_without_a_cell_yet_is_left_out() -> None:
    more = RRD.replace("<rra>", "<ds><name>vif_0_rx</name></ds><rra>", 1)
    assert read_figures(more).values == {"cpu0": 0.2, "memory": 268435456.0}


@pytest.mark.parametrize("text", [LAUGHS, OUTSIDE])
def test_a_document_type_is_refused_and_with_it_every_entity(text: str) -> None:
    with pytest.raises(Malformed, match="document type"):
        read(text)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("<html><body>Welcome</body></html>", "begins with 'html'"),
        ("no XML <at all>", "syntax error|not well-formed"),
        (XPORT.replace("300.5", "many"), "many"),
        (XPORT.replace("<v>300.5</v>", ""), "as many cells"),
        (XPORT.replace("<v>300.5</v>", "<v>300.5</v><v>1</v>"), "index"),
        ("<xport>" + "<a>" * 100, "nested too deeply"),
        (f"<xport><meta><step>{'5' * 5000}</step>", "too long"),
        ("<xport>&unknown;</xport>", "undefined entity"),
    ],
)
def test_what_is_no_such_document_is_refused(text: str, match: str) -> None:
    with pytest.raises(Malformed, match=match):
        read(text, pieces_of=1 << 16)


def test_a_document_that_does_not_end_is_refused_at_its_limit() -> None:
    with pytest.raises(Malformed, match="larger"):
        read(XPORT, max_bytes=200)


def test_half_a_document_is_told_from_a_wrong_one() -> None:
    with pytest.raises(Incomplete):
        read(XPORT[:-20])


# -- over HTTP


@pytest.fixture
def host() -> Iterator[StubHost]:
    with StubHost() as stub:
        yield stub


@pytest.fixture
def session(host: StubHost) -> Iterator[Session]:
    with pool_of(host.url, stream_timeout_s=0.5) as pool:
        yield pool.session()


def answering(text: str, status: str = "200 OK", extra: str = "") -> Callable[[socket.socket, Call], None]:
    def serve(sock: socket.socket, _: Call) -> None:
        sock.sendall(f"HTTP/1.1 {status}\r\nConnection: close\r\n{extra}\r\n{text}".encode())

    return serve


def test_updates_are_asked_for_with_the_session_in_the_cookie_only(host: StubHost, session: Session) -> None:
    host.transfer = answering(XPORT)
    updates = rrd.updates(session, None, 100, 60, is_vif)
    assert len(updates.rows) == 3
    (call,) = (call for call in host.calls if call.method == "GET")
    assert call.path == "/rrd_updates?start=100&interval=60&cf=AVERAGE"
    assert call.headers["cookie"] == f"session_id={session.session_ref()}"
    assert "authorization" not in call.headers


def test_the_figures_of_a_vm_are_fetched_from_the_host_that_has_them(host: StubHost, session: Session) -> None:
    with StubHost(address="127.0.0.2") as other:
        other.transfer = answering(RRD)
        host.transfer = answering("", "302 Found", f"Location: http://127.0.0.2:{other.port}/vm_rrd?uuid={VM}\r\n")
        figures = rrd.of_vm(session, VM)
        (call,) = other.calls
    assert figures is not None
    assert figures.values["cpu0"] == 0.2
    assert call.path == f"/vm_rrd?uuid={VM}"


def test_a_vm_that_never_ran_has_no_figures(host: StubHost, session: Session) -> None:
    host.transfer = answering("<html/>", "404 Not Found")
    assert rrd.of_vm(session, VM) is None


@pytest.mark.parametrize(
    ("text", "status", "error", "match"),
    [
        (XPORT[:-30], "200 OK", TruncatedStream, "broke off"),
        ("", "200 OK", TruncatedStream, "broke off"),
        (LAUGHS, "200 OK", PermanentError, "no round-robin data"),
        ("<html/>", "500 Internal Error", PoolUnreachable, "HTTP 500"),
        ("<html/>", "403 Forbidden", PermanentError, "HTTP 403"),
        ("<html/>", "401 Unauthorised", PoolUnreachable, "does not know the session"),
    ],
)
def test_what_goes_wrong_is_told_without_the_session(
    host: StubHost, session: Session, text: str, status: str, error: type[Exception], match: str
) -> None:
    host.transfer = answering(text, status)
    with pytest.raises(error, match=match) as told:
        rrd.updates(session, None, 0, 0, is_vif)
    assert session.session_ref() not in str(told.value)


def test_a_host_that_falls_silent_is_given_up(host: StubHost, session: Session) -> None:
    def serve(sock: socket.socket, _: Call) -> None:
        sock.sendall(f"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{XPORT[:100]}".encode())
        sock.settimeout(20)
        sock.recv(1)

    host.transfer = serve
    with pytest.raises(TruncatedStream, match="timed out"):
        rrd.updates(session, None, 0, 0, is_vif)


def test_a_session_apart_is_a_login_of_its_own_and_ends_once(host: StubHost) -> None:
    with pool_of(host.url) as pool:
        shared = pool.session_ref()
        apart = pool.begin_session("console")
        assert apart != shared == pool.session_ref()
        originators = [call.params[3] for call in host.calls if call.method == "session.login_with_password"]
        assert originators == ["vmops", "vmops-console"]
        pool.end_session(apart)
        assert host.sessions == {shared}
        pool.end_session(apart)
