"""`vmops` against a running deployment: what it prints, and the status it ends with."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.integration.cli_support import ROOT, Vmops, read_to_the_end, read_until, running
from tests.support.engine import Toys, toys_of
from tests.support.servers import RedisServer
from worker.cli.embedded import free_port
from worker.client import Handle
from worker.operations.secrets import make_private_key
from worker.operations.states import State

SECRET = "hunter2-is-a-secret"


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toys]:
    """One worker and one beat for the tests of this module."""
    folder = tmp_path_factory.mktemp("cli")
    key_file = folder / "secret.key"
    key_file.write_text(make_private_key())
    server = RedisServer(folder / "redis")
    server.start()
    try:
        with toys_of(server, folder, secret_key_file=str(key_file)) as made:
            made.deployment.worker()
            made.deployment.beat()
            yield made
    finally:
        server.stop()


@pytest.fixture(scope="module")
def vmops(toys: Toys) -> Vmops:
    return Vmops(toys.deployment.env)


def key() -> str:
    """Return a request's word that keeps its effects apart from those of others."""
    return f"key={uuid4().hex}"


def submitted(vmops: Vmops, toys: Toys, *words: str) -> Handle:
    ended = vmops("submit", "toy", key(), *words)
    assert ended.status == 0, ended
    return toys.client.handle(ended.out.strip())


# -- submit and watch


def test_submit_prints_the_id_and_nothing_else(vmops: Vmops, toys: Toys) -> None:
    handle = submitted(vmops, toys)
    assert handle.wait(20)
    assert handle.record().name == "toy"


def test_submit_and_wait_shows_every_step_and_ends_with_the_result(vmops: Vmops) -> None:
    ended = vmops("submit", "toy", "key=shown", "--wait")
    assert (ended.status, ended.err) == (0, "")
    lines = ended.out.splitlines()
    for step in ("first", "second", "third", "fourth"):
        assert any(f"  {step} " in line and line.endswith("begins") for line in lines), step
    assert json.loads(ended.out[ended.out.index("{") :])["key"] == "shown"


def test_submit_and_wait_ends_with_1_and_the_cause_when_the_operation_fails(vmops: Vmops) -> None:
    ended = vmops("submit", "toy", key(), "fail_at=second", "--wait")
    assert ended.status == 1
    assert ended.err == (
        "vmops: The operation did not succeed: second was told to fail [PermanentError in second] "
        "Everything was undone.\n"
    )


def test_with_json_standard_output_is_one_document_and_progress_goes_to_standard_error(vmops: Vmops) -> None:
    ended = vmops("submit", "toy", key(), "--wait", "--json")
    shown = json.loads(ended.out)
    assert shown["state"] == "succeeded"
    assert [step["state"] for step in shown["steps"]] == ["done"] * 4
    assert all(step["began_at"] <= step["ended_at"] for step in shown["steps"])
    assert "second" in ended.err


def test_the_same_id_twice_is_one_operation(vmops: Vmops, toys: Toys) -> None:
    word, operation_id = key(), str(uuid4())
    for _ in range(2):
        assert vmops("submit", "toy", word, "--id", operation_id, "--wait").status == 0
    assert toys.made(toys.client.handle(operation_id)) == dict.fromkeys(("first", "second", "third", "fourth"), 1)


def test_watch_tells_the_history_of_an_operation_that_has_ended(vmops: Vmops, toys: Toys) -> None:
    handle = submitted(vmops, toys)
    handle.wait(20)
    ended = vmops("watch", handle.id)
    assert ended.status == 0
    assert "submitted" in ended.out
    assert "100 %  fourth                 succeeded" in ended.out


@pytest.mark.slow
def test_in_a_terminal_every_step_is_drawn_until_the_end(vmops: Vmops) -> None:
    ended = vmops.in_terminal("submit", "toy", key(), "sleep_s=0.3", "--wait")
    assert ended.status == 0
    last = ended.out[ended.out.rindex("first") :]
    assert [f"✓ {step}" in "✓ " + last for step in ("first", "second", "third", "fourth")] == [True] * 4
    assert "100 %" in last
    assert "succeeded" in last


@pytest.mark.slow
def test_ctrl_c_ends_the_watching_but_not_the_operation(vmops: Vmops, toys: Toys) -> None:
    handle = submitted(vmops, toys, "sleep_s=1")
    with running(vmops.start("watch", handle.id)) as process:
        read_until(process, "begins")
        process.send_signal(signal.SIGINT)
        rest = read_to_the_end(process)
    assert process.returncode == 130
    assert f"Operation {handle.id} goes on; `vmops watch {handle.id}` follows it." in rest
    assert handle.wait(20)


@pytest.mark.slow
def test_watching_outlives_a_restart_of_the_journal(redis_server: RedisServer, tmp_path: Path) -> None:
    with toys_of(redis_server, tmp_path) as own:
        own.deployment.worker()
        own.deployment.beat()
        vmops = Vmops(own.deployment.env)
        handle = own.submit(sleep_s=1)
        with running(vmops.start("watch", handle.id)) as process:
            read_until(process, "begins")
            redis_server.restart(pause_s=1)
            rest = read_to_the_end(process)
        assert process.returncode == 0, rest
        assert "succeeded" in rest


@pytest.mark.slow
def test_an_operation_that_no_worker_takes_is_explained(redis_server: RedisServer, tmp_path: Path) -> None:
    with (
        toys_of(redis_server, tmp_path) as own,
        running(Vmops(own.deployment.env).start("submit", "toy", key(), "--wait")) as process,
    ):
        seen = read_until(process, "No worker has taken it yet.")
        process.send_signal(signal.SIGINT)
        read_to_the_end(process)
    assert "`celery -A worker worker` starts one" in seen


# -- secrets


def everything_in(toys: Toys) -> bytes:
    """Return all that the servers hold, as bytes."""
    found = b""
    for raw in toys.journal.redis.scan_iter():
        kind: Any = toys.journal.redis.type(raw)
        if kind == b"hash":
            found += repr(toys.journal.redis.hgetall(raw)).encode()
        elif kind == b"stream":
            found += repr(toys.journal.redis.xrange(raw)).encode()
        elif kind == b"string":
            found += repr(toys.journal.redis.get(raw)).encode()
    return found


def test_a_secret_from_a_file_reaches_its_step_and_is_shown_nowhere(vmops: Vmops, toys: Toys, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(f"{SECRET}\n")
    ended = vmops("submit", "toy", key(), f"password=@{tmp_path}/password", "--wait", "--json")
    shown = json.loads(ended.out)
    assert shown["result"]["secret_length"] == len(SECRET)
    assert shown["request"]["password"] == "***"
    told = vmops("show", shown["id"]).out + vmops("watch", shown["id"]).out + vmops("operations", "--json").out
    assert SECRET not in ended.out + ended.err + told
    assert SECRET.encode() not in everything_in(toys)
    assert SECRET not in toys.deployment.log()


def test_a_secret_from_standard_input_reaches_its_step(vmops: Vmops) -> None:
    ended = vmops("submit", "toy", key(), "password=@-", "--wait", "--json", stdin=SECRET)
    assert json.loads(ended.out)["result"]["secret_length"] == len(SECRET)


# -- operations, show, cancel


def test_operations_lists_the_newest_first_and_can_be_narrowed(vmops: Vmops, toys: Toys) -> None:
    good, bad = submitted(vmops, toys), submitted(vmops, toys, "fail_at=first")
    good.wait(20)
    toys.await_state(bad, State.UNDONE)
    listed = json.loads(vmops("operations", "--json", "--limit", "2").out)
    assert [one["id"] for one in listed] == [bad.id, good.id]
    undone = json.loads(vmops("operations", "--json", "--state", "undone").out)
    assert {one["state"] for one in undone} == {"undone"}
    assert bad.id in {one["id"] for one in undone}
    table = vmops("operations").out
    assert good.id in table
    assert "first was told to fail" in table


def test_operations_without_a_match_say_so(vmops: Vmops) -> None:
    ended = vmops("operations", "--vm", "nobody")
    assert (ended.status, ended.out, ended.err) == (0, "", "No operation matches.\n")


def test_show_tells_what_an_operation_waits_for_and_cancel_stops_it(vmops: Vmops, toys: Toys) -> None:
    handle = submitted(vmops, toys, "wait_s=60")
    toys.await_state(handle, State.WAITING)
    shown = vmops("show", handle.id)
    assert shown.status == 0
    assert "waits for" in shown.out
    assert "time to pass" in shown.out
    assert f"`vmops cancel {handle.id}` stops it" in shown.out
    told = vmops("cancel", handle.id)
    assert (told.status, told.out.split(";")[0]) == (
        0,
        f"Operation {handle.id} is asked to stop and to undo what it did",
    )
    watched = vmops("watch", handle.id)
    assert watched.status == 1
    assert "cancelled on request; everything was undone" in watched.err
    assert toys.there(handle) == set()


def test_cancel_and_wait_ends_with_0_when_everything_is_undone(vmops: Vmops, toys: Toys) -> None:
    handle = submitted(vmops, toys, "sleep_s=30")
    toys.await_step(handle, "first")
    assert vmops("cancel", handle.id, "--wait").status == 0
    assert handle.record().state is State.CANCELLED


def test_a_stuck_operation_tells_what_is_left_and_cancel_tries_again(vmops: Vmops, toys: Toys) -> None:
    handle = submitted(vmops, toys, "fail_at=third", "undo_fails=second", "vm=1234")
    toys.await_state(handle, State.STUCK)
    shown = vmops("show", handle.id).out
    assert "undo_second has not been done: the undo of second was told to fail [PermanentError]" in shown
    assert f"Put the cause right, then `vmops cancel {handle.id}` tries again" in shown
    assert "It keeps vm 1234" in shown
    assert vmops("watch", handle.id).status == 1
    toys.repair(handle)
    told = vmops("cancel", handle.id)
    assert "tries again" in told.out
    toys.await_state(handle, State.UNDONE)
    assert toys.undone(handle) == ["first", "second"]


def test_a_stuck_operation_is_given_up(vmops: Vmops, toys: Toys) -> None:
    handle = submitted(vmops, toys, "fail_at=third", "undo_fails=second")
    toys.await_state(handle, State.STUCK)
    assert "is given up" in vmops("cancel", handle.id, "--give-up").out
    shown = vmops("show", handle.id).out
    assert "undo_second has not been done" in shown
    assert vmops("cancel", handle.id, "--give-up").status == 1


def test_an_ended_operation_cannot_be_cancelled(vmops: Vmops, toys: Toys) -> None:
    handle = submitted(vmops, toys)
    handle.wait(20)
    ended = vmops("cancel", handle.id)
    assert (ended.status, ended.err) == (
        1,
        f"vmops: Operation {handle.id} has ended: there is nothing to cancel.\n",
    )


# -- what is refused


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["submit", "nothing"], "No operation or query is called 'nothing'"),
        (["submit", "toy", "colour=red"], "colour"),
        (["submit", "toy", "password=hunter2"], "password=@file"),
        (["submit", "toy", "pool=elsewhere"], "No pool is called 'elsewhere'; configured: lab."),
        (["submit", "toy", "--id", ""], "--id is empty"),
        (["submit", "toy", "--colour"], "No such option"),
        (["watch", "nobody"], "No operation nobody is in the journal"),
        (["show", "nobody"], "No operation nobody is in the journal"),
        (["cancel", "nobody"], "No operation nobody is in the journal"),
        (["operations", "--state", "asleep"], "No state is called 'asleep'; there are: queued, running"),
        (["operations", "--limit", "0"], "--limit"),
        (["tasks", "nothing"], "No task is called 'nothing'"),
        (["dance"], "No such command"),
    ],
)
def test_a_usage_error_is_a_sentence_and_ends_with_2(vmops: Vmops, toys: Toys, words: list[str], told: str) -> None:
    before = [one.id for one in toys.client.operations()]
    ended = vmops(*words)
    assert (ended.status, ended.out) == (2, "")
    assert told in ended.err
    assert "hunter2" not in ended.err
    assert [one.id for one in toys.client.operations()] == before


@pytest.mark.parametrize("words", [["operations"], ["submit", "toy"], ["watch", "x"], ["show", "x"], ["cancel", "x"]])
def test_an_absent_journal_is_a_sentence_and_ends_with_1(tmp_path: Path, vmops: Vmops, words: list[str]) -> None:
    url = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    (tmp_path / "vmops.toml").write_text(f"broker_url = {url!r}\n")
    ended = vmops.with_settings(tmp_path / "vmops.toml")(*words)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("vmops: The journal at redis://:***@127.0.0.1:")
    assert "start Redis, or name a running one in broker_url" in ended.err
    assert "hunter2" not in ended.err


def test_a_deployment_without_pools_points_to_the_settings_and_the_demo(
    tmp_path: Path, vmops: Vmops, redis_url: str
) -> None:
    (tmp_path / "vmops.toml").write_text(f"broker_url = {redis_url!r}\n")
    ended = vmops.with_settings(tmp_path / "vmops.toml")("submit", "toy")
    assert ended.status == 2
    assert "No pool is configured: put one into" in ended.err
    assert "`vmops demo`" in ended.err


@pytest.mark.slow
def test_debug_shows_the_traceback(vmops: Vmops) -> None:
    with running(vmops.start("--debug", "show", "nobody")) as process:
        told = read_to_the_end(process)
    assert process.returncode == 1
    assert "Traceback" in told
    assert "OperationNotFound" in told


# -- tasks, simulate


def test_the_catalogue_is_shown_for_people_and_for_programs(vmops: Vmops) -> None:
    assert "vmops.snapshot" in vmops("tasks").out
    entries = {entry["task"]: entry for entry in json.loads(vmops("tasks", "--json").out)}
    assert entries["vmops.snapshot"]["request"]["properties"].keys() >= {"instance", "format", "disks"}
    assert json.loads(vmops("tasks", "snapshot", "--json").out) == entries["vmops.snapshot"]
    shown = vmops("tasks", "snapshot").out
    assert "vmops submit snapshot instance.name=web01" in shown
    assert "take_snapshot" in shown


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["submit", "--help"], ["--version"]])
def test_help_and_version_need_no_settings(tmp_path: Path, vmops: Vmops, words: list[str]) -> None:
    (tmp_path / "vmops.toml").write_text("not toml")
    ended = vmops.with_settings(tmp_path / "vmops.toml")(*words)
    assert ended.status == 0
    assert ended.out


@pytest.mark.slow
def test_help_loads_nothing_heavy(vmops: Vmops) -> None:
    heavy = ["celery", "kombu", "redis", "pydantic", "tornado", "rich.console"]
    listing = f"import atexit, sys; atexit.register(lambda: print([one for one in {heavy} if one in sys.modules]))"
    with running(vmops.start("--version", program=f"{listing}; from worker.cli import main; main()")) as process:
        told = read_to_the_end(process)
    assert told.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_simulate_becomes_the_simulator_with_all_its_options(vmops: Vmops) -> None:
    with running(vmops.start("simulate", "--help")) as process:
        told = read_to_the_end(process)
    assert process.returncode == 0
    for option in ("--listen", "--password-file", "--state-dir", "--port-file"):
        assert option in told
    with running(vmops.start("simulate", "--listen", "127.0.0.1:0", "--colour", "red")) as process:
        told = read_to_the_end(process)
    assert process.returncode == 2
    assert "usage: vmops simulate" in told


@pytest.mark.slow
def test_a_reader_that_goes_away_early_is_no_error(vmops: Vmops) -> None:
    command = shlex.join([sys.executable, "-m", "worker.cli", "tasks", "--json"])
    done = subprocess.run(
        ["bash", "-c", f"{command} | true"], cwd=ROOT, env=vmops.env, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
