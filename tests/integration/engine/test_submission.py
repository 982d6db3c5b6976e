"""What is accepted, what is refused, and what is one operation however often it is sent."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from tests.support.engine import Toys
from tests.support.worker import eventually
from worker.errors import OperationFailed, RequestError, UnknownOperation, UnknownPool
from worker.operations.states import State

ONCE = {"first": 1, "second": 1, "third": 1, "fourth": 1}


def test_the_same_id_twice_is_one_operation(running_toys: Toys) -> None:
    operation_id, key = uuid4().hex, uuid4().hex
    handles = [running_toys.submit(operation_id=operation_id, key=key) for _ in range(2)]
    assert handles[0].wait(20) == handles[1].wait(20)
    again = running_toys.submit(operation_id=operation_id, key=key)
    assert again.wait(20)["key"] == key
    assert running_toys.made(handles[0]) == running_toys.calls(handles[0]) == ONCE


def test_the_same_id_from_many_clients_at_once_is_one_operation(running_toys: Toys) -> None:
    operation_id, key = uuid4().hex, uuid4().hex
    clients = [running_toys.deployment.client() for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        handles = list(threads.map(lambda one: one.submit("toy", {"key": key}, operation_id=operation_id), clients))
    assert [handle.wait(20)["key"] for handle in handles] == [key] * 8
    assert running_toys.calls(handles[0]) == ONCE
    assert sum(line["text"] == "accepted" for line in handles[0].events()) == 1


def test_the_same_task_id_sent_twice_by_a_stock_client_is_one_operation(running_toys: Toys) -> None:
    operation_id = uuid4().hex
    stock = running_toys.stock_client()
    for _ in range(3):
        stock.send_task("vmops.toy", kwargs={"key": operation_id}, task_id=operation_id, queue="vmops.control")
    handle = running_toys.client.handle(operation_id)
    eventually(lambda: running_toys.journal.get_all([operation_id])[0])
    handle.wait(20)
    assert running_toys.calls(handle) == ONCE


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"keyy": 1}, "keyy: there is no such field"),
        ({"sleep_s": "long"}, "sleep_s: Input should be a valid number"),
        ({"on_conflict": "queue"}, "on_conflict: Input should be 'wait' or 'fail'"),
        ({"key": 1, "vm": 2}, "key: Input should be a valid string; vm: Input should be a valid string"),
    ],
    ids=["an unknown field", "a wrong type", "an unknown choice", "two problems"],
)
def test_a_bad_request_ends_the_operation_with_a_sentence(
    running_toys: Toys, request_: dict[str, Any], sentence: str
) -> None:
    handle = running_toys.client.submit("toy", request_)
    with pytest.raises(OperationFailed) as failure:
        handle.wait(20)
    assert str(failure.value).startswith(f"The request is not valid: {sentence}")
    assert str(failure.value).endswith(". [RequestError]")
    record = handle.record()
    assert record.state is State.FAILED
    assert record.error is not None
    assert record.error["code"] == "RequestError"
    assert record.attempts == {}
    assert record.request == {}, "what was not checked is not kept"


def test_positional_arguments_are_refused(running_toys: Toys) -> None:
    sent = running_toys.stock_client().send_task("vmops.toy", args=("web01",), queue="vmops.control")
    with pytest.raises(OperationFailed, match="give its fields by name"):
        sent.get(timeout=20)


def test_a_pool_that_is_not_configured_is_refused(running_toys: Toys) -> None:
    with pytest.raises(UnknownPool, match="No pool is called 'paris'; configured: lab"):
        running_toys.submit(pool="paris")
    sent = running_toys.stock_client().send_task("vmops.toy", kwargs={"pool": "paris"}, queue="vmops.control")
    with pytest.raises(OperationFailed, match="No pool is called 'paris'; configured: lab"):
        sent.get(timeout=20)


def test_an_unknown_operation_is_refused_with_the_known_ones(running_toys: Toys) -> None:
    with pytest.raises(UnknownOperation, match=r"No operation is called 'tyo'\. Did you mean toy\?"):
        running_toys.client.submit("tyo", {})


def test_an_operation_that_no_worker_knows_is_ended_by_the_reconciler(running_toys: Toys) -> None:
    client = running_toys.deployment.client()
    client._catalogue = {"tyo": []}  # a client that has seen a worker that is gone
    handle = client.submit("tyo", {})
    with pytest.raises(OperationFailed, match="No worker knows an operation 'tyo'"):
        handle.wait(20)
    assert client.app.AsyncResult(handle.id).state == "FAILURE"


def test_a_request_that_is_not_json_is_refused_at_once(running_toys: Toys) -> None:
    with pytest.raises(RequestError, match="cannot be sent as JSON"):
        running_toys.submit(vm=object())
