"""What the agents of the field do when they are asked."""

from __future__ import annotations

import pytest

from tests.integration.guest.support import GuestWard


@pytest.mark.parametrize("kind", ["nova-agent", "unix", "windows"])
def test_an_agent_of_the_field_does_what_it_is_asked_for(guests: GuestWard, kind: str) -> None:
    vm = guests.new_guest(kind)
    guests.done("get_agent_version", vm)
    guests.done("set_admin_password", vm, new_pass="hunter2")
    guests.done("inject_file", vm, path="/etc/motd", contents="Hello\n")
    guests.done("inject_network_info", vm, network_info=[{"label": "public", "mac": "00:16:3e:12:34:56"}])
    guests.done("inject_hostname", vm, hostname="web01")
    guests.done("reset_network", vm)
    assert guests.inside(vm)["network_resets"] == 1
