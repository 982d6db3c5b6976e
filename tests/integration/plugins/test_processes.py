"""Plugins as processes: their tasks, how long they live, and the hosts that they run on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.plugins.support import PATIENCE_S, Pool
from tests.support.simulator import SimulatorProcess
from tests.support.worker import eventually


@pytest.fixture
def two_hosts(tmp_path: Path) -> Iterator[Pool]:
    options = ("--plugins", str(tmp_path), "--hosts", "2")
    with SimulatorProcess(*options) as simulator, simulator.session() as client:
        yield Pool(simulator, client, tmp_path)


# -- tasks and time


def test_an_asynchronous_call_ends_in_its_task(pool: Pool) -> None:
    name = pool.raw("tasked", "succeed('<b>') if fn == 'good' else sys.exit(1)")
    good = pool.client.wait(pool.client("Async.host.call_plugin", pool.host_ref, name, "good", {}))
    assert (good["status"], good["result"]) == ("success", "<value>&lt;b&gt;</value>")
    bad = pool.client.wait(pool.client("Async.host.call_plugin", pool.host_ref, name, "bad", {}))
    assert (bad["status"], bad["error_info"]) == ("failure", ["XENAPI_PLUGIN_FAILURE", "non-zero exit", "", ""])


HANGING = """
import time
open(args["begun"], "w").close()
while not os.path.exists(args["go"]):
    time.sleep(0.01)
succeed("at last")
"""


def hang(pool: Pool, folder: Path) -> tuple[str, Path]:
    """Start a plugin that waits for a file; return the task and the file."""
    begun, go = folder / "begun", folder / "go"
    arguments = {"begun": str(begun), "go": str(go)}
    task_ref = pool.client("Async.host.call_plugin", pool.host_ref, pool.raw("hanging", HANGING), "main", arguments)
    eventually(begun.exists)
    return task_ref, go


def test_cancelling_a_plugin_that_hangs_has_no_effect(pool: Pool, tmp_path: Path) -> None:
    task_ref, go = hang(pool, tmp_path)
    pool.client("task.cancel", task_ref)
    assert pool.client("task.get_status", task_ref) == "pending"
    go.touch()
    record = pool.client.wait(task_ref)
    assert (record["status"], record["result"]) == ("success", "<value>at last</value>")


def test_plugins_run_side_by_side(pool: Pool, tmp_path: Path) -> None:
    name = pool.raw(
        "meeting",
        """
        import time
        open(os.path.join(args["folder"], args["me"]), "w").close()
        while len(os.listdir(args["folder"])) < 4:
            time.sleep(0.01)
        succeed(args["me"])
        """,
    )
    answers: list[str] = []

    def meet(me: str) -> None:
        with pool.simulator.session() as client:
            answers.append(client("host.call_plugin", pool.host_ref, name, "main", {"folder": str(tmp_path), "me": me}))

    threads = [threading.Thread(target=meet, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(answers) == ["0", "1", "2", "3"]


def test_a_process_that_a_plugin_leaves_behind_is_not_waited_for(pool: Pool, tmp_path: Path) -> None:
    name = pool.raw(
        "daemonising",
        """
        import time
        if os.fork() == 0:
            while not os.path.exists(args["go"]):
                time.sleep(0.01)
            open(args["done"], "w").close()
            os._exit(0)
        succeed("left one behind")
        """,
    )
    assert pool.call(name, go=str(tmp_path / "go"), done=str(tmp_path / "done")) == "left one behind"
    (tmp_path / "go").touch()
    eventually((tmp_path / "done").exists)


def test_a_script_outlives_the_toolstack_that_started_it(tmp_path: Path) -> None:
    with SimulatorProcess("--plugins", str(tmp_path)) as simulator:
        with simulator.session() as client:
            pool = Pool(simulator, client, tmp_path)
            name = pool.raw("surviving", HANGING + 'open(args["done"], "w").close()\n')
            files = {key: str(tmp_path / key) for key in ("begun", "go", "done")}
            client("Async.host.call_plugin", pool.host_ref, name, "main", files)
            eventually((tmp_path / "begun").exists)
            simulator.kill()
        (tmp_path / "go").touch()
        eventually((tmp_path / "done").exists)


def test_a_hanging_script_does_not_outlive_the_simulator(tmp_path: Path) -> None:
    with SimulatorProcess("--plugins", str(tmp_path)) as simulator:
        with simulator.session() as client:
            pool = Pool(simulator, client, tmp_path)
            body = HANGING.replace(
                'open(args["begun"], "w").close()', 'open(args["begun"], "w").write(str(os.getpid()))'
            )
            arguments = {"begun": str(tmp_path / "begun"), "go": str(tmp_path / "never")}
            client("Async.host.call_plugin", pool.host_ref, pool.raw("stuck", body), "main", arguments)
            eventually(lambda: (tmp_path / "begun").exists() and bool((tmp_path / "begun").read_text(encoding="utf-8")))
            pid = int((tmp_path / "begun").read_text(encoding="utf-8"))
        assert simulator.stop() == 0
        eventually(lambda: not Path(f"/proc/{pid}").exists())


# -- hosts


def test_each_host_has_plugins_and_a_xenstore_of_its_own(two_hosts: Pool) -> None:
    master, slave = two_hosts.client("host.get_all")
    two_hosts.raw("where", "succeed(os.environ['VMOPS_DOM0_ROOT'] + ' ' + os.environ['XENSTORED_PATH'])")
    seen = {ref: two_hosts.client("host.call_plugin", ref, "where", "main", {}) for ref in (master, slave)}
    for ref, text in seen.items():
        dom0 = two_hosts.dom0(ref)
        assert text == f"{dom0['root']} {dom0['xenstore']}"
    (Path(two_hosts.dom0(slave)["root"]) / "etc/xapi.d/plugins/where").unlink()
    assert two_hosts.client.error("host.call_plugin", slave, "where", "main", {}) == ["XENAPI_MISSING_PLUGIN", "where"]
    assert two_hosts.client("host.call_plugin", master, "where", "main", {}) == seen[master]


def test_a_host_that_does_not_exist_is_an_invalid_handle(pool: Pool) -> None:
    error = pool.client.error("host.call_plugin", "OpaqueRef:nope", "echo", "main", {})
    assert error == ["HANDLE_INVALID", "host", "OpaqueRef:nope"]


def test_a_missing_folder_of_plugins_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="nowhere"), SimulatorProcess("--plugins", str(tmp_path / "nowhere")):
        pass
