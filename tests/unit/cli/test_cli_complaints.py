"""What is said when something is wrong: a sentence that tells what to do, with a status, and no secret."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import exceptions

from worker import errors
from worker.cli.complaints import (
    FAILED,
    USAGE,
    Complaint,
    about_idleness,
    about_journal,
    complaint_about,
    read_settings,
    without_password,
)
from worker.cli.embedded import free_port
from worker.client import VMOps
from worker.settings import Settings, get_settings


@pytest.fixture(autouse=True)
def _settings_are_read_anew() -> Iterator[None]:
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Complaint("x", USAGE), USAGE),
        (errors.UnknownPool("x"), USAGE),
        (errors.UnknownOperation("x"), USAGE),
        (errors.OperationNotFound("x"), USAGE),
        (errors.RequestError("x"), USAGE),
        (errors.NotCancellable("x"), FAILED),
        (errors.OperationFailed("x"), FAILED),
        (errors.PermanentError("x"), FAILED),
    ],
)
def test_an_error_has_a_status_by_who_must_act(error: Exception, status: int) -> None:
    complaint = complaint_about(error)
    assert complaint is not None
    assert complaint.status == status


def test_a_defect_of_ours_is_no_complaint() -> None:
    assert complaint_about(KeyError("x")) is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:pw@h:6379/0", "redis://:***@h:6379/0"),
        ("amqp://u:p%40w@h//", "amqp://u:***@h//"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (exceptions.ConnectionError("refused"), "start Redis, or name a running one in broker_url"),
        (exceptions.TimeoutError("timed out"), "start Redis, or name a running one in broker_url"),
        (exceptions.AuthenticationError("WRONGPASS"), "check user and password"),
        (exceptions.NoPermissionError("NOPERM"), "check user and password"),
        (exceptions.ResponseError("MISCONF"), "answered with an error: MISCONF"),
    ],
)
def test_a_journal_that_cannot_be_used_is_named_without_its_password(error: exceptions.RedisError, advice: str) -> None:
    told = str(about_journal(error, Settings(broker_url="redis://:hunter2@redis:6379/0")))
    assert "The journal at redis://:***@redis:6379/1" in told
    assert advice in told
    assert "hunter2" not in told


def refused_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> str:
    path = tmp_path / "vmops.toml"
    path.write_text(text)
    monkeypatch.setenv("VMOPS_CONFIG", str(path))
    with pytest.raises(Complaint) as caught:
        read_settings()
    assert caught.value.status == USAGE
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("brokerurl = 'x'", "brokerurl: there is no such field (did you mean broker_url?)"),
        ("[pools.lab]\nurll = 'x'\npassword = 'y'", "pools.lab.urll: there is no such field (did you mean url?)"),
        ("lease_ttl_s = -1", "lease_ttl_s"),
        ("[pools.lab]\nurl = 'ftp://x'\npassword = 'hunter2'", "url must begin with http:// or https://"),
        ("[pools.lab]\nurl = 'http://x'", "give password_file"),
        ("[pools.lab]\nurl = 'http://x'\npassword_file = '/nowhere/pw'", "/nowhere/pw: No such file or directory"),
        ("broker_url = ", "is not valid TOML"),
        ("broker_url = 'http://:hunter2@h'", "broker_url: should be like redis://host:6379/0"),
        ("broker_url = 'redis://:hunter2@h:port/0'", "broker_url: should be like redis://host:6379/0"),
        ("broker_url = 'redis://:hunter2@h:6379/zero'", "broker_url: should be like redis://host:6379/0"),
        ("broker_url = ''", "broker_url: should be like redis://host:6379/0"),
        ("broker_url = 'amqp://u:hunter2@h//'", "journal_url must name a Redis when broker_url is not one"),
        ("journal_url = 'amqp://u:hunter2@h//'", "journal_url: should be like redis://host:6379/0"),
        ("pools = 3", "pools: should be an object"),
    ],
)
def test_a_setting_that_is_wrong_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, told: str
) -> None:
    complaint = refused_settings(monkeypatch, tmp_path, text)
    assert told in complaint
    assert "hunter2" not in complaint


def test_a_settings_file_that_is_no_text_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "vmops.toml").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("VMOPS_CONFIG", str(tmp_path / "vmops.toml"))
    with pytest.raises(Complaint, match=r"vmops\.toml is not valid TOML: 'utf-8' codec"):
        read_settings()


def test_a_variable_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VMOPS_POOLS", "no json")
    assert "pools" in refused_settings(monkeypatch, tmp_path, "")


def test_a_missing_settings_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMOPS_CONFIG", "/nowhere/vmops.toml")
    with pytest.raises(Complaint, match=r"VMOPS_CONFIG names /nowhere/vmops\.toml, and there is no such file"):
        read_settings()


def test_an_operation_that_nobody_takes_is_explained_by_its_broker_or_its_workers(redis_url: str) -> None:
    with_broker = VMOps(Settings(broker_url=redis_url))
    assert "Is one running" in about_idleness(with_broker)
    gone = f"amqp://guest:hunter2@127.0.0.1:{free_port()}//"
    without = VMOps(Settings(broker_url=gone, journal_url=redis_url))
    told = about_idleness(without)
    assert told.startswith("The broker at amqp://guest:***@127.0.0.1:")
    assert "hunter2" not in told
    for vmops in (with_broker, without):
        vmops.close()
