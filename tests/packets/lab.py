"""A host with a real switch, and guests on it, in network namespaces of this machine; gone when the block ends."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from threading import Thread
from typing import IO, Any, Literal, Self
from uuid import uuid4

from simulator.dom0.answers import Ended, request, result
from simulator.dom0.dom0 import Dom0
from tests.support.servers import keep
from tests.support.worker import eventually
from worker.cli.embedded import ManagedProcess

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "dom0/plugins"
BRIDGE = "xenbr0"
Kind = Literal["ovs", "bridge"]
#: What is heard is heard within this time, and what was not heard until then is not heard.
HEARD_S, SILENCE_S = 20.0, 0.6
_TOOLS = {
    "ovs": ("ovs-vsctl", "ovs-ofctl", "ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ethtool"),
    "bridge": ("iptables", "ip6tables", "ebtables", "ipset"),
}
_numbers = count(1)


def obstacle(kind: Kind) -> str | None:
    """Return why there can be no such lab here, None when there can."""
    missing = [tool for tool in ("ip", *_TOOLS[kind]) if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)} (Debian: openvswitch-switch, ethtool, iptables, ipset, ebtables)"
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    name = f"vmops-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "network namespaces are not permitted here"
    try:
        probe = "ip link add br0 type bridge && test -e /proc/sys/net/bridge/bridge-nf-call-iptables"
        if kind == "bridge" and _run("ip", "netns", "exec", name, "sh", "-c", probe, check=False).returncode:
            return "the kernel has no bridges whose packets come to iptables"
    finally:
        _run("ip", "netns", "del", name)
    return None


def _run(*argv: str, check: bool = True, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env=env)
    assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.stderr or done.stdout}"
    return done


@dataclass
class Guest:
    """A VM: a namespace with an interface, and a process in it that does what it is told."""

    name: str
    number: int
    namespace: str
    addresses: list[str]
    """Without prefix lengths."""
    vif: str = field(default_factory=lambda: str(uuid4()))

    @property
    def mac(self) -> str:
        return f"02:16:3e:00:00:{self.number:02x}"

    @property
    def device(self) -> str:
        """Its port on the host, as XAPI names it."""
        return f"vif{self.number}.0"

    def start(self) -> None:
        """Start the process in it."""
        script = str(Path(__file__).with_name("guest.py"))
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, sys.executable, "-IS", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._asked: dict[int, Future[Any]] = {}
        self._ids = count(1)
        assert self._process.stdout is not None
        self._reader = Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, output: IO[str]) -> None:
        for line in output:
            answer = json.loads(line)
            self._asked.pop(answer["id"]).set_result(answer["is"])

    def ask(self, do: str, **values: Any) -> Future[Any]:
        """Let it do something; the answer comes when it is done."""
        number, answer = next(self._ids), Future[Any]()
        self._asked[number] = answer
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": number, "do": do, **values}) + "\n")
        self._process.stdin.flush()
        return answer

    def does(self, do: str, **values: Any) -> bool:
        """Let it do something, and wait for that."""
        answer = self.ask(do, **values).result(30)
        assert isinstance(answer, bool), answer
        return answer

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._reader.join(10)
        self._process.stdout.close()


class Lab:
    """One host. A context manager; use it once."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind: Kind = kind
        self._folder = folder
        self._name = f"vmops-{os.getpid()}-{next(_numbers)}"
        self._guests: list[Guest] = []
        self._generation = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for guest in self._guests:
            guest.stop()
        self._stack.close()

    def _remove(self) -> None:
        for namespace in [*(guest.namespace for guest in self._guests), self._name]:
            _run("ip", "netns", "del", namespace, check=False)

    # -- the host

    def _open(self) -> None:
        self._stack.callback(self._remove)
        _run("ip", "netns", "add", self._name)
        self._dom0 = Dom0(str(uuid4()), self._folder, [PLUGINS], {})
        self._dom0.open()
        self._stack.callback(self._dom0.close)
        for name in ("ovs-vsctl", "ovs-ofctl"):
            (self._dom0.root.path / "usr/bin" / name).unlink()  # the simulator's: here are real ones
        for name in ("sys", "proc"):
            (self._dom0.root.path / name).symlink_to(f"/{name}")
        if self.kind == "ovs":
            self._open_switch()
        else:
            self.host("ip", "link", "add", BRIDGE, "type", "bridge")
            self.host("ip", "link", "set", BRIDGE, "up")

    @property
    def environment(self) -> dict[str, str]:
        """That of a plugin, and where this host's switch is."""
        own = {f"OVS_{name}DIR": str(self._folder) for name in ("RUN", "DB", "LOG", "SYSCONF")}
        return {**self._dom0.root.environment(self._dom0.xenstore_address), **own}

    def host(self, *argv: str, check: bool = True) -> str:
        """Run a program on the host; return what it printed."""
        return _run("ip", "netns", "exec", self._name, *argv, check=check, env=self.environment).stdout

    def _open_switch(self) -> None:
        schema, socket = "/usr/share/openvswitch/vswitch.ovsschema", f"{self._folder}/db.sock"
        self.host("ovsdb-tool", "create", str(self._folder / "conf.db"), schema)
        self._daemon("ovsdb-server", f"--remote=punix:{socket}", str(self._folder / "conf.db"))
        self.host("ovs-vsctl", "--no-wait", "--timeout=20", "init")
        self._vswitchd = self._daemon("ovs-vswitchd", "--disable-system", f"unix:{socket}")
        datapath = ["--", "set", "Bridge", BRIDGE, "datapath_type=netdev"]
        self.host("ovs-vsctl", "--timeout=20", "add-br", BRIDGE, *datapath)

    def restart_switch(self) -> None:
        """Kill the switch and start it again, with no flows but what the bridge has by itself."""
        self._vswitchd.kill()
        self._start(self._vswitchd)
        eventually(lambda: self.host("ovs-ofctl", "show", BRIDGE, check=False))

    def _daemon(self, program: str, *arguments: str) -> ManagedProcess:
        argv = ["ip", "netns", "exec", self._name, program, f"--pidfile={self._folder}/{program}.pid", *arguments]
        daemon = ManagedProcess(program, argv, self._folder / f"{program}.log", env=self.environment)
        self._stack.callback(daemon.kill)
        self._start(daemon)
        self._stack.enter_context(keep(daemon))
        return daemon

    def _start(self, daemon: ManagedProcess) -> None:
        pid_file = self._folder / f"{daemon.name}.pid"
        pid_file.unlink(missing_ok=True)
        daemon.start()
        daemon.wait_until(pid_file.exists, 20)

    def plugin(self, function: str, **arguments: str) -> Any:
        """Call the firewall's plugin as XAPI does; return its result. Raises XAPI's failure."""
        argument = request(function, "OpaqueRef:none", arguments)
        script = str(self._dom0.root.plugins / "vmops-firewall")
        argv = ["ip", "netns", "exec", self._name, sys.executable, script, argument]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, env=self.environment)
        return json.loads(result(Ended(done.returncode, done.stdout, done.stderr)))

    def apply(self, gone: list[str] | None = None, **objects: Any) -> dict[str, Any]:
        """Let the host enforce objects; `rules_web` stands for `rules:web`."""
        self._generation += 1
        named = {key.replace("_", ":", 1): value for key, value in objects.items()}
        document = {"api": 1, "backend": self.kind, "generation": self._generation, "set": named, "gone": gone or []}
        packed = base64.b64encode(zlib.compress(json.dumps(document).encode())).decode()
        answer: dict[str, Any] = self.plugin("apply", doc_b64z=packed)
        return answer

    # -- guests

    def guest(self, name: str, *addresses: str) -> Guest:
        """Add a guest whose interface is not plugged in yet; addresses with prefix lengths."""
        number = len(self._guests) + 1
        guest = Guest(name, number, f"{self._name}-{name}", [one.partition("/")[0] for one in addresses])
        _run("ip", "netns", "add", guest.namespace)
        self._guests.append(guest)
        inside = partial(_run, "ip", "netns", "exec", guest.namespace)
        inside("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
        _run(
            *("ip", "link", "add", guest.device, "netns", self._name, "type", "veth"),
            *("peer", "name", "eth0", "netns", guest.namespace),
        )
        inside("ip", "link", "set", "eth0", "address", guest.mac)
        for address in addresses:
            inside("ip", "address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
        inside("ip", "link", "set", "lo", "up")
        inside("ip", "link", "set", "eth0", "up")
        if shutil.which("ethtool"):
            inside("ethtool", "-K", "eth0", "tx", "off")
        guest.start()
        return guest

    def plug(self, guest: Guest) -> None:
        """Plug a guest in, as XAPI's script does."""
        if self.kind == "ovs":
            known = f"external-ids:xs-vif-uuid={guest.vif}"
            port = ["--", "set", "Interface", guest.device, known]
            self.host("ovs-vsctl", "--timeout=20", "add-port", BRIDGE, guest.device, *port)
        else:
            self.host("ip", "link", "set", guest.device, "master", BRIDGE)
        backend = f"/local/domain/0/backend/vif/{guest.number}/0"
        self._dom0.store.write(f"{backend}/mac", guest.mac)
        self.host("ip", "link", "set", guest.device, "up")
        hook = ["-action", "online", "-vifuuid", guest.vif, "-vmuuid", str(uuid4())]
        self.host(sys.executable, str(PLUGINS / "vif-hotplug"), *hook)

    def vif(self, guest: Guest, *groups: str) -> dict[str, Any]:
        """Return the object of a guest's interface."""
        return {
            "bridge": BRIDGE,
            "mac": guest.mac,
            "addresses": guest.addresses,
            "groups": list(groups),
        }


def together(deeds: dict[str, Callable[[], bool]]) -> dict[str, bool]:
    """Do many things at the same time; return what came of each."""
    with ThreadPoolExecutor(len(deeds)) as pool:
        futures = {name: pool.submit(deed) for name, deed in deeds.items()}
        return {name: future.result(60) for name, future in futures.items()}
