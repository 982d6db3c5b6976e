"""`vmops doctor` and get_host_plugins: which host lacks what, and what to type."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.information import worker_state
from tests.integration.cli_support import Vmops
from tests.integration.information.support import Office
from tests.integration.information.test_console_output import root_of, without
from tests.support.servers import RedisServer
from worker.cli import doctor
from worker.cli.dom0 import pack_version
from worker.client import VMOps
from worker.errors import PoolUnreachable
from worker.settings import Settings


@pytest.fixture
def vmops(office: Office, monkeypatch: pytest.MonkeyPatch) -> Vmops:
    monkeypatch.setattr(doctor, "_MOST_APART_S", 1e9)  # the pool's clock may have been advanced by other tests
    return Vmops(office.deployment.env)


def hosts_of(office: Office) -> list[dict[str, str]]:
    found: list[dict[str, str]] = office.client.get_host_plugins()
    return found


def plugins_of(office: Office, host: dict[str, str]) -> Path:
    return root_of(office, host["uuid"]) / "etc/xapi.d/plugins"


def test_a_deployment_with_everything_is_well(vmops: Vmops) -> None:
    ended = vmops("doctor", "--json")
    assert ended.status == 0, ended
    found = json.loads(ended.out)
    assert [(one["part"], one["level"]) for one in found] == [
        ("journal", "good"), ("broker", "good"), ("pool", "good"), ("plugins", "good"), ("plugins", "good"),
        ("tools", "good"), ("image store", "good"), ("clock", "good"),
    ]  # fmt: skip
    assert found[3]["text"].startswith(f"version {pack_version()}, Python 3.")


@pytest.mark.parametrize(
    ("option", "value", "level", "words"),
    [
        ("maxmemory-policy", "allkeys-lru", "bad", "drops what it has when its memory is full (allkeys-lru)"),
        ("appendonly", "no", "note", "keeps no append-only file"),
    ],
)
def test_a_journal_that_may_lose_what_it_has_is_told(
    redis_server: RedisServer, option: str, value: str, level: str, words: str
) -> None:
    with redis_server.client() as client:
        client.config_set(option, value)
    vmops_client = VMOps(Settings.model_validate({"broker_url": redis_server.url(), "pools": {}}))
    found = next(doctor.examine(vmops_client))
    vmops_client.close()
    assert (found.part, found.level) == ("journal", level)
    assert words in found.text


def test_a_lack_of_tools_is_told_with_what_to_install() -> None:
    found = doctor._tools("lab", {"mke2fs": None, "e2fsck": "/sbin/e2fsck"})
    assert (found.level, found.advice) == ("note", "apt-get install e2fsprogs")
    assert "the worker has no mke2fs: ephemeral disks" in found.text


def test_clocks_that_run_apart_are_told_with_the_direction() -> None:
    found = doctor._clock("lab", {"journal": 0.2, "pool": -95.4})
    assert (found.level, found.text) == ("bad", "the worker's is 95 s behind the pool's master")
    assert doctor._clock("lab", {"journal": 29.0, "pool": -1.0}).level == "good"


def test_a_variable_that_is_nearly_a_setting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    nearly = ("VMOPS_LEASE_TTL", "VMOPS_POOL__LAB__URL", "VMOPS_POOLS_LAB_URL")
    for name in (*nearly, "VMOPS_POOLS__LAB__URL", "VMOPS_SERVICE_HOST"):
        monkeypatch.setenv(name, "any")
    assert [(one.what, one.level, one.advice) for one in doctor._variables()] == [
        ("VMOPS_LEASE_TTL", "note", "Did you mean VMOPS_LEASE_TTL_S?"),
        ("VMOPS_POOLS_LAB_URL", "note", "Did you mean VMOPS_POOLS__NAME__SETTING?"),
        ("VMOPS_POOL__LAB__URL", "note", "Did you mean VMOPS_POOLS__LAB__URL?"),
    ]


def test_an_image_store_that_cannot_be_used_is_told(office: Office, tmp_path: Path) -> None:
    answer = office.client.get_worker()
    assert answer["image_store"] is None
    ahead_s = answer["clock_ahead_s"]
    assert abs(ahead_s["journal"]) < 30
    assert abs(ahead_s["pool"] - (time.time() - office.pass_time(0))) < 30
    (tmp_path / "file").write_text("in the way")
    problem = worker_state._problem_of_store(Settings(image_store=f"file://{tmp_path}/file/images"))
    assert problem is not None
    assert "choose another one in image_store" in problem
    found = list(doctor._worker("lab", {**answer, "image_store": problem, "clock_ahead_s": {"pool": 1.0}}))
    assert [(one.part, one.level) for one in found] == [("tools", "good"), ("image store", "bad"), ("clock", "good")]
    assert found[1].text == problem


@pytest.mark.parametrize(
    ("error", "part", "words"),
    [(TimeoutError(), "image store", "has waited 40 s"), (PoolUnreachable("The pool is away."), "pool", "is away")],
)
def test_a_worker_that_is_held_up_is_told(
    office: Office, monkeypatch: pytest.MonkeyPatch, error: Exception, part: str, words: str
) -> None:
    ask = office.client.query

    def query(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "get_worker":
            raise error
        return ask(name, *arguments, **more)

    monkeypatch.setattr(office.client, "query", query)
    found = list(doctor.examine(office.client))[-1]
    assert (found.part, found.level) == (part, "bad")
    assert words in found.text


def test_the_answer_costs_one_call_and_one_for_each_host(office: Office) -> None:
    assert office.cost_of(lambda: hosts_of(office)) == {"host.get_all_records": 1, "host.call_plugin": 2}


def test_a_host_without_the_plugins_is_named_with_what_to_type(office: Office, vmops: Vmops) -> None:
    host = hosts_of(office)[1]
    with without(plugins_of(office, host) / "vmops-info"):
        ended = vmops("doctor")
    assert ended.status == 1
    assert f"lab: {host['name']}" in ended.out
    assert "not installed: get_console_output" in ended.out
    assert f"vmops dom0 install {host['address']}" in ended.out


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ('PACK = "0.9"\nAPI = 1\n', 0, "version 0.9; this vmops brings"),
        ('PACK = "0.9"\nAPI = 77\n', 1, "version 0.9 does not understand this vmops"),
        ("syntax error", 1, "did not answer (non-zero exit)"),
    ],
)
def test_another_version_and_a_broken_one_are_told_apart(
    office: Office, vmops: Vmops, text: str, status: int, words: str
) -> None:
    init = plugins_of(office, hosts_of(office)[0]).resolve() / "vmops_lib/__init__.py"
    before = init.read_text(encoding="ascii")
    init.write_text(text, encoding="ascii")
    try:
        ended = vmops("doctor", "--json")
    finally:
        init.write_text(before, encoding="ascii")
    found = [one for one in json.loads(ended.out) if one["part"] == "plugins"]
    assert ended.status == status
    assert all(words in one["text"] for one in found)


def test_no_worker_and_no_broker_are_what_is_wrong(
    office: Office, vmops: Vmops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_ANSWER_S", 1.0)
    text = office.deployment.config.read_text(encoding="utf-8")
    broker = office.client.settings.broker_url
    for url, words in ((broker.replace("/0", "/7"), "no worker has answered"), ("redis://127.0.0.1:1/0", "not answer")):
        path = tmp_path / "vmops.toml"
        path.write_text(text.replace(broker, url), encoding="utf-8")
        ended = vmops.with_settings(path)("doctor", "--json")
        assert ended.status == 1
        assert [words in one["text"] for one in json.loads(ended.out) if one["level"] == "bad"] == [True]
