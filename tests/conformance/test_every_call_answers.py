"""Every listed call, called: with nothing behind its references, with too few arguments, with wrong ones."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.api.catalogue import METHODS
from simulator.api.registry import Constructor, Method, Row_
from simulator.model.schema import CLASSES
from simulator.model.types import NULL, Enum, Float, Int, MapOf, Ref, SetOf, Time, Type
from tests.support.simulator import Client, XenFailure

#: They end the session, the toolstack or its network, which the test needs.
ENDS = frozenset(
    {
        "host.management_disable",
        "host.shutdown_agent",
        "pool.emergency_reset_master",
        "pool.emergency_transition_to_master",
        "session.local_logout",
        "session.logout",
    }
)
#: What no call with arguments of the right types answers.
NEVER = frozenset(
    {"INTERNAL_ERROR", "MESSAGE_METHOD_UNKNOWN", "MESSAGE_PARAMETER_COUNT_MISMATCH", "SESSION_INVALID", "Fault"}
)


OPTIONS = ("--vms", "1", "--guest-writes", "0", "--boot-time", "10ms")


def nothing(kind: Type) -> Any:
    """Return the emptiest value of a type."""
    if isinstance(kind, Constructor):
        fields = CLASSES[kind.name.removesuffix(" record")].fields.values()
        return {one.name: nothing(one.type) for one in fields if one.is_mandatory}
    if isinstance(kind, Row_ | Ref):
        return NULL
    if isinstance(kind, Enum):
        return min(kind.values)
    if isinstance(kind, Int):
        return "0"
    empty = kind.default()
    assert isinstance(kind, Float | MapOf | SetOf | Time) or isinstance(empty, str | bool), kind.name
    return empty


def classes() -> list[str]:
    return sorted({name.partition(".")[0] for name in METHODS})


def calls_of(cls: str) -> list[Method]:
    return [method for name, method in METHODS.items() if name.partition(".")[0] == cls and name not in ENDS]


def outcome(xen: Client, method: Method, name: str = "") -> list[str]:
    """Return the failure of a call on nothing, or an empty list. A broken connection fails the test."""
    arguments = [nothing(kind) for kind in method.params]
    try:
        (xen if method.needs_session else xen.raw)(name or method.name, *arguments)
    except XenFailure as failure:
        return failure.details
    except (ValueError, TypeError):
        assert method.name == "system.listMethods", "only this one answers without Status"
    return []


@pytest.mark.parametrize("cls", classes())
def test_a_call_on_nothing_succeeds_or_fails_as_xapi_does(xen: Client, cls: str) -> None:
    for method in calls_of(cls):
        details = outcome(xen, method)
        assert not NEVER.intersection(details[:1]), (method.name, details)
        assert all(isinstance(part, str) for part in details)


@pytest.mark.parametrize("cls", classes())
def test_a_reference_to_nothing_is_told_with_its_class(xen: Client, cls: str) -> None:
    for method in calls_of(cls):
        wanted = [kind.class_name for kind in method.params if isinstance(kind, Row_)]
        if wanted:
            assert outcome(xen, method) == ["HANDLE_INVALID", wanted[0], NULL], method.name


@pytest.mark.parametrize("cls", classes())
def test_too_few_arguments_are_counted(xen: Client, cls: str) -> None:
    for method in calls_of(cls):
        if method.mandatory:
            with pytest.raises(XenFailure) as refused:
                (xen if method.needs_session else xen.raw)(method.name)
            details = ["MESSAGE_PARAMETER_COUNT_MISMATCH", method.name, str(method.mandatory), "0"]
            assert refused.value.details == details


@pytest.mark.parametrize("cls", classes())
def test_an_async_form_ends_in_a_task_or_does_not_exist(xen: Client, cls: str) -> None:
    for method in calls_of(cls):
        if not method.needs_session:
            continue
        arguments = [nothing(kind) for kind in method.params]
        if not method.has_async:
            details = xen.error(f"Async.{method.name}", *arguments)
            assert details == ["Fault", f"No async mode for this operation (rpc: {method.name})"]
        elif any(isinstance(kind, Row_) for kind in method.params):
            task_ref = xen(f"Async.{method.name}", *arguments)
            record = xen.wait(task_ref)
            assert record["status"] == "failure", method.name
            assert record["error_info"][0] == "HANDLE_INVALID", (method.name, record["error_info"])
            xen("task.destroy", task_ref)


def test_the_list_of_methods_names_what_answers(xen: Client) -> None:
    assert set(xen("host.list_methods")) == set(METHODS)
