"""What the agents of the field do when they are asked, and what comes of those that do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.guest.support import NO_PATIENCE, GuestWard
from worker.operations.states import State

NETWORK = {
    "label": "public",
    "mac": "00:16:3e:12:34:56",
    "ips": [{"ip": "192.0.2.7", "netmask": "255.255.255.0", "gateway": "192.0.2.1"}],
}
UPDATE = {"url": "http://192.0.2.5/agent-9.9.9.tgz", "md5sum": "0" * 32}
PASSWORD = "c0rrect-Horse"


@pytest.mark.parametrize("kind", ["nova-agent", pytest.param("unix", marks=pytest.mark.matrix), "windows"])
def test_an_agent_of_the_field_does_what_it_is_asked_for(guests: GuestWard, kind: str) -> None:
    vm = guests.new_guest(kind)
    assert guests.done("get_agent_version", vm)["version"] == guests.inside(vm)["version"]
    guests.done("set_admin_password", vm, new_pass=PASSWORD)
    guests.done("inject_file", vm, path="/etc/motd", contents="Hello, world\n")
    guests.done("inject_network_info", vm, network_info=[NETWORK])
    guests.done("inject_hostname", vm, hostname="web01")
    assert guests.done("reset_network", vm) == {"returncode": "0", "vm_uuid": vm.uuid}
    inside = guests.inside(vm)
    assert list(inside["passwords"].values()) == [PASSWORD]
    assert inside["files"]["/etc/motd"]["content"] == "Hello, world\n"
    assert (inside["hostname"], inside["network_resets"]) == ("web01", 1)


@pytest.mark.parametrize("kind", ["unix", pytest.param("windows", marks=pytest.mark.matrix)])
def test_an_agent_replaces_itself_unless_it_is_what_it_shall_be(guests: GuestWard, kind: str) -> None:
    vm = guests.new_guest(kind)
    assert guests.done("agent_update", vm, **UPDATE, version="9.9.9")["updated"] is True
    assert guests.done("get_agent_version", vm)["version"] == "9.9.9"
    again = guests.done("agent_update", vm, **UPDATE, version="9.9.9")
    assert again == {"updated": False, "version": "9.9.9", "vm_uuid": vm.uuid}
    assert guests.inside(vm)["updates"] == [{"url": UPDATE["url"], "md5": UPDATE["md5sum"]}]


def test_what_an_agent_does_not_offer_is_never_sent_to_it(guests: GuestWard) -> None:
    """nova-agent answers 0 to commands that it does not know: asked, it would seem to have been updated."""
    vm = guests.new_guest("nova-agent")
    text = guests.refused(guests.do("agent_update", vm, **UPDATE), "AgentNotImplemented")
    assert "does not offer agentupdate (it offers features, injectfile" in text
    assert guests.asked(vm) == {"features": 1}


@pytest.mark.parametrize(
    ("lacks", "operation", "fields"),
    [
        pytest.param(["keyinit"], "set_admin_password", {"new_pass": PASSWORD}, marks=pytest.mark.matrix),
        (["injectfile", "file_inject"], "inject_file", {"path": "/f", "contents": ""}),
        pytest.param(["resetnetwork"], "reset_network", {}, marks=pytest.mark.matrix),
    ],
)
def test_an_older_agent_is_asked_for_nothing_that_it_lacks(
    guests: GuestWard, lacks: list[str], operation: str, fields: dict[str, Any]
) -> None:
    vm = guests.new_guest("unix", agent_lacks=lacks)
    assert lacks[0] in guests.refused(guests.do(operation, vm, **fields), "AgentNotImplemented")
    assert guests.asked(vm) == {"features": 1}


def test_an_agent_that_cannot_tell_its_features_is_asked_all_the_same(guests: GuestWard) -> None:
    """It refuses what it does not know, as it refuses this question."""
    vm = guests.new_guest("unix", agent_lacks=["features", "resetnetwork"])
    guests.done("inject_file", vm, path="/f", contents="x")
    text = guests.refused(guests.do("reset_network", vm), "AgentError")
    assert "did not do what it was asked for (resetnetwork): 404" in text


def test_an_old_agents_500_means_that_the_network_is_up(guests: GuestWard) -> None:
    vm = guests.new_guest("unix", agent_system="freebsd")
    assert guests.done("reset_network", vm)["returncode"] in {"0", "500"}


# -- silence


@pytest.mark.parametrize(
    ("effect", "command"),
    [
        ("silent", "features"),
        pytest.param("mute", "password", marks=pytest.mark.matrix),
        pytest.param("die", "keyinit", marks=pytest.mark.matrix),
    ],
)
def test_an_agent_that_falls_silent_ends_with_a_timeout(guests: GuestWard, effect: str, command: str) -> None:
    vm = guests.new_guest("nova-agent", **guests.accident(effect, command))
    text = guests.refused(guests.do("set_admin_password", vm, new_pass=PASSWORD, **NO_PATIENCE), "AgentTimeout")
    assert "): is it installed in the guest, and running?" in text
    assert guests.in_guest(vm, "xenstore-list", "data/host") == "", "its questions are removed"
    assert guests.inside(vm)["passwords"] == {}


def test_a_guest_without_an_agent_ends_with_a_timeout(guests: GuestWard) -> None:
    vm = guests.new_guest(None)
    text = guests.refused(guests.do("get_agent_version", vm, patience_s=0, **NO_PATIENCE), "AgentTimeout")
    assert text.startswith(f"The agent of VM {vm.name!r} did not answer within")


def test_an_agent_that_comes_up_late_is_waited_for(guests: GuestWard) -> None:
    vm = guests.new_guest("unix", **guests.accident("mute", "version", count=1))
    handle = guests.do("get_agent_version", vm, **NO_PATIENCE)
    assert guests.succeeded(handle)["version"] == guests.inside(vm)["version"]
    assert guests.asked(vm)["version"] > 1


def test_a_slow_agent_has_its_time(guests: GuestWard) -> None:
    vm = guests.new_guest("unix", agent_work_s=0.5)
    guests.done("set_admin_password", vm, new_pass=PASSWORD)
    assert list(guests.inside(vm)["passwords"].values()) == [PASSWORD]


# -- answers that are none


@pytest.mark.parametrize("answer", [pytest.param("", marks=pytest.mark.matrix), '{"message": "done"}'])
def test_what_is_no_answer_is_an_error(guests: GuestWard, answer: str) -> None:
    vm = guests.new_guest("unix", **guests.accident("answer", "resetnetwork", answer=answer))
    expected = "AgentTimeout" if not answer else "AgentError"
    guests.refused(guests.do("reset_network", vm, **(NO_PATIENCE if not answer else {})), expected)


def test_a_refusal_is_repeated_as_the_agent_said_it(guests: GuestWard) -> None:
    said = '{"returncode": "1", "message": "Error starting network: eth0"}'
    vm = guests.new_guest("unix", **guests.accident("answer", "resetnetwork", answer=said))
    text = guests.refused(guests.do("reset_network", vm), "AgentError")
    assert "(resetnetwork): 1: Error starting network: eth0." in text


# -- passwords


def test_a_password_that_was_not_understood_is_sent_again_with_new_keys(guests: GuestWard) -> None:
    said = '{"returncode": 500, "message": "Invalid password data received"}'
    vm = guests.new_guest("nova-agent", **guests.accident("answer", "password", count=1, answer=said))
    guests.done("set_admin_password", vm, new_pass=PASSWORD)
    inside = guests.inside(vm)
    assert (inside["passwords"], inside["key_exchanges"]) == ({"root": PASSWORD}, 2)


def test_what_the_agent_says_about_a_password_is_not_repeated(guests: GuestWard) -> None:
    said = f'{{"returncode": "1", "message": "cannot set {PASSWORD}"}}'
    vm = guests.new_guest("unix", **guests.accident("answer", "password", answer=said))
    handle = guests.do("set_admin_password", vm, new_pass=PASSWORD)
    assert "(password): code 1." in guests.refused(handle, "AgentError")
    assert PASSWORD not in str([handle.record(), *handle.events()])


def test_two_passwords_for_one_guest_are_set_one_after_the_other(guests: GuestWard) -> None:
    """An agent has one pair of keys at a time."""
    vm = guests.new_guest("nova-agent")
    handles = [guests.do("set_admin_password", vm, new_pass=f"password-{number}") for number in range(3)]
    for handle in handles:
        guests.succeeded(handle)
    inside = guests.inside(vm)
    assert (inside["key_exchanges"], inside["requests"]["password"]) == (3, 3)


@pytest.mark.parametrize(
    ("password", "os_type", "wrong"),
    [
        ("two\nlines", None, "The password holds a line break"),
        ("", "linux", "The password is empty"),
        ("with blank", "windows", "A guest with Windows takes a password of ASCII"),
    ],
)
def test_a_password_that_the_guest_cannot_set_is_not_sent(
    guests: GuestWard, password: str, os_type: str | None, wrong: str
) -> None:
    vm = guests.new_guest("unix")
    handle = guests.do("set_admin_password", vm, new_pass=password, os_type=os_type)
    assert wrong in guests.refused(handle, "RequestError")
    assert guests.asked(vm) == {}


# -- files


def test_a_file_arrives_byte_by_byte(guests: GuestWard) -> None:
    vm = guests.new_guest("unix")
    contents = 'Grüße, "Welt" \\ $HOME\n\ttab\n'
    guests.done("inject_file", vm, path="/root/ä file", contents=contents)
    guests.done("inject_file", vm, path="/longest", contents="x" * 2985)
    guests.done("inject_file", vm, path="/key", secret_contents="secret\n")
    files = guests.inside(vm)["files"]
    assert {path: file["content"] for path, file in files.items()} == {
        "/root/ä file": contents,
        "/longest": "x" * 2985,
        "/key": "secret\n",
    }


def test_a_file_that_the_agent_would_die_of_is_not_sent(guests: GuestWard) -> None:
    vm = guests.new_guest("nova-agent")
    text = guests.refused(guests.do("inject_file", vm, path="/f", contents_base64="/w=="), "RequestError")
    assert "it takes text in UTF-8 only" in text
    text = guests.refused(guests.do("inject_file", vm, path="/a,b", contents=""), "RequestError")
    assert "it takes no path with a comma" in text
    assert guests.asked(vm) == {"features": 2}


# -- networks


def test_a_network_that_the_agent_would_die_of_is_not_set_up(guests: GuestWard) -> None:
    vm = guests.new_guest("nova-agent")
    guests.call("VM.set_xenstore_data", vm.ref, {"vm-data/networking/00163e123456": "{}"})
    text = guests.refused(guests.do("reset_network", vm), "GuestUnable")
    assert "vm-data/networking/00163e123456 is no MAC address of 12 hex digits in upper case" in text
    assert guests.asked(vm) == {}
    guests.done("inject_network_info", vm, network_info=[NETWORK])
    guests.done("reset_network", vm)


# -- a new domain


def test_a_guest_that_reboots_meanwhile_is_asked_again_in_its_new_domain(guests: GuestWard) -> None:
    vm = guests.new_guest("windows", **guests.accident("reboot", "keyinit", count=1))
    before = guests.domid(vm)
    handle = guests.do("set_admin_password", vm, new_pass=PASSWORD)
    guests.succeeded(handle)
    after = guests.domid(vm)
    assert after != before
    assert f"the guest was rebooted or moved: domain {before} became {after}" in guests.history(handle)
    assert guests.asked(vm) == {"features": 2, "keyinit": 2, "password": 1}, "begun anew, and once"


def test_a_guest_that_is_halted_meanwhile_ends_the_wait(guests: GuestWard) -> None:
    vm = guests.new_guest("unix", **guests.accident("silent"))
    handle = guests.do("get_agent_version", vm)
    guests.await_wait(handle, "has not answered (version)")
    guests.call("VM.hard_shutdown", vm.ref)
    assert "left its domain while its agent was asked" in guests.refused(handle, "GuestUnable")


# -- which VM


def halted(guests: GuestWard) -> Any:
    return guests.new_guest("unix", running=False)


def paused(guests: GuestWard) -> Any:
    vm = guests.new_guest("unix")
    guests.call("VM.pause", vm.ref)
    return vm


@pytest.mark.parametrize("make", [halted, paused])
def test_a_guest_that_does_not_run_is_not_asked(guests: GuestWard, make: Callable[[GuestWard], Any]) -> None:
    vm = make(guests)
    assert "its agent answers only while it runs" in guests.refused(
        guests.do("get_agent_version", vm), "WrongPowerState"
    )


def test_an_instance_in_rescue_is_its_rescue_vm(guests: GuestWard) -> None:
    vm = guests.new_guest("unix", running=False)
    guests.call("VM.add_to_blocked_operations", vm.ref, "start", "in rescue")
    rescue = guests.new_vm(name=f"{vm.name}-rescue")
    for key, value in (("vmops.instance", vm.instance), ("vmops.role", "rescue")):
        guests.call("VM.remove_from_other_config", rescue.ref, key)
        guests.call("VM.add_to_other_config", rescue.ref, key, value)
    assert guests.done("get_agent_version", vm)["vm_uuid"] == rescue.uuid


def test_an_unknown_vm_is_refused(guests: GuestWard) -> None:
    handle = guests.client.reset_network(instance={"name": "nobody"})
    assert guests.refused(handle, "InstanceNotFound", state=State.FAILED)


def test_a_question_is_five_calls(guests: GuestWard) -> None:
    vm = guests.new_guest("unix")
    assert guests.calls_of(lambda: guests.do("get_agent_version", vm)) == {
        "VM.get_all_records_where": 1,
        "VM.get_record": 1,
        "Async.host.call_plugin": 1,
        "task.destroy": 1,
    }
