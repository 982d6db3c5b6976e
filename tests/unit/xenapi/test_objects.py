"""Finding VMs and disks, following tasks and events: what is asked, and how answers are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.xenapi.stub import Reply, StubHost, failure, pool_of, success
from worker.errors import InstanceAmbiguous, InstanceNotFound, UnknownResult
from worker.xenapi import event, sr, vbd, vdi, vm, xapi_task
from worker.xenapi.session import Session


@pytest.fixture
def host() -> Iterator[StubHost]:
    with StubHost() as stub:
        yield stub


@pytest.fixture
def session(host: StubHost) -> Iterator[Session]:
    with pool_of(host.url) as pool:
        yield pool.session()


def vm_rec(uuid: str, name: str = "web", **more: Any) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "name_label": name,
        "other_config": {},
        "is_a_snapshot": False,
        "is_a_template": False,
        "is_control_domain": False,
    } | more


def pool_with(host: StubHost, *recs: dict[str, Any]) -> None:
    host.answers["VM.get_all_records_where"] = success({f"ref-{rec['uuid']}": rec for rec in recs})


def test_a_vm_is_found_with_one_call(host: StubHost, session: Session) -> None:
    pool_with(host, vm_rec("u1"))
    assert vm.find(session, name="web").ref == "ref-u1"
    assert host.counted["VM.get_all_records_where"] == 1
    assert host.calls[-1].params[1] == (
        '((((field "is_a_snapshot" = "false") and (field "is_a_template" = "false")) '
        'and (field "is_control_domain" = "false")) and (field "name__label" = "web"))'
    )


def test_a_name_that_a_query_cannot_hold_is_compared_here(host: StubHost, session: Session) -> None:
    pool_with(host, vm_rec("u1"), vm_rec("u2", 'a "b"'))
    assert vm.find(session, name='a "b"').ref == "ref-u2"
    assert "name__label" not in host.calls[-1].params[1]


def test_an_instance_is_known_by_our_mark_or_novas(host: StubHost, session: Session) -> None:
    pool_with(
        host,
        vm_rec("u1", other_config={"vmops.instance": "11aa"}),
        vm_rec("u2", other_config={"nova_uuid": "22bb"}),
        vm_rec("u3"),
    )
    assert vm.find(session, uuid="11AA").ref == "ref-u1"
    assert vm.find(session, uuid="22bb").ref == "ref-u2"


def test_a_rescue_vm_is_not_its_instance(host: StubHost, session: Session) -> None:
    pool_with(
        host,
        vm_rec("u1", other_config={"nova_uuid": "11"}),
        vm_rec("u2", "web-rescue", other_config={"nova_uuid": "11"}),
        vm_rec("u3", "other", other_config={"vmops.instance": "11", "vmops.role": "rescue"}),
    )
    assert vm.find(session, uuid="11").ref == "ref-u1"
    assert vm.find(session, name="web-rescue").ref == "ref-u2"


@pytest.mark.parametrize("kind", ["is_a_snapshot", "is_a_template", "is_control_domain"])
def test_snapshots_templates_and_control_domains_are_no_instances(host: StubHost, session: Session, kind: str) -> None:
    pool_with(host, vm_rec("u1") | {kind: True})
    with pytest.raises(InstanceNotFound, match=r"'lab' has no VM with name 'web'"):
        vm.find(session, name="web")


def test_what_a_move_has_left_is_named_to_whoever_looks_for_the_vm(host: StubHost, session: Session) -> None:
    pool_with(host, vm_rec("u1", "web-orig", other_config={"vmops.migration": '{"side": "source"}'}))
    with pytest.raises(InstanceNotFound, match=r"no VM with name 'web'\. There is 'web-orig', which a resize or move"):
        vm.find(session, name="web")
    pool_with(host, vm_rec("u2", "web-orig"))
    with pytest.raises(InstanceNotFound, match=r"Check the value"):
        vm.find(session, name="web")


def test_a_name_of_two_vms_is_ambiguous(host: StubHost, session: Session) -> None:
    pool_with(host, vm_rec("u1"), vm_rec("u2"))
    with pytest.raises(InstanceAmbiguous, match=r"2 VMs with name 'web': u1, u2\. Say which one with vm_uuid"):
        vm.find(session, name="web")
    assert vm.find(session, name="web", vm_uuid="u2").ref == "ref-u2"


def test_all_marks_must_fit(host: StubHost, session: Session) -> None:
    pool_with(host, vm_rec("u1", other_config={"nova_uuid": "11"}))
    with pytest.raises(InstanceNotFound, match="instance uuid '12' and name 'web'"):
        vm.find(session, uuid="12", name="web")
    with pytest.raises(ValueError, match="say which VM"):
        vm.find(session)


def vbd_rec(userdevice: str, **more: Any) -> dict[str, Any]:
    return {
        "VM": "vm",
        "VDI": f"vdi-{userdevice}",
        "type": "Disk",
        "empty": False,
        "userdevice": userdevice,
        "bootable": userdevice == "0",
    } | more


def test_disks_come_by_position_without_drives_and_empty_devices(host: StubHost, session: Session) -> None:
    recs = [vbd_rec(name) for name in ("10", "9", "xvdb", "0")]
    recs += [vbd_rec("3", type="CD"), vbd_rec("4", empty=True), vbd_rec("2", VM="another")]
    host.answers["VBD.get_all_records_where"] = success({f"vbd-{rec['userdevice']}": rec for rec in recs})
    disks = vbd.disks_of(session, "vm")
    assert [disk.userdevice for disk in disks] == ["0", "xvdb", "9", "10"]
    assert disks[0] == vbd.Disk("0", "vbd-0", "vdi-0", bootable=True)
    assert host.counted["VBD.get_all_records_where"] == 1


@pytest.mark.parametrize(
    ("other_config", "can"),
    [({}, True), ({"gc": "true"}, True), ({"gc": "false"}, False), ({"coalesce": "False"}, False)],
)
def test_the_collectors_switches_are_read(other_config: dict[str, str], *, can: bool) -> None:
    assert sr.can_coalesce({"other_config": other_config}) is can


def test_a_key_that_is_there_is_replaced(host: StubHost, session: Session) -> None:
    replies = iter([failure("MAP_DUPLICATE_KEY", "VDI", "other_config", "ref", "k"), success()])
    host.answers["VDI.add_to_other_config"] = lambda _: next(replies)
    vdi.add_to_other_config(session, "ref", "k", "v")
    assert [call.method for call in host.calls[1:]] == [
        "VDI.add_to_other_config",
        "VDI.remove_from_other_config",
        "VDI.add_to_other_config",
    ]
    assert host.calls[-1].params[1:] == ("ref", "k", "v")


def task_rec(status: str, **more: Any) -> dict[str, Any]:
    rec = {"name_label": "Async.VDI.snapshot", "status": status, "progress": 0.25, "result": "", "error_info": []}
    return rec | more


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("<value>OpaqueRef:1</value>", "OpaqueRef:1"),
        ("<value></value>", ""),
        ("", ""),
        ("<value>a &lt;b&gt; &amp;amp; &quot;c&quot;</value>", 'a <b> &amp; "c"'),
        (
            "<value><array><data><value>x</value></data></array></value>",
            "<array><data><value>x</value></data></array>",
        ),
    ],
)
def test_a_tasks_result_is_unwrapped(host: StubHost, session: Session, text: str, result: str) -> None:
    host.answers["task.get_record"] = success(task_rec("success", result=text))
    assert xapi_task.look(session, "ref") == xapi_task.Outcome("success", 0.25, result)


@pytest.mark.parametrize(
    ("status", "error_info", "error"),
    [
        ("failure", ["VDI_IN_USE", "ref"], "VDI.snapshot failed: VDI_IN_USE(ref)"),
        ("failure", [], "VDI.snapshot failed: INTERNAL_ERROR(no description)"),
        ("cancelled", [], "VDI.snapshot failed: TASK_CANCELLED(task-ref)"),
    ],
)
def test_a_failed_task_tells_its_call_and_cause(
    host: StubHost, session: Session, status: str, error_info: list[str], error: str
) -> None:
    host.answers["task.get_record"] = success(task_rec(status, error_info=error_info))
    outcome = xapi_task.look(session, "task-ref")
    assert (outcome.status, str(outcome.error)) == (status, error)
    assert outcome.is_final


@pytest.mark.parametrize("status", ["pending", "cancelling"])
def test_a_task_that_is_not_over_is_pending(host: StubHost, session: Session, status: str) -> None:
    host.answers["task.get_record"] = success(task_rec(status))
    outcome = xapi_task.look(session, "ref")
    assert outcome.status == "pending"
    assert not outcome.is_final


def test_a_task_that_is_gone_has_vanished_and_needs_no_end(host: StubHost, session: Session) -> None:
    for call in ("task.get_record", "task.destroy", "task.cancel"):
        host.answers[call] = failure("HANDLE_INVALID", "task", "ref")
    assert xapi_task.look(session, "ref") == xapi_task.VANISHED
    xapi_task.finish(session, "ref")
    xapi_task.cancel(session, "ref")


def test_the_end_of_a_task_is_asked_for_again_when_the_answer_is_lost(host: StubHost, session: Session) -> None:
    replies = iter([Reply(ends=True), failure("HANDLE_INVALID", "task", "ref")])
    host.answers["task.destroy"] = lambda _: next(replies)
    xapi_task.finish(session, "ref")
    assert host.counted["task.destroy"] == 2
    host.answers["task.destroy"] = Reply(ends=True)
    with pytest.raises(UnknownResult):
        xapi_task.finish(session, "ref")


def batch(*events: tuple[str, str, dict[str, Any] | None], since: str = "1,1") -> Reply:
    items = [
        {"class": "task", "operation": operation, "ref": ref, "id": "1", "timestamp": "0.0"}
        | ({} if rec is None else {"snapshot": rec})
        for operation, ref, rec in events
    ]
    return success({"events": items, "token": since, "valid_ref_counts": {"task": 1}})


def test_waiting_ends_with_the_event_of_the_end(host: StubHost, session: Session) -> None:
    replies = iter(
        [batch(("add", "t", task_rec("pending"))), batch(("mod", "t", task_rec("success", result="<value>r</value>")))]
    )
    host.answers["event.from"] = lambda _: next(replies)
    assert xapi_task.wait(session, "t", 5).result == "r"
    first, second = (call.params[1:] for call in host.calls if call.method == "event.from")
    assert first == (["task/t"], "", 0.0)
    assert second[:2] == (["task/t"], "1,1")
    assert 0 < second[2] <= 5


def test_waiting_looks_itself_when_no_event_comes(host: StubHost, session: Session) -> None:
    host.answers["event.from"] = batch()
    host.answers["task.get_record"] = success(task_rec("failure", error_info=["VDI_IN_USE"]))
    assert xapi_task.wait(session, "t", 5).status == "failure"


def test_waiting_ends_with_the_tasks_disappearance(host: StubHost, session: Session) -> None:
    replies = iter([batch(("add", "t", task_rec("pending"))), batch(("del", "t", None))])
    host.answers["event.from"] = lambda _: next(replies)
    assert xapi_task.wait(session, "t", 5) == xapi_task.VANISHED


def test_waiting_has_an_end(host: StubHost, session: Session) -> None:
    host.answers["event.from"] = batch(("mod", "t", task_rec("pending")))
    assert xapi_task.wait(session, "t", 0.0).status == "pending"


def test_events_are_read_in_one_call(host: StubHost, session: Session) -> None:
    host.answers["event.from"] = batch(("add", "t1", task_rec("pending")), ("del", "t2", None), since="5,1")
    got = event.poll(session, ["task", "VDI/OpaqueRef:1"], "4,1", 2)
    assert got.token == "5,1"
    assert [(item.cls, item.operation, item.ref) for item in got.events] == [
        ("task", "add", "t1"),
        ("task", "del", "t2"),
    ]
    assert got.events[1].rec is None
    assert host.calls[-1].params[1:] == (["task", "VDI/OpaqueRef:1"], "4,1", 2.0)
    event.poll(session, ["task"], "4,1", 1e6)
    assert host.calls[-1].params[3] == event.MAX_WAIT_S
