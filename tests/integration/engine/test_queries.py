"""Queries: single tasks whose answer, or error, reaches whoever asked, and leaves nothing behind."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

import pytest

from tests.integration.cli_support import Vmops
from tests.support.engine import Toys
from tests.support.servers import RedisServer
from worker.client import VMOps
from worker.errors import PoolUnreachable, RequestError, TransientError, UnknownPool, XenAPIFailure


def looks(toys: Toys, key: str) -> int:
    return int(toys.effects.hget(f"calls:{key}", "look") or 0)


def results(toys: Toys) -> set[bytes]:
    return set(toys.journal.redis.scan_iter(match="celery-task-meta-*"))


def test_a_query_is_answered_once_and_its_result_is_forgotten(running_toys: Toys) -> None:
    key, before = uuid4().hex, results(running_toys)
    assert running_toys.client.query("toy_look", {"key": key}) == {"looks": 1}
    assert results(running_toys) <= before
    assert looks(running_toys, key) == 1


def test_a_query_is_no_operation(running_toys: Toys) -> None:
    before = len(running_toys.client.operations())
    running_toys.client.query("toy_look", {"key": uuid4().hex})
    assert len(running_toys.client.operations()) == before


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"kye": 1}, "The request is not valid: kye: there is no such field (did you mean key?)."),
        ({"failures": "many"}, "The request is not valid: failures: Input should be a valid integer"),
        ({"key": 5}, "The request is not valid: key: Input should be a valid string"),
    ],
)
def test_a_bad_request_is_told_in_a_sentence(running_toys: Toys, request_: dict[str, Any], sentence: str) -> None:
    before = results(running_toys)
    with pytest.raises(RequestError) as told:
        running_toys.client.query("toy_look", request_)
    assert str(told.value).startswith(sentence)
    assert results(running_toys) <= before


def test_what_is_no_json_is_refused_before_it_is_sent(running_toys: Toys) -> None:
    with pytest.raises(RequestError, match="cannot be sent as JSON"):
        running_toys.client.query("toy_look", {"key": object()})


def test_a_pool_that_is_not_configured_is_told_by_client_and_worker(running_toys: Toys) -> None:
    with pytest.raises(UnknownPool, match="'paris'"):
        running_toys.client.query("toy_look", {"pool": "paris"})
    answer = running_toys.stock_client().send_task("vmops.toy_look", kwargs={"pool": "paris"}, queue="vmops.control")
    with pytest.raises(UnknownPool, match="'paris'; configured: lab"):
        answer.get(timeout=30)
    answer.forget()


@pytest.mark.slow
def test_what_is_worth_another_try_is_tried_again(running_toys: Toys) -> None:
    key = uuid4().hex
    assert running_toys.client.query("toy_look", {"key": key, "failures": 2}) == {"looks": 3}


@pytest.mark.slow
def test_tries_end_and_the_last_error_is_told(running_toys: Toys) -> None:
    key, before = uuid4().hex, results(running_toys)
    with pytest.raises(PoolUnreachable, match="failure 4"):
        running_toys.client.query("toy_look", {"key": key, "failures": 99})
    assert looks(running_toys, key) == 4
    assert results(running_toys) <= before


def test_what_cannot_be_helped_is_not_tried_again(running_toys: Toys) -> None:
    key = uuid4().hex
    with pytest.raises(XenAPIFailure, match=r"Toy\.look failed: RBAC_PERMISSION_DENIED") as told:
        running_toys.client.query("toy_look", {"key": key, "xapi_error": "RBAC_PERMISSION_DENIED"})
    assert told.value.code == "RBAC_PERMISSION_DENIED"
    assert looks(running_toys, key) == 1


@pytest.mark.parametrize("queue", ["vmops.control", "vmops.steps.lab"])
def test_a_client_without_our_package_is_answered(running_toys: Toys, queue: str) -> None:
    key = uuid4().hex
    answer = running_toys.stock_client().send_task("vmops.toy_look", kwargs={"key": key}, queue=queue)
    assert answer.get(timeout=30) == {"looks": 1}
    life_s = running_toys.journal.redis.ttl(f"celery-task-meta-{answer.id}")
    assert 0 < life_s <= 3600, "not every client forgets what it was told"
    answer.forget()


def test_positional_arguments_are_refused(running_toys: Toys) -> None:
    answer = running_toys.stock_client().send_task("vmops.toy_look", args=("web01",), queue="vmops.control")
    with pytest.raises(RequestError, match="give its fields by name"):
        answer.get(timeout=30)
    answer.forget()


def test_without_a_worker_the_caller_is_told_to_start_one(own_toys: Toys) -> None:
    with pytest.raises(TimeoutError, match=r"No worker has answered toy_look within 0.3 s: is one running\?"):
        own_toys.client.query("toy_look", {}, timeout_s=0.3)


@pytest.mark.slow
def test_a_query_that_nobody_waits_for_any_more_is_not_carried_out(own_toys: Toys) -> None:
    key = uuid4().hex
    with pytest.raises(TimeoutError):
        own_toys.client.query("toy_look", {"key": key}, timeout_s=0.3)
    time.sleep(1)
    own_toys.deployment.worker()
    assert own_toys.client.query("toy_look", {"key": uuid4().hex}) == {"looks": 1}
    assert looks(own_toys, key) == 0


def test_without_a_broker_the_caller_is_told(split_toys: tuple[Toys, RedisServer]) -> None:
    toys, broker = split_toys
    broker.kill()
    with pytest.raises(TransientError, match="The broker did not take toy_look"):
        toys.client.query("toy_look", {})
    broker.start()


def test_a_client_that_was_closed_leaves_the_next_one_of_its_process_connections(running_toys: Toys) -> None:
    for _ in range(3):
        client = VMOps(running_toys.settings)
        assert client.query("toy_look", {"key": uuid4().hex}) == {"looks": 1}
        client.close()


def test_a_secret_answer_reaches_the_caller_and_no_log(running_toys: Toys) -> None:
    word = uuid4().hex
    assert running_toys.client.query("toy_secret", {"secret": word}) == {"secret": word[::-1]}
    assert word[::-1] not in running_toys.deployment.log()
    assert "vmops.toy_secret" in running_toys.deployment.log()


@pytest.mark.slow
def test_an_unreachable_pool_is_told_without_its_password_and_the_brokers_address(running_toys: Toys) -> None:
    with pytest.raises(PoolUnreachable, match="refuses connections") as told:
        running_toys.client.get_info(instance={"name": "web01"})
    assert running_toys.settings.broker_url not in str(told.value)
    assert "password" not in str(told.value)


# -- from a shell


def test_the_command_prints_the_answer_as_json(running_toys: Toys) -> None:
    ended = Vmops(running_toys.deployment.env)("submit", "toy_look", f"key={uuid4().hex}")
    assert (ended.status, ended.out) == (0, '{\n  "looks": 1\n}\n')


def test_the_command_tells_what_is_wrong_in_a_sentence(running_toys: Toys) -> None:
    vmops = Vmops(running_toys.deployment.env)
    ended = vmops("submit", "get_info")
    assert (ended.status, ended.out) == (2, "")
    assert "instance: Field required" in ended.err
    ended = vmops("submit", "toy_look", f"key={uuid4().hex}", "xapi_error=RBAC_PERMISSION_DENIED")
    assert (ended.status, ended.out) == (1, "")
    assert "RBAC_PERMISSION_DENIED" in ended.err
    ended = vmops("submit", "get_info", "instance.name=web01", "--id", "1")
    assert ended.status == 2


def test_the_command_describes_a_query(running_toys: Toys) -> None:
    ended = Vmops(running_toys.deployment.env)("tasks", "get_info")
    assert ended.status == 0
    assert "vmops submit get_info instance.name=web01" in ended.out
    assert "Steps" not in ended.out
