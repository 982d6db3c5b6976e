"""One session per pool and process: when it is made, replaced, shared, ended."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.unit.xenapi.stub import DROP, Reply, StubHost, failure, pool_of, success
from worker.errors import PoolAuthenticationFailed, PoolUnreachable, XenAPIFailure
from worker.xenapi.session import SessionPool

READ = "VM.get_record"


class Vault:
    """A vault in this process's memory, with a compare-and-set like the real one's."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.lock = threading.Lock()

    def load(self, pool: str) -> str | None:
        return self.kept.get(pool)

    def store(self, pool: str, session_ref: str, replaces: str | None) -> str:
        with self.lock:
            if self.kept.get(pool) == replaces:
                self.kept[pool] = session_ref
            return self.kept[pool]


@pytest.fixture
def host() -> Iterator[StubHost]:
    with StubHost() as stub:
        yield stub


@pytest.fixture
def pool(host: StubHost) -> Iterator[SessionPool]:
    with pool_of(host.url) as made:
        yield made


def test_nothing_is_opened_before_the_first_call(host: StubHost, pool: SessionPool) -> None:
    pool.session()
    assert host.connections == 0


def test_all_threads_share_one_login(host: StubHost) -> None:
    host.answers[READ] = Reply(success().data, after_s=0.01)
    with pool_of(host.url) as pool, ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: pool.session().call(READ, "x"), range(64)))
        assert host.logins == 1
        assert pool.calls == {"session.login_with_password": 1, READ: 64}
    assert host.connections <= 8


def test_threads_that_lose_the_session_together_log_in_once(host: StubHost, pool: SessionPool) -> None:
    session = pool.session()
    session.call(READ, "x")
    for round_number in range(2, 6):
        host.forget_sessions()
        start = threading.Barrier(8)

        def call_at_once(_: int, start: threading.Barrier = start) -> None:
            start.wait()
            session.call(READ, "x")

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(call_at_once, range(8)))
        assert host.logins == round_number
        assert len(host.sessions) == 1


def test_a_changing_call_survives_the_loss_of_the_session(host: StubHost, pool: SessionPool) -> None:
    session = pool.session()
    session.call("VM.start", "x")
    host.forget_sessions()
    assert session.call("VM.start", "x") == "done"
    assert host.logins == 2


def test_a_session_that_is_refused_again_and_again_ends_as_a_failure_without_the_token(
    host: StubHost, pool: SessionPool
) -> None:
    host.answers[READ] = lambda call: failure("SESSION_INVALID", call.params[0])
    with pytest.raises(XenAPIFailure) as caught:
        pool.session().call(READ, "x")
    assert caught.value.code == "SESSION_INVALID"
    assert host.logins == 3
    assert "OpaqueRef:session" not in "".join(traceback.format_exception(caught.value))


def test_closing_logs_out_and_a_later_call_logs_in_again(host: StubHost, pool: SessionPool) -> None:
    pool.session().call(READ, "x")
    pool.close()
    assert host.sessions == set()
    pool.session().call(READ, "x")
    assert len(host.sessions) == 1


def test_closing_never_raises(host: StubHost, pool: SessionPool) -> None:
    pool.session().call(READ, "x")
    host.close()
    pool.close()


def test_a_wrong_password_is_a_sentence_without_the_password(host: StubHost, pool: SessionPool) -> None:
    host.answers["session.login_with_password"] = failure("SESSION_AUTHENTICATION_FAILED", "root", "bad")
    with pytest.raises(PoolAuthenticationFailed) as caught:
        pool.session().call(READ, "x")
    assert str(caught.value) == "Pool 'lab' refused user 'root': check username and password_file."
    assert "secret-of-the-pool" not in "".join(traceback.format_exception(caught.value, chain=True))
    assert host.logins == 1


def test_a_user_without_a_role_is_told_so(host: StubHost, pool: SessionPool) -> None:
    host.answers["session.login_with_password"] = failure("SESSION_AUTHORIZATION_FAILED", "root", "none")
    with pytest.raises(PoolAuthenticationFailed, match="no role"):
        pool.session().call(READ, "x")


def test_threads_that_waited_for_a_failing_login_do_not_repeat_it(host: StubHost, pool: SessionPool) -> None:
    all_wait = threading.Event()
    begun = threading.Barrier(9)

    def refuse(_: object) -> Reply:
        all_wait.wait(5)
        return failure("SESSION_AUTHENTICATION_FAILED", "root", "bad")

    def read(_: int) -> None:
        begun.wait()
        with pytest.raises(PoolAuthenticationFailed):
            pool.session().call(READ, "x")

    host.answers["session.login_with_password"] = refuse
    with ThreadPoolExecutor(8) as threads:
        done = threads.map(read, range(8))
        begun.wait()
        time.sleep(0.3)
        all_wait.set()
        list(done)
    assert host.logins == 1


def test_a_booting_pool_is_left_to_the_engine(host: StubHost, pool: SessionPool) -> None:
    host.answers["session.login_with_password"] = failure("HOST_STILL_BOOTING")
    with pytest.raises(XenAPIFailure, match="HOST_STILL_BOOTING"):
        pool.session().call("VM.start", "x")


def test_a_changing_call_whose_login_is_not_answered_was_not_sent(host: StubHost, pool: SessionPool) -> None:
    host.answers["session.login_with_password"] = DROP
    with pytest.raises(PoolUnreachable, match="does not answer the login"):
        pool.session().call("VM.start", "x")
    assert host.counted["VM.start"] == 0


def test_a_login_has_a_time_limit(host: StubHost) -> None:
    host.answers["session.login_with_password"] = Reply(b"", after_s=0.6)
    with (
        pool_of(host.url, call_timeout_s=0.2) as pool,
        pytest.raises(PoolUnreachable, match=r"does not answer the login .* timed out"),
    ):
        pool.session().call("VM.start", "x")


def test_a_vault_hands_the_session_to_the_next_process(host: StubHost) -> None:
    vault = Vault()
    for _ in range(5):
        with pool_of(host.url, vault=vault) as pool:
            pool.session().call(READ, "x")
    assert host.logins == 1
    assert len(host.sessions) == 1


def test_a_session_from_the_vault_that_the_pool_forgot_is_replaced(host: StubHost) -> None:
    vault = Vault()
    vault.kept["lab"] = "OpaqueRef:stale"
    with pool_of(host.url, vault=vault) as pool:
        pool.session().call("VM.start", "x")
    assert host.logins == 1
    assert vault.kept["lab"] in host.sessions


def test_processes_that_log_in_together_agree_on_one_session(host: StubHost) -> None:
    vault = Vault()
    login = success("OpaqueRef:mine").data
    host.sessions |= {"OpaqueRef:mine", "OpaqueRef:theirs"}

    def log_in_while_another_does(_: object) -> Reply:
        vault.kept["lab"] = "OpaqueRef:theirs"
        return Reply(login)

    host.answers["session.login_with_password"] = log_in_while_another_does
    with pool_of(host.url, vault=vault) as pool:
        pool.session().call(READ, "x")
    assert host.sessions == {"OpaqueRef:theirs"}
    assert host.calls[-1].params[0] == "OpaqueRef:theirs"


def test_a_process_that_finds_another_ones_new_session_does_not_log_in(host: StubHost) -> None:
    vault = Vault()
    with pool_of(host.url, vault=vault) as mine, pool_of(host.url, vault=vault) as theirs:
        mine.session().call(READ, "x")
        theirs.session().call(READ, "x")
        host.forget_sessions()
        mine.session().call(READ, "x")
        theirs.session().call(READ, "x")
    assert host.logins == 2


def test_a_forked_child_uses_nothing_of_its_parents(host: StubHost, pool: SessionPool) -> None:
    pool.session().call(READ, "x")
    child = os.fork()
    if child == 0:  # nothing of the test framework may run in here
        status = 1
        try:
            pool.session().call(READ, "from the child")
            pool.close()
            status = 0
        finally:
            os._exit(status)
    _, wait_status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(wait_status) == 0
    assert pool.session().call(READ, "x") == "done"  # the parent's session and connection are whole
    mine, childs = (
        [call for call in host.calls if (call.params[1:] == ("from the child",)) is is_childs]
        for is_childs in (False, True)
    )
    assert len(childs) == 1
    assert childs[0].connection not in {call.connection for call in mine if call.method == READ}
    assert host.logins == 2
    assert len(host.sessions) == 1


def test_texts_about_a_pool_show_no_secret(host: StubHost, pool: SessionPool) -> None:
    pool.session().call(READ, "x")
    shown = f"{pool!r} {pool.session()!r} {pool.settings!r}"
    assert "secret-of-the-pool" not in shown
    assert "OpaqueRef:session" not in shown
