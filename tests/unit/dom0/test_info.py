"""vmops-info: what a host has, whatever that is."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from vmops_lib import info
from vmops_lib.arguments import Arguments
from vmops_lib.failures import CommandFailed, NotFound, Unsupported

from tests.support.dom0 import VM_UUID, Host

NO_ARGUMENTS = Arguments({})


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="ascii")
    path.chmod(stat.S_IRWXU)


def test_a_host_with_everything_has_everything(inside: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = inside.root / "tools"
    program(tools / "ovs-vsctl", 'echo "ovs-vsctl (Open vSwitch) 2.17.7"')
    for name in ("iptables", "ip6tables", "ebtables", "ipset", "conntrack"):
        program(tools / name, "true")
    program(inside.root / "etc/xapi.d/vif-hotplug", "true")
    for name in ("ip", "ip6", "arp"):
        switch = inside.root / f"proc/sys/net/bridge/bridge-nf-call-{name}tables"
        switch.parent.mkdir(parents=True, exist_ok=True)
        switch.write_text("1\n", encoding="ascii")
    (inside.root / "etc/xensource").mkdir(exist_ok=True)
    (inside.root / "etc/xensource/network.conf").write_text("bridge\n", encoding="ascii")
    monkeypatch.setenv("PATH", str(tools))
    yes = dict.fromkeys(("ct", "iptables", "ip6tables", "ebtables", "ipset", "conntrack"), True)
    rest = dict.fromkeys(("xenstore_socket", "console_log", "vif_hotplug_hook"), True)
    netfilter = {"bridge_nf": {"ip": True, "ip6": True, "arp": True}}
    assert info.capabilities(NO_ARGUMENTS) == {
        "network_backend": "bridge", "ovs_version": "2.17.7", **yes, **rest, **netfilter,
    }  # fmt: skip


def test_a_host_with_nothing_has_nothing(inside: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    del inside
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("VMOPS_DOM0_ROOT", str(tmp_path))
    monkeypatch.setenv("XENSTORED_PATH", str(tmp_path / "none"))
    found = info.capabilities(NO_ARGUMENTS)
    assert found.pop("network_backend") == "openvswitch"
    assert found.pop("bridge_nf") == {"ip": False, "ip6": False, "arp": False}
    assert not any(found.values())


@pytest.mark.parametrize(
    ("text", "running"),
    [('echo "Currently running: True"', True), ('echo "Currently running: False"', False), ("echo False", False)],
)
def test_the_garbage_collector_says_whether_it_runs(inside: Host, text: str, *, running: bool) -> None:
    program(inside.root / "opt/xensource/sm/cleanup.py", f'[ "$*" = "-q -u {VM_UUID}" ] && {text}')
    assert info.coalesce(Arguments({"sr_uuid": VM_UUID})) == {"running": running}


def test_what_the_garbage_collector_cannot_say_is_a_failure(inside: Host) -> None:
    cleanup = inside.root / "opt/xensource/sm/cleanup.py"
    cleanup.unlink(missing_ok=True)
    with pytest.raises(Unsupported):
        info.coalesce(Arguments({"sr_uuid": VM_UUID}))
    program(cleanup, "echo 'no such SR' >&2; exit 1")
    with pytest.raises(NotFound, match="no such SR"):
        info.coalesce(Arguments({"sr_uuid": VM_UUID}))
    program(cleanup, "echo perhaps")
    with pytest.raises(CommandFailed, match="neither True nor False"):
        info.coalesce(Arguments({"sr_uuid": VM_UUID}))
