"""Guests' agents through the XenStore of dom0: when they look, in what order they act, what they die of."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest

from tests.support.agent_guest import NEVER_S, Guest, Start
from tests.support.agent_peer import WATCH, encrypted
from tests.support.worker import eventually

KINDS = ["nova-agent", "unix", "windows"]


# -- the whole protocol


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_does_everything_that_it_is_asked(start: Start, kind: str) -> None:
    guest = start(kind)
    document = {"label": "public", "mac": "any", "ips": [{"ip": "10.1.2.3", "netmask": "255.0.0.0", "enabled": "1"}],
                "ip6s": [{"ip": "fd00::3", "netmask": "64", "enabled": "1"}]}  # fmt: skip
    guest.give(hostname="web-1", **{f"networking__{guest.mac()}": json.dumps(document)})
    peer = guest.peer
    assert peer.ask("version", "agent")[0] == "0"
    assert peer.ask("features")[0] == "0"
    assert peer.ask("password", encrypted(peer.exchange(), b"s3cret\n")) == ("0", "")
    assert peer.ask("resetnetwork") == ("0", "")
    assert peer.inject("/root/.ssh/authorized_keys", b"ssh-ed25519 AAAA\n") == ("0", "")
    inside = guest.inside
    assert inside["agent_is_alive"]
    assert list(inside["passwords"].values()) == ["s3cret"]
    assert inside["files"]["/root/.ssh/authorized_keys"]["content"] == "ssh-ed25519 AAAA\n"
    assert (inside["hostname"], inside["networks"]) == ("web-1", {guest.mac(): document})
    assert inside["key_exchanges"] == inside["network_resets"] == 1
    assert inside["requests"] == dict.fromkeys(
        ("version", "features", "keyinit", "password", "resetnetwork", "injectfile"), 1
    )
    eventually(lambda: guest.addresses() == {"0/ip": "10.1.2.3", "0/ipv4/0": "10.1.2.3", "0/ipv6/0": "fd00::3"})
    assert peer.names("data/host") == peer.names("data/guest") == []


def test_an_interface_that_was_not_configured_keeps_its_address(start: Start) -> None:
    guest = start()
    before = guest.addresses()
    guest.give(**{f"networking__{guest.mac().lower()}": json.dumps({"label": "x", "ips": [{"ip": "10.9.9.9"}]})})
    assert guest.peer.ask("resetnetwork") == ("0", "")
    assert guest.addresses() == before


# -- order and time


@pytest.mark.parametrize(("kind", "first"), [("nova-agent", "host"), ("unix", "host"), ("windows", "guest")])
def test_the_order_of_removing_and_answering(start: Start, kind: str, first: str) -> None:
    guest = start(kind)
    guest.hold()
    peer = guest.peer
    identifier = peer.put("version", "agent")
    for node in ("host", "guest"):
        assert peer.wire.ask(WATCH, peer.path(f"data/{node}/{identifier}") + node.encode() + b"\0") == b"OK\0"
        peer.wire.event()
    guest.pass_time_until(lambda: not peer.is_waiting(identifier))
    told = [peer.wire.event().split(b"\0")[1].decode() for _ in range(2)]
    assert told[0] == first
    assert sorted(told) == ["guest", "host"]


def test_an_agent_looks_at_fixed_times_only(start: Start) -> None:
    guest = start()
    guest.hold()
    first, second = guest.peer.put("version"), guest.peer.put("features")
    guest.habits()
    assert guest.peer.is_waiting(first)
    assert guest.late_answer(first)[0] == guest.late_answer(second)[0] == "0"


def _is_left(guest: Guest, count: int) -> bool:
    return len(guest.peer.names("data/host")) == count


def test_nova_agent_takes_all_there_are_and_unix_one_each_time(start: Start) -> None:
    for kind, left in (("nova-agent", 0), ("unix", 2)):
        guest = start(kind)
        guest.hold()
        requests = [guest.peer.put("version") for _ in range(3)]
        guest.late_answer(requests[0])
        eventually(partial(_is_left, guest, left))


def test_a_request_that_is_taken_back_in_time_is_not_carried_out(start: Start) -> None:
    guest = start()
    guest.hold()
    identifier = guest.peer.put("injectfile", "L3gseQ==")
    guest.peer.remove(f"data/host/{identifier}")
    guest.habits(agent_poll_s=0)
    assert guest.peer.ask("version")[0] == "0"
    assert guest.inside["files"] == {}


def test_one_that_is_taken_back_while_nova_agent_works_kills_it(start: Start) -> None:
    """It was listed, and is gone when it is to be read. The answer of the one before still comes."""
    guest = start()
    guest.hold(agent_work_s=NEVER_S)
    first, second = guest.peer.put("version"), guest.peer.put("features")
    guest.pass_time_until(lambda: guest.inside["requests"]["version"] == 2)
    guest.peer.remove(f"data/host/{second}")
    assert guest.late_answer(first)[0] == "0"
    eventually(lambda: not guest.inside["agent_is_alive"])


def test_a_late_answer_lies_there_though_the_request_was_taken_back(start: Start) -> None:
    guest = start(agent_work_s=NEVER_S)
    identifier = guest.peer.put("version")
    eventually(lambda: guest.inside["requests"])
    guest.peer.remove(f"data/host/{identifier}")
    assert guest.peer.names("data/guest") == []
    assert guest.late_answer(identifier) == ("0", "2.1.22")


# -- death


def test_a_poisoned_request_kills_each_new_process_until_it_is_gone(start: Start) -> None:
    guest = start()
    poison = guest.peer.put_text("{")
    eventually(lambda: not guest.inside["agent_is_alive"])
    waiting = guest.peer.put("version")
    guest.habits(guest_agent="nova-agent")
    eventually(lambda: not guest.inside["agent_is_alive"])
    assert guest.peer.names("data/host") == [poison, waiting]
    guest.peer.remove(f"data/host/{poison}")
    guest.habits(guest_agent="nova-agent")
    assert guest.peer.answer(waiting)[0] == "0"


def test_a_reboot_brings_a_dead_agent_back(start: Start, xen: Any) -> None:
    guest = start()
    guest.peer.put("keyinit", "no number")
    eventually(lambda: not guest.inside["agent_is_alive"])
    assert "keyinit" in guest.inside["agent_ended_by"]
    xen.VM.hard_reboot(guest.ref)
    eventually(lambda: guest.inside["agent_is_alive"])
    assert guest.connect().ask("version")[0] == "0"


def test_windows_leaves_what_it_cannot_read_and_goes_on(start: Start) -> None:
    guest = start("windows")
    poison = guest.peer.put_text("{")
    assert guest.peer.ask("version", "agent")[0] == "0"
    assert guest.peer.names("data/host") == [poison]
    guest.peer.write(f"data/host/{poison}", json.dumps({"name": "ready", "value": ""}))
    assert guest.peer.answer(poison) == ("0", "")


def test_nova_agent_leaves_a_provider_it_does_not_work_for(start: Start) -> None:
    guest = start(None)
    guest.habits(guest_agent="nova-agent")
    assert not guest.inside["agent_is_alive"]
    assert "provider" in guest.inside["agent_ended_by"]
    guest.give(provider_data__provider="Rackspace")
    guest.habits(guest_agent="nova-agent")
    assert guest.peer.ask("version") == ("0", "2.1.22")


# -- accidents


def test_a_guest_that_reboots_in_an_exchange_has_forgotten_the_key(start: Start, xen: Any) -> None:
    guest = start(agent_accidents=[{"effect": "reboot", "command": "password", "count": 1}])
    domid = xen.VM.get_domid(guest.ref)
    text = encrypted(guest.peer.exchange(), b"secret\n")
    guest.peer.put("password", text)
    eventually(lambda: xen.VM.get_domid(guest.ref) != domid)
    assert guest.peer.read("name") is None
    eventually(lambda: guest.inside["agent_is_alive"])
    peer = guest.connect()
    assert peer.names("data/host") == peer.names("data/guest") == []
    assert peer.ask("password", text)[0] == 500
    assert peer.ask("password", encrypted(peer.exchange(), b"secret\n")) == ("0", "")


def test_a_command_is_done_but_its_answer_lost(start: Start) -> None:
    guest = start(agent_accidents=[{"effect": "mute", "command": "inject*", "when": "after"}])
    identifier = guest.peer.put("injectfile", "L3gseQ==")
    eventually(lambda: guest.inside["files"])
    eventually(lambda: not guest.peer.is_waiting(identifier))
    assert guest.peer.ask("version")[0] == "0"
    assert guest.peer.names("data/guest") == []


def test_an_agent_is_gone_after_so_many_requests(start: Start) -> None:
    guest = start("unix", agent_accidents=[{"effect": "die", "nth": 3}])
    assert guest.peer.ask("version")[0] == guest.peer.ask("features")[0] == "0"
    third = guest.peer.put("version")
    eventually(lambda: not guest.inside["agent_is_alive"])
    assert guest.peer.is_waiting(third)


def test_a_silent_agent_lets_requests_lie(start: Start) -> None:
    guest = start(agent_accidents=[{"effect": "silent", "command": "version"}])
    first, second = guest.peer.put("version"), guest.peer.put("version")
    assert guest.peer.ask("features")[0] == "0"
    assert guest.peer.names("data/host") == [first, second]
    assert guest.inside["agent_is_alive"]


def test_an_agent_answers_nonsense(start: Start) -> None:
    guest = start(agent_accidents=[{"effect": "answer", "answer": "not JSON"}])
    assert guest.peer.answer_text(guest.peer.put("version")) == b"not JSON"


def test_a_guest_cannot_write_more_than_its_quota_and_so_does_not_answer(start: Start) -> None:
    guest = start(agent_accidents=[{"effect": "answer", "answer": "x" * 2049, "count": 1}])
    identifier = guest.peer.put("version")
    eventually(lambda: not guest.peer.is_waiting(identifier))
    assert guest.peer.ask("features")[0] == "0"
    assert guest.peer.read(f"data/guest/{identifier}") is None
