"""What XAPI says of wrong parameters, kind by kind, and in which order it looks (xapi.md 2.3 to 2.6)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.simulator import Client, XenFailure, vm_record

NOWHERE = "OpaqueRef:00000000-0000-0000-0000-000000000000"
DECODER = "INTERNAL_ERROR"
OPTIONS = ("--vms", "1", "--guest-writes", "0", "--boot-time", "10ms")


WRONG: list[tuple[str, tuple[Any, ...], str]] = [
    ("VM.set_name_label", (NOWHERE, None), "Failure(\"Expected string, got 'N'\")"),
    ("VM.set_name_label", (NOWHERE, 5), "Failure(\"Expected string, got 'I(5)'\")"),
    ("VM.set_is_a_template", (NOWHERE, "true"), "Failure(\"Expected bool, got 'S(true)'\")"),
    ("VM.set_user_version", (NOWHERE, "abc"), 'Failure("Int64.of_string")'),
    ("VM.set_user_version", (NOWHERE, " 1"), 'Failure("Int64.of_string")'),
    ("VM.set_user_version", (NOWHERE, str(1 << 63)), 'Failure("Int64.of_string")'),
    ("VM.set_user_version", (NOWHERE, True), "Failure(\"Expected int64, got 'B(true)'\")"),
    ("task.set_progress", (NOWHERE, "half"), 'Failure("float_of_string")'),
    ("VM.set_actions_after_shutdown", (NOWHERE, "explode"), 'Failure("Unknown tag/contents")'),
    ("VM.set_tags", (NOWHERE, "tag"), "Failure(\"Expecting Rpc.Enum, but found 'S(tag)'\")"),
    ("VM.set_tags", (NOWHERE, [1]), "Failure(\"Expected string, got 'I(1)'\")"),
    ("VM.set_other_config", (NOWHERE, "str"), "Failure(\"Expecting Rpc.Dict, but found 'S(str)'\")"),
    ("VM.set_other_config", (NOWHERE, {"key": 1}), "Failure(\"Expected string, got 'I(1)'\")"),
    ("VM.set_blocked_operations", (NOWHERE, {"explode": "no"}), 'Failure("Unknown tag/contents")'),
    ("VM.start", ([], False, False), "Failure(\"Expected string, got '[]'\")"),
]


@pytest.mark.parametrize(("method", "arguments", "text"), WRONG)
def test_a_wrong_type_fails_before_its_object_is_looked_up(
    xen: Client, method: str, arguments: tuple[Any, ...], text: str
) -> None:
    assert xen.error(method, *arguments) == [DECODER, text]


@pytest.mark.parametrize("moment", ["yesterday", "", "20240231T00:00:00Z"])
def test_what_is_no_time_is_refused_by_the_decoder(xen: Client, moment: str) -> None:
    assert xen.error("message.get_since", moment)[0] == DECODER


def test_a_constructor_takes_a_struct_and_names_the_first_missing_field(xen: Client) -> None:
    assert xen.error("VM.create", "text")[0] == DECODER
    without = {key: value for key, value in vm_record().items() if key not in ("memory_static_max", "platform")}
    missing = 'Server_helpers.Dispatcher_FieldNotFound("memory_static_max")'
    assert xen.error("VM.create", without) == [DECODER, missing]


def test_counts_come_before_types_and_types_before_the_session(xen: Client) -> None:
    cases: list[tuple[tuple[Any, ...], str]] = [
        (("OpaqueRef:none", NOWHERE, "x"), "MESSAGE_PARAMETER_COUNT_MISMATCH"),
        (("OpaqueRef:none", NOWHERE, "x", "y"), DECODER),
        (("OpaqueRef:none", NOWHERE, False, False), "SESSION_INVALID"),
    ]
    for arguments, code in cases:
        with pytest.raises(XenFailure) as refused:
            xen.raw("VM.start", *arguments)
        assert refused.value.details[0] == code


def test_what_is_optional_may_be_left_out_and_more_than_all_is_ignored_only_there(xen: Client) -> None:
    vm_ref = xen.find_vm("demo-01")
    assert xen.error("VM.snapshot", NOWHERE, "name") == ["HANDLE_INVALID", "VM", NOWHERE]
    assert xen.error("VM.snapshot", NOWHERE, "name", [], "more") == ["HANDLE_INVALID", "VM", NOWHERE]
    mismatch = ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_record", "1", "2"]
    assert xen.error("VM.get_record", vm_ref, "more") == mismatch


def test_an_alias_answers_like_its_call_and_has_no_async_form(xen: Client) -> None:
    assert xen("VM_get_by_name_label", "demo-01") == [xen.find_vm("demo-01")]
    assert xen.error("Async.VM_start", NOWHERE, False, False) == ["MESSAGE_METHOD_UNKNOWN", "VM_start"]


def test_a_call_that_is_known_but_not_simulated_says_so_by_name(xen: Client) -> None:
    vm_ref = xen.find_vm("demo-01")
    assert xen.error("VM.import_convert", "", "", "", NOWHERE, {}) == ["NOT_IMPLEMENTED", "VM.import_convert"]
    assert xen.error("VM.add_to_VCPUs_params_live", vm_ref, "key", "value")[0] == "NOT_IMPLEMENTED"
    assert xen.error("VMPP.get_all_records") == ["MESSAGE_REMOVED"]
    assert xen.error("VM.snapshot_with_quiesce", vm_ref, "name") == ["MESSAGE_REMOVED"]
