"""What is sent again after a break, and what never is."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from itertools import chain, repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.xenapi.stub import DROP, RESET, Call, Reply, StubHost, envelope, http_answer, pool_of, success
from worker.errors import LeaseLost, PoolUnreachable, UnknownResult
from worker.xenapi import connection
from worker.xenapi.session import SessionPool

CLONE = "VM.clone"
READ = "VM.get_record"
WHOLE = success("OpaqueRef:clone").data


@pytest.fixture
def host() -> Iterator[StubHost]:
    with StubHost() as stub:
        yield stub


@pytest.fixture
def pool(host: StubHost) -> Iterator[SessionPool]:
    with pool_of(host.url) as made:
        yield made


@pytest.mark.parametrize("reply", [DROP, RESET], ids=["closed", "reset"])
def test_a_changing_call_is_not_sent_again_when_its_answer_is_lost(
    host: StubHost, pool: SessionPool, reply: Reply
) -> None:
    session = pool.session()
    session.call(READ, "x")  # so that the connection is a kept-alive one, which the standard library would resend on
    host.answers[CLONE] = reply
    with pytest.raises(UnknownResult, match=r"'lab' did not answer VM\.clone .* may have taken effect"):
        session.call(CLONE, "OpaqueRef:vm", "copy")
    assert host.counted[CLONE] == 1


@pytest.mark.parametrize("kept", range(0, len(WHOLE), 29))
def test_a_partial_answer_to_a_changing_call_is_an_unknown_result(host: StubHost, pool: SessionPool, kept: int) -> None:
    host.answers[CLONE] = Reply(WHOLE[:kept], ends=True)
    with pytest.raises(UnknownResult):
        pool.session().call(CLONE, "OpaqueRef:vm", "copy")
    assert host.counted[CLONE] == 1


def test_a_changing_call_without_an_answer_in_time_is_an_unknown_result(host: StubHost) -> None:
    host.answers[CLONE] = Reply(WHOLE, after_s=0.6)
    with pool_of(host.url, call_timeout_s=0.3) as pool, pytest.raises(UnknownResult, match="timed out"):
        pool.session().call(CLONE, "OpaqueRef:vm", "copy")
    assert host.counted[CLONE] == 1


def test_an_answer_that_drips_does_not_outlast_the_time_for_a_call(host: StubHost) -> None:
    host.answers[CLONE] = Reply(WHOLE, after_s=0.05, pieces_of=4)
    begun_s = time.monotonic()
    with pool_of(host.url, call_timeout_s=0.4) as pool, pytest.raises(UnknownResult, match="timed out"):
        pool.session().call(CLONE, "OpaqueRef:vm", "copy")
    assert time.monotonic() - begun_s < 3
    host.drop_connections()


@pytest.mark.parametrize(
    "reply",
    [
        DROP,
        RESET,
        Reply(WHOLE[:40], ends=True),
        Reply(http_answer(b"<html>no XML-RPC")),
        Reply(http_answer(b"gone", "503 Service Unavailable")),
    ],
    ids=["closed", "reset", "partial", "not-xml", "503"],
)
def test_a_read_is_sent_again(host: StubHost, pool: SessionPool, reply: Reply) -> None:
    replies = chain([reply, reply], repeat(success({"uuid": "u"})))
    host.answers[READ] = lambda _: next(replies)
    assert pool.session().call(READ, "OpaqueRef:vm") == {"uuid": "u"}
    assert host.counted[READ] == 3
    assert pool.calls[READ] == 3


def test_a_read_gives_up_in_the_end(host: StubHost) -> None:
    host.answers[READ] = DROP
    with pool_of(host.url, patience_s=1.0) as pool:
        begun_s = time.monotonic()
        with pytest.raises(PoolUnreachable, match=r"'lab' does not answer VM\.get_record"):
            pool.session().call(READ, "OpaqueRef:vm")
    assert time.monotonic() - begun_s < 5
    assert host.counted[READ] >= 2


def test_a_request_that_did_not_leave_completely_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    set_options = connection._set_options

    def with_small_buffer(sock: socket.socket) -> None:
        set_options(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)

    monkeypatch.setattr(connection, "_set_options", with_small_buffer)
    with StubHost(receive_buffer=8192) as host, pool_of(host.url) as pool:
        session = pool.session()
        session.session_ref()
        pool._connections.close()
        host.reads_first = 30_000
        with pytest.raises(PoolUnreachable, match=r"broke while a request was being sent .* not carried out"):
            session.call(CLONE, "OpaqueRef:vm", "x" * 250_000)
        host.reads_first = None
        assert host.counted[CLONE] == 0


def test_a_connection_that_the_host_closed_while_idle_is_not_used_for_a_changing_call(
    host: StubHost, pool: SessionPool
) -> None:
    session = pool.session()
    for number in range(10):
        session.call(READ, "x")
        host.drop_connections()
        time.sleep(0.02)
        assert session.call(CLONE, "OpaqueRef:vm", str(number)) == "done"
    assert host.counted[CLONE] == 10


def test_a_connection_on_which_something_came_unasked_is_not_used_again(host: StubHost, pool: SessionPool) -> None:
    host.answers[READ] = Reply(success("right").data, unasked=b"HTTP/1.1 200 OK\r\n\r\n")
    session = pool.session()
    assert session.call(READ, "x") == "right"
    time.sleep(0.1)
    assert session.call(READ, "x") == "right"
    assert host.calls[-1].connection != host.calls[-2].connection


def test_calls_share_a_kept_alive_connection(host: StubHost, pool: SessionPool) -> None:
    session = pool.session()
    for _ in range(5):
        session.call(CLONE, "x", "y")
    assert host.connections == 1


def test_an_answer_that_ends_the_connection_is_an_answer(host: StubHost, pool: SessionPool) -> None:
    host.answers[CLONE] = Reply(
        http_answer(envelope({"Status": "Success", "Value": "v"}), extra="connection: close\r\n"), ends=True
    )
    assert [pool.session().call(CLONE, "x", "y") for _ in range(3)] == ["v"] * 3


class Guard:
    """A lease that is lost after a number of questions."""

    def __init__(self, good_for: int) -> None:
        self.asked = 0
        self.good_for = good_for

    def __call__(self) -> None:
        self.asked += 1
        if self.asked > self.good_for:
            raise LeaseLost("expired")


def test_a_changing_call_is_not_sent_without_the_lease(host: StubHost, pool: SessionPool) -> None:
    guard = Guard(good_for=1)
    session = pool.session(guard)
    session.call(CLONE, "x", "first")
    with pytest.raises(LeaseLost):
        session.call(CLONE, "x", "second")
    assert session.call(READ, "x") == "done"  # reading needs no lease
    assert [call.params[2] for call in host.calls if call.method == CLONE] == ["first"]


def test_the_guard_is_asked_again_before_a_repetition_after_a_new_login(host: StubHost, pool: SessionPool) -> None:
    guard = Guard(good_for=2)
    session = pool.session(guard)
    session.call(CLONE, "x", "first")
    host.forget_sessions()
    with pytest.raises(LeaseLost):  # asked for the refused try, and for the one after the login
        session.call(CLONE, "x", "second")
    assert host.counted[CLONE] == 2


def test_the_guard_is_asked_after_the_wait_for_a_connection(host: StubHost) -> None:
    has_arrived, may_go = threading.Event(), threading.Event()

    def start(_: Call) -> Reply:
        has_arrived.set()
        may_go.wait(5)
        return success()

    host.answers["VM.start"] = start
    asked_s: list[float] = []
    with pool_of(host.url, max_connections=1) as pool:
        pool.session_ref()
        slow = threading.Thread(target=pool.session().call, args=("VM.start", "x"))
        slow.start()
        has_arrived.wait(5)
        threading.Timer(0.2, may_go.set).start()
        begun_s = time.monotonic()
        pool.session(lambda: asked_s.append(time.monotonic())).call(CLONE, "x", "y")
        slow.join()
    assert asked_s[0] - begun_s > 0.1


def cut_at(cut: int, how: str) -> Reply:
    return Reply(WHOLE[:cut], ends=cut < len(WHOLE) or how != "kept", resets=how == "reset")


cuts = st.lists(
    st.tuples(st.integers(0, len(WHOLE)), st.sampled_from(["kept", "closed", "reset"])), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=25)
@given(cuts=cuts)
def test_with_connections_cut_anywhere_each_changing_call_arrives_at_most_once(cuts: list[tuple[int, str]]) -> None:
    replies = iter([cut_at(cut, how) for cut, how in cuts])
    outcomes: dict[str, str] = {}
    with StubHost() as host, pool_of(host.url) as pool:
        host.answers[CLONE] = lambda _: next(replies)
        session = pool.session()
        for number in range(len(cuts)):
            try:
                outcomes[str(number)] = session.call(CLONE, "OpaqueRef:vm", str(number))
            except UnknownResult:
                outcomes[str(number)] = "unknown"
            except PoolUnreachable:
                outcomes[str(number)] = "not sent"
        arrived = [call.params[2] for call in host.calls if call.method == CLONE]
    assert len(arrived) == len(set(arrived))
    assert not {number for number, outcome in outcomes.items() if outcome == "not sent"} & set(arrived)
    assert {number for number, outcome in outcomes.items() if outcome == "OpaqueRef:clone"} <= set(arrived)


@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(0, 420), min_size=1, max_size=6))
def test_what_is_called_not_sent_never_arrived(cuts: list[int]) -> None:
    """The host resets each connection after some bytes of the request, also in the middle of its body."""
    with StubHost() as host, pool_of(host.url) as pool:
        session = pool.session()
        session.session_ref()
        for number, cut in enumerate(cuts):
            pool._connections.close()
            host.reads_first = cut
            with pytest.raises((PoolUnreachable, UnknownResult)):
                session.call(CLONE, "OpaqueRef:vm", f"{number}" + "x" * 20_000)
        host.reads_first = None
        pool._connections.close()
        assert session.call(CLONE, "OpaqueRef:vm", "whole") == "done"
        assert [call.params[2] for call in host.calls if call.method == CLONE] == ["whole"]


def test_a_call_shows_the_originator_in_its_header(host: StubHost) -> None:
    with pool_of(host.url, originator="vmops-test") as pool:
        pool.session().call(READ, "x")
    call: Call = host.calls[-1]
    assert call.headers["originator"] == "vmops-test"
    assert call.headers["accept-encoding"] == "identity"
    assert host.calls[0].params[3] == "vmops-test"
