"""nova-agent, unmodified, is the guest of a simulated VM. TEST_NOVA_AGENT names a checkout of its sources.

It runs in namespaces and a root of its own (nova_agent.sh), with stand-ins for the programs that would change a system.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.conftest import HERE, install, install_python
from tests.support.agent_peer import Peer, encrypted
from tests.support.official import connected
from tests.support.simulator import SimulatorProcess
from tests.unit.simulator.dom0_support import WireClient

CHECKOUT = "TEST_NOVA_AGENT"
REQUIREMENTS = HERE / "requirements-nova-agent.txt"
NAMESPACES = (
    "unshare",
    "--user",
    "--map-root-user",
    "--mount",
    "--net",
    "--uts",
    "--ipc",
    "--pid",
    "--fork",
    "--kill-child",
)
#: What the agent would change a system with: each notes how it was called, and what it was told on its input.
STAND_INS = ("passwd", "hostnamectl", "hostname", "ifdown", "ifup", "ip", "netplan")
STAND_IN = '#!/bin/sh\n{{ echo "$0 $*"; [ "${{0##*/}}" != passwd ] || head -n 2; }} >> /calls\n'
PROVIDER = {"vm-data/provider_data/provider": "Rackspace"}
DOCUMENT = {
    "label": "public",
    "ips": [{"ip": "10.1.2.3", "netmask": "255.255.255.0", "enabled": "1", "gateway": "10.1.2.1"}],
    "gateway": "10.1.2.1",
    "dns": ["10.1.2.2"],
}


@pytest.fixture(scope="module")
def sources() -> Path:
    """The checkout; skip without it, or without what it is run with."""
    if CHECKOUT not in os.environ:
        pytest.skip(f"{CHECKOUT} names no checkout of nova-agent")
    for program in ("xenstore-read", "unshare", "ip"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: xenstore-utils, util-linux, iproute2)")
    if subprocess.run([*NAMESPACES, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may make no namespaces")
    return Path(os.environ[CHECKOUT]).resolve(strict=True)


@pytest.fixture(scope="module")
def python() -> Path:
    """An interpreter with what the agent imports."""
    folder = install("nova-agent", [REQUIREMENTS], lambda place: install_python(place, REQUIREMENTS), sys.version)
    return folder / "bin" / "python"


@pytest.fixture
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess("--guest-writes", "0") as process:
        yield process


def _root(folder: Path) -> Path:
    """Make the files of a small Debian."""
    root = folder / "root"
    for name in ("etc/network", "stand-ins", "root"):
        (root / name).mkdir(parents=True)
    (root / "etc/debian_version").write_text("12\n", encoding="utf-8")
    (root / "etc/hostname").write_text("before\n", encoding="utf-8")
    (root / "calls").touch()
    for name in STAND_INS:
        path = root / "stand-ins" / name
        path.write_text(STAND_IN.format(), encoding="utf-8")
        path.chmod(0o755)
    return root


@contextlib.contextmanager
def _running(command: list[str], log: Path) -> Iterator[None]:
    """Run the agent as long as the block; show what it said when that fails."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield
        except BaseException:
            sys.stderr.write(log.read_text(encoding="utf-8", errors="replace"))
            raise
        finally:
            process.kill()


def test_nova_agent_does_everything_that_it_is_asked(
    simulator: SimulatorProcess, sources: Path, python: Path, tmp_path: Path
) -> None:
    vm = simulator.add_vm(disks=[], xenstore_data=PROVIDER)
    root = _root(tmp_path)
    with connected(simulator) as xen, contextlib.ExitStack() as stack:
        mac = xen.VIF.get_MAC(xen.VM.get_VIFs(vm["ref"])[0])
        data = {"vm-data/hostname": "web-1", f"vm-data/networking/{mac.replace(':', '').upper()}": json.dumps(DOCUMENT)}
        xen.VM.set_xenstore_data(vm["ref"], PROVIDER | data)
        xen.VM.start(vm["ref"], False, False)
        (place,) = simulator.control("GET", "dom0").values()
        peer = Peer(WireClient(Path(place["xenstore"])), int(xen.VM.get_domid(vm["ref"])))
        stack.callback(peer.close)

        socket = simulator.guest_xenstore(vm["uuid"])
        folders = {str(sources), str(python.parents[1]), sys.base_prefix}
        needed = sorted(one for one in folders if not Path(one).is_relative_to("/usr"))
        script = [str(HERE / "nova_agent.sh"), str(root), socket, mac, str(sources), str(python), *needed]
        stack.enter_context(_running([*NAMESPACES, "sh", *script], tmp_path / "log"))

        code, version = peer.ask("version", "agent")
        assert (code, version.count(".")) == ("0", 2)
        features = peer.ask("features")[1].split(",")
        assert {"keyinit", "password", "resetnetwork", "injectfile"} <= set(features)
        assert peer.ask("password", "AAAA")[0] == 500
        assert peer.ask("password", encrypted(peer.exchange(), "pä$$ wörd\n".encode())) == ("0", "")
        assert peer.inject("/root/.ssh/authorized_keys", b"ssh-ed25519 AAAA, me\n") == ("0", "")
        assert peer.ask("resetnetwork") == ("0", "")
        assert peer.ask("no-such-command") == ("0", "")
        assert peer.names("data/host") == peer.names("data/guest") == []

    calls = (root / "calls").read_text(encoding="utf-8")
    assert "passwd root\npä$$ wörd\npä$$ wörd\n" in calls
    assert "web-1" in calls
    assert "ifup eth0" in calls
    assert "address 10.1.2.3" in (root / "etc/network/interfaces").read_text(encoding="utf-8")
    injected = root / "root/.ssh/authorized_keys"
    assert injected.read_bytes() == b"ssh-ed25519 AAAA, me\n"
    assert injected.stat().st_mode & 0o777 == 0o600
