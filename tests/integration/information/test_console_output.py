"""get_console_output: what the guest wrote, of a VM that runs, is halted or in rescue; if there is none, why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.information.support import VM, Office
from tests.support.worker import eventually
from tests.unit.simulator.dom0_support import WireClient
from worker.errors import NotInDom0, PluginMissing, PluginUnsupported

READ, WRITE, RM = 2, 11, 13
DOMAINS = "vmops:domains:lab"


def host_of(office: Office, vm: VM) -> str:
    """Return the uuid of the host that runs a VM."""
    return str(office.call("host.get_uuid", office.rec(vm)["resident_on"]))


def root_of(office: Office, host_uuid: str) -> Path:
    """Return what stands for `/` in a host's dom0."""
    return Path(office.simulator.control("GET", "dom0")[host_uuid]["root"])


def write(office: Office, vm: VM, text: str) -> None:
    """Let a VM's guest write to its console, after the prompt that ends its boot."""
    log = root_of(office, host_of(office, vm)) / f"var/log/xen/console.{office.rec(vm)['domid']}.log"
    eventually(lambda: log.exists() and b"login: " in log.read_bytes())
    office.simulator.control("POST", f"guests/{vm.uuid}", {"console": text})


def note_domains(office: Office) -> None:
    """Let beat's task run now."""
    redis: Any = office.client.journal.redis
    before = redis.get(f"{DOMAINS}:token")
    office.client.app.send_task("vmops.poll_domains", kwargs={"pool": "lab"}, queue="vmops.control", ignore_result=True)
    eventually(lambda: redis.get(f"{DOMAINS}:token") not in (None, before))


@contextmanager
def without(path: Path) -> Iterator[None]:
    """Take a file away for a while."""
    kept = path.with_name(f".{path.name}")
    path.rename(kept)
    try:
        yield
    finally:
        kept.rename(path)


def test_it_is_what_the_running_guest_wrote_last_for_two_calls(office: Office) -> None:
    vm = office.new_vm("wordy")
    write(office, vm, "one\r\ntwo \x1b[31mred\x1b[0m \x1b]0;title\x07\x07\x00end\r\n")
    answer = office.client.get_console_output(instance=vm.by_uuid)
    assert answer["output"].endswith("one\ntwo red end\n")
    assert (answer["name"], answer["vm_uuid"], answer["is_running"]) == ("wordy", vm.uuid, True)
    assert not answer["is_truncated"]
    cost = office.cost_of(lambda: office.client.get_console_output(instance=vm.by_uuid))
    assert cost == {"VM.get_all_records_where": 1, "host.call_plugin": 1}


def test_no_more_is_returned_than_was_asked_for(office: Office) -> None:
    vm = office.new_vm()
    write(office, vm, "x" * 5000 + "the end")
    answer = office.client.get_console_output(instance=vm.by_uuid, length=9)
    assert (answer["output"], answer["is_truncated"]) == ("xxthe end", True)


def test_of_a_halted_vm_it_is_what_its_last_domain_wrote(office: Office) -> None:
    vm = office.new_vm("halted")
    write(office, vm, "last words\n")
    note_domains(office)
    office.call("VM.hard_shutdown", vm.ref)
    answer = office.client.get_console_output(instance=vm.by_uuid)
    assert answer["output"].endswith("last words\n")
    assert not answer["is_running"]


def test_after_a_restart_of_the_host_a_log_of_the_same_number_is_not_shown(office: Office) -> None:
    vm = office.new_vm("older")
    host_ref = office.rec(vm)["resident_on"]
    note_domains(office)
    office.call("VM.hard_shutdown", vm.ref)
    before = office.call("host.get_other_config", host_ref)
    office.call("host.set_other_config", host_ref, {**before, "boot_time": "1."})
    try:
        with pytest.raises(NotInDom0, match=r"'older' is halted, and there is no log of its last run.*restarted"):
            office.client.get_console_output(instance=vm.by_uuid)
    finally:
        office.call("host.set_other_config", host_ref, before)


def test_a_number_that_another_vm_has_by_now_shows_nothing(office: Office) -> None:
    vm, other = office.new_vm("first"), office.new_vm("second")
    note_domains(office)
    office.call("VM.hard_shutdown", vm.ref)
    rec = office.rec(other)
    booted = office.call("host.get_other_config", rec["resident_on"])["boot_time"]
    entry = json.dumps([rec["resident_on"], booted, int(rec["domid"])])
    redis: Any = office.client.journal.redis
    redis.hset(DOMAINS, f"vm {vm.ref}", entry)
    with pytest.raises(NotInDom0, match="belongs to another VM by now"):
        office.client.get_console_output(instance=vm.by_uuid)


def test_a_vm_that_never_ran_is_told_so_and_a_destroyed_one_is_forgotten(office: Office) -> None:
    vm, gone = office.new_vm("unborn", running=False), office.new_vm()
    note_domains(office)
    redis: Any = office.client.journal.redis
    assert redis.hget(DOMAINS, f"vm {gone.ref}") is not None
    with pytest.raises(NotInDom0, match="has not seen it run"):
        office.client.get_console_output(instance=vm.by_uuid)
    office.call("VM.hard_shutdown", gone.ref)
    office.call("VM.destroy", gone.ref)
    note_domains(office)
    assert redis.hget(DOMAINS, f"vm {gone.ref}") is None


def test_of_a_vm_in_rescue_it_is_what_the_rescue_vm_wrote(office: Office) -> None:
    vm, rescue = office.new_vm("sick", running=False), office.new_vm("sick-rescue", is_ours=False)
    office.call("VM.set_blocked_operations", vm.ref, {"start": "rescue"})
    office.call("VM.set_other_config", rescue.ref, {"vmops.instance": vm.instance, "vmops.role": "rescue"})
    write(office, rescue, "rescued\n")
    answer = office.client.get_console_output(instance=vm.by_uuid)
    assert (answer["vm_uuid"], answer["output"][-8:]) == (rescue.uuid, "rescued\n")


def test_a_host_that_logs_no_consoles_is_named_with_what_to_do(office: Office) -> None:
    vm = office.new_vm()
    dom0 = office.simulator.control("GET", "dom0")[host_of(office, vm)]
    key = b"/local/logconsole/@\0"
    with WireClient(Path(dom0["xenstore"])) as store:
        pattern = store.ask(READ, key)
        store.ask(RM, key)
        try:
            with pytest.raises(PluginUnsupported, match=r"not logged on this host.*fn=enable"):
                office.client.get_console_output(instance=vm.by_uuid)
        finally:
            store.ask(WRITE, key + pattern)


def test_a_host_without_the_plugins_is_named_with_what_to_do(office: Office) -> None:
    vm = office.new_vm()
    host_uuid = host_of(office, vm)
    name = office.call("host.get_name_label", office.rec(vm)["resident_on"])
    with (
        without(root_of(office, host_uuid) / "etc/xapi.d/plugins/vmops-console"),
        pytest.raises(PluginMissing, match=f"Host '{name}' has no plugin vmops-console.*vmops doctor"),
    ):
        office.client.get_console_output(instance=vm.by_uuid)
