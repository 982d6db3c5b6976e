"""The pytest plugin, as users have it: pytest in a process of its own, on a project that only has vmops installed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from simulator.testing import ControlRefused, SimulatedPool
from tests.support import servers

pytest_plugins = ["pytester"]

PROJECT = """
import pytest
import XenAPI

@pytest.mark.xenserver(hosts=3, vms=1, guest_writes=0)
def test_marker(xenserver_pool):
    with xenserver_pool.session() as session:
        assert len(session.xenapi.host.get_all()) == 3
        assert [vm for vm in session.xenapi.VM.get_all_records().values() if vm["name_label"] == "demo-01"]
        assert xenserver_pool.calls()["host.get_all"] == 1
        assert xenserver_pool.stats()["sessions"] == 1
    assert xenserver_pool.stats()["sessions"] == 0
    assert xenserver_pool.leaks() == {}

@pytest.mark.xenserver(hosts=2)
class TestMarkers:
    @pytest.mark.xenserver(vms=1)
    def test_nearer_markers_add_to_wider_ones(self, xenserver_pool):
        with xenserver_pool.session() as session:
            assert len(session.xenapi.host.get_all()) == 2
            assert session.xenapi.VM.get_by_name_label("demo-01")

def test_own_vms_and_faults(xenserver_pool):
    made = xenserver_pool.add_vm(name="web", disks=[{"size": 4 << 20}])
    memory = ["HOST_NOT_ENOUGH_FREE_MEMORY", "1", "0"]
    fault = xenserver_pool.add_fault(match="VM.start", effect="failure", error=memory)
    with xenserver_pool.session() as session:
        with pytest.raises(XenAPI.Failure) as caught:
            session.xenapi.VM.start(made["ref"], False, False)
        assert caught.value.details[0] == "HOST_NOT_ENOUGH_FREE_MEMORY"
        xenserver_pool.wait_for_hit(fault)
        xenserver_pool.clear_faults()
        xenserver_pool.guest(made["uuid"], boot_s=0)
        session.xenapi.VM.start(made["ref"], False, False)
        assert session.xenapi.VM.get_power_state(made["ref"]) == "Running"

def test_restart_and_clock(xenserver_pool):
    with xenserver_pool.session() as session:
        task = session.xenapi.task.create("mine", "")
        before = xenserver_pool.clock.now()
        assert xenserver_pool.clock.advance(3600) >= before + 3600
        xenserver_pool.restart_toolstack()
        with pytest.raises(XenAPI.Failure) as caught:
            session.xenapi.task.get_record(task)
        assert caught.value.details == ["HANDLE_INVALID", "task", task]
        xenserver_pool.kill_toolstack()
        assert session.xenapi.host.get_all()

def test_the_pool_outlives_its_process(xenserver_pool):
    xenserver_pool.add_vm(name="kept")
    url = xenserver_pool.url
    xenserver_pool.kill_process()
    xenserver_pool.start()
    assert xenserver_pool.url == url
    with xenserver_pool.session() as session:
        assert session.xenapi.VM.get_by_name_label("kept")

@pytest.mark.xenserver(tls=True)
def test_tls(xenserver_pool):
    assert xenserver_pool.url.startswith("https://")
    assert xenserver_pool.certificate.read_text().startswith("-----BEGIN CERTIFICATE")
    with xenserver_pool.session() as session:
        assert session.xenapi.host.get_all()

def test_two_pools(two_pools, start_xenserver_pool):
    uuids = set()
    for pool in (*two_pools, start_xenserver_pool(hosts=2)):
        with pool.session() as session:
            uuids.update(record["uuid"] for record in session.xenapi.pool.get_all_records().values())
    assert len(uuids) == 3

SHARED = set()

@pytest.mark.parametrize("turn", [1, 2])
def test_shared(shared_xenserver_pool, turn):
    SHARED.add(shared_xenserver_pool.url)
    assert len(SHARED) == 1
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A user's project: warnings are errors there, too."""
    pytester.makeini("[pytest]\nfilterwarnings = error\naddopts = --strict-markers -p no:randomly\n")
    return pytester


def run(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return project.runpytest_subprocess("-p", "no:cacheprovider", *arguments)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_users_project_has_pools_as_fixtures(project: pytest.Pytester, workers: str) -> None:
    project.makepyfile(PROJECT)
    result = run(project, "-n", workers)
    result.assert_outcomes(passed=9)
    assert list(Path(project.path).rglob("*.vhd")) == []


def test_the_ini_option_speaks_for_all_pools_and_a_marker_over_it(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\nxenserver_options = --hosts 2 --guest-writes 0\n")
    project.makepyfile(
        """
        import pytest

        def hosts(pool):
            with pool.session() as session:
                return len(session.xenapi.host.get_all())

        def test_ini(shared_xenserver_pool):
            assert hosts(shared_xenserver_pool) == 2

        @pytest.mark.xenserver(hosts=4)
        def test_marker(xenserver_pool):
            assert hosts(xenserver_pool) == 4
        """
    )
    run(project).assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("marker", "complaint"),
    [
        ("hosst=3", "*unrecognized arguments: --hosst 3*"),
        ("state_dir='x'", "*the option state_dir of a simulated pool belongs to its fixture*"),
        ("3", "*takes keywords, such as hosts=3*"),
    ],
)
def test_a_wrong_marker_is_told(project: pytest.Pytester, marker: str, complaint: str) -> None:
    project.makepyfile(f"import pytest\n\n@pytest.mark.xenserver({marker})\ndef test_it(xenserver_pool):\n    pass\n")
    result = run(project)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([complaint])


def test_a_run_that_uses_no_pool_loads_nothing_for_it(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import sys

        def test_light():
            heavy = ("simulator", "worker", "tasks", "XenAPI")
            ours = sorted(name for name in sys.modules if name.split(".")[0] in heavy)
            assert ours == ["simulator", "simulator.testing", "simulator.testing.plugin"]
        """
    )
    run(project).assert_outcomes(passed=1)


@pytest.mark.parametrize("autoload", [True, False])
def test_naming_the_plugin_works_whether_pytest_has_loaded_it_or_not(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, *, autoload: bool
) -> None:
    project.makeini("[pytest]\n")
    if not autoload:
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    project.makeconftest('pytest_plugins = ["simulator.testing"]\n')
    project.makepyfile("def test_it(xenserver_pool):\n    assert xenserver_pool.stats()['total'] == 0\n")
    run(project).assert_outcomes(passed=1)


def test_a_failing_test_leaves_neither_process_nor_files(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        def test_it(two_pools):
            print("pids", *(pool.pid for pool in two_pools))
            assert False
        """
    )
    result = run(project, "--basetemp", str(project.path / "temp"))
    result.assert_outcomes(failed=1)
    line = next(line for line in result.outlines if line.startswith("pids "))
    assert not any(psutil.pid_exists(int(pid)) for pid in line.split()[1:])
    assert list((project.path / "temp").glob("xenserver*")) == []


LONG_LIVED = """
import time
from simulator.testing import SimulatedPool

with SimulatedPool() as pool:
    print(pool.pid, flush=True)
    time.sleep(600)
"""


def test_a_pool_ends_with_the_killed_process_that_started_it(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", LONG_LIVED], stdout=subprocess.PIPE, cwd=tmp_path) as parent:
        assert parent.stdout is not None
        pool = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
    pool.wait(30)


@pytest.fixture
def known() -> Iterator[None]:
    """No process of this test is left."""
    before = servers.live_children()
    yield
    assert set(servers.live_children()) <= set(before)


@pytest.mark.usefixtures("known")
def test_without_pytest_a_pool_is_a_context_manager() -> None:
    with SimulatedPool("--hosts", "2") as pool, pool.session() as session:
        assert len(session.xenapi.host.get_all()) == 2
        with pytest.raises(ControlRefused, match="unknown keys"):
            pool.guest(session.xenapi.VM.get_uuid(session.xenapi.VM.get_all()[0]), nonsense=1)
    with pytest.raises(RuntimeError, match="not running"):
        _ = pool.pid


def test_an_option_that_is_none_is_told_with_the_simulators_words() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)ended with status 2: .*--nonsense"), SimulatedPool("--nonsense"):
        pass


def test_a_session_ends_quietly_when_its_pool_is_gone() -> None:
    with SimulatedPool() as pool, pool.session() as session:
        session.xenapi.host.get_all()
        pool.kill_process()
    begun = time.monotonic()
    with SimulatedPool() as pool, pool.session() as session:
        session.xenapi.session.logout()
    assert time.monotonic() - begun < 60
