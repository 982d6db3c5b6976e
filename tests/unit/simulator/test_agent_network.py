"""resetnetwork of each agent of the field: what it takes from vm-data, and what kills it."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.agent.agent import Agent, Died
from simulator.agent.nova import NovaAgent
from simulator.agent.unix import UnixAgent
from simulator.agent.windows import WindowsAgent
from tests.unit.simulator.agent_support import DOCUMENT, MAC, FakeGuest, ask, made

KINDS: list[type[Agent]] = [NovaAgent, UnixAgent, WindowsAgent]


@pytest.fixture
def guest() -> FakeGuest:
    return FakeGuest()


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_configured_from_vm_data(kind: type[Agent], guest: FakeGuest) -> None:
    guest.tree["vm-data/hostname"] = "web"
    guest.give_network()
    guest.give_network("00163E000000")  # somebody else's
    agent = made(kind, guest)
    assert ask(agent, "resetnetwork") == ("0", "")
    assert agent.inside.hostname == "web"
    assert agent.inside.networks == {MAC: DOCUMENT}
    del guest.tree["vm-data/hostname"]
    assert ask(agent, "resetnetwork") == ("0", "")
    assert agent.inside.hostname == "web"


@pytest.mark.parametrize("kind", KINDS)
def test_a_mac_in_lower_case_is_passed_over_and_called_a_success(kind: type[Agent], guest: FakeGuest) -> None:
    guest.give_network(MAC.lower())
    agent = made(kind, guest)
    assert ask(agent, "resetnetwork") == ("0", "")
    assert agent.inside.networks == {}
    assert agent.inside.network_resets == 1


V6 = [{"ip": "fd00::5", "netmask": 64, "enabled": "1"}]
ROUTE6 = [{"route": "fd01::", "netmask": "ffff::", "gateway": "fd00::1"}]


@pytest.mark.parametrize(
    ("changes", "deadly_for"),
    [
        ({"label": ...}, {"debian", "redhat"}),
        ({"ip6s": V6}, {"redhat"}),
        ({"ip6s": V6, "gateway_v6": "fd00::1"}, set()),
        ({"routes": ROUTE6}, {"netplan"}),
        ({"ips": None, "gateway": ..., "dns": ...}, set()),
    ],
)
@pytest.mark.parametrize("system", ["debian", "redhat", "netplan"])
def test_a_document_kills_nova_agent_where_the_field_says(
    guest: FakeGuest, system: str, changes: dict[str, Any], deadly_for: set[str]
) -> None:
    guest.tree["vm-data/hostname"] = "web"
    guest.give_network(**changes)
    agent = made(NovaAgent, guest, agent_system=system)
    if system in deadly_for:
        with pytest.raises(Died):
            ask(agent, "resetnetwork")
        assert agent.inside.networks == {}
    else:
        assert ask(agent, "resetnetwork") == ("0", "")
        assert MAC in agent.inside.networks
    assert agent.inside.hostname == "web"


def test_an_old_freebsd_agent_answers_500_when_it_has_done_it(guest: FakeGuest) -> None:
    guest.give_network()
    agent = made(UnixAgent, guest, agent_system="freebsd")
    assert ask(agent, "resetnetwork")[0] == "500"
    assert agent.inside.networks == {MAC: DOCUMENT}


def test_windows_leaves_the_name_when_it_is_told_to_and_wants_a_mac(guest: FakeGuest) -> None:
    guest.tree["vm-data/hostname"] = "web"
    guest.give_network()
    agent = made(WindowsAgent, guest)
    assert ask(agent, "resetnetwork", "nohostname") == ("0", "")
    assert agent.inside.hostname == ""
    assert ask(agent, "sethostname", "other") == ("0", "")
    assert agent.inside.hostname == "other"
    guest.give_network(mac=...)
    assert ask(agent, "resetnetwork")[0] == "1"


def test_nova_agent_leaves_a_provider_that_it_does_not_know(guest: FakeGuest) -> None:
    assert "provider" in made(NovaAgent, guest).reason_to_leave()
    assert made(NovaAgent, guest, agent_needs_provider=False).reason_to_leave() == ""
    guest.tree["vm-data/provider_data/provider"] = "RackSpace"
    assert made(NovaAgent, guest).reason_to_leave() == ""
    assert made(UnixAgent).reason_to_leave() == made(WindowsAgent).reason_to_leave() == ""
