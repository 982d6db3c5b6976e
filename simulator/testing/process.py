"""A simulated pool in a process of its own, and what its control plane offers, as methods.

`PoolProcess` needs the standard library only; `simulator.testing.pool.SimulatedPool` adds the official XenAPI client.
"""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

#: How long the process may take to serve, and to end after SIGTERM.
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
_ADDRESS = "127.0.0.1"
_LOOK_EVERY_S = 0.01
_PASSWORD = "simulated"  # noqa: S105 - of a pool that holds nothing
_PORT_TAKEN = "Address already in use"


class ControlRefused(AssertionError):
    """The control plane answered with an error: the message says which."""


class Clock:
    """The pool's clock."""

    def __init__(self, pool: PoolProcess) -> None:
        self._pool = pool

    def advance(self, seconds: float) -> float:
        """Let this much time pass at once: timers fire, sessions and tasks age. Return the pool's time."""
        return float(self._pool.control("POST", "clock", {"advance": seconds})["now"])

    def now(self) -> float:
        """Return the pool's time, in seconds since 1970."""
        return self.advance(0)


class PoolProcess:
    """Starts `python -m simulator` on a free port of the loopback; ends it with the block, whatever happens.

    Arguments are further options of `vmops simulate`. With `state_dir` the pool outlives the process: a second
    PoolProcess on the same folder finds it again. The defaults are for tests: the collector of unused disks has no
    quiet period, a wrong password is refused at once. The process ends by itself when its parent dies.
    """

    def __init__(
        self,
        *options: str,
        state_dir: Path | None = None,
        port: int = 0,
        tls: bool = False,
        folder: Path | None = None,
    ) -> None:
        """Prepare; `folder` (default: a temporary one) receives the process's files and is removed at the end."""
        self._folder = folder or Path(tempfile.mkdtemp(prefix="simulator-test-"))
        self.state_dir = state_dir or self._folder / "state"
        self.user = "root"
        self.password = _PASSWORD
        self.password_file = self._folder / "password"
        self.password_file.write_text(_PASSWORD + "\n", encoding="utf-8")
        self._options = options
        self._tls = tls or "--tls" in options
        self.port = port
        self.clock = Clock(self)
        self._addresses = [_ADDRESS]
        """Where hosts answered when we last heard: any of them takes a request to the control plane."""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- life

    def start(self) -> None:
        """Start the process, on the port it had before if any, and wait until it serves.

        Raises RuntimeError with what the simulator said when it ended instead, TimeoutError.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._try_start(deadline):
            time.sleep(0.1)

    def _try_start(self, deadline: float) -> bool:
        """Start once; tell whether it serves. False when somebody holds the old port: it may be free in a moment."""
        port_file, log = self._folder / "port", self._folder / "log"
        port_file.unlink(missing_ok=True)
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                self._command(port_file),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                process_group=0,  # Ctrl-C is for the tests: they end the process when they are done with it
            )
        while not port_file.exists():
            if self._process.poll() is not None:
                status = self.stop()
                said = log.read_text(encoding="utf-8", errors="replace").strip()
                if self.port and _PORT_TAKEN in said and time.monotonic() < deadline:
                    return False
                raise RuntimeError(f"the simulator ended with status {status}: {said}")
            if time.monotonic() > deadline:
                raise TimeoutError("the simulator did not start")
            time.sleep(_LOOK_EVERY_S)
        self.port = int(port_file.read_text(encoding="utf-8"))
        return True

    def _command(self, port_file: Path) -> list[str]:
        command = [sys.executable, "-P", "-m", "simulator.testing.child", "--listen", f"{_ADDRESS}:{self.port}"]
        command += ["--password-file", str(self.password_file), "--port-file", str(port_file)]
        command += ["--state-dir", str(self.state_dir), "--quiet-period", "0", "--bad-password-delay", "0"]
        command += ["--tls"] if self._tls else []
        return [*command, *self._options]

    def stop(self) -> int:
        """End the process in order (SIGTERM); return its exit status. Raises TimeoutError when it had to be killed."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with process:  # closes our end of its standard input
            process.send_signal(signal.SIGTERM)
            try:
                return process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise TimeoutError("the simulator did not end when it was told to") from None

    def kill_process(self) -> None:
        """Kill the process (SIGKILL): the machine went, not just the toolstack. `start` brings it back."""
        process, self._process = self._process, None
        if process is not None:
            with process:
                process.kill()

    def close(self) -> None:
        """End the process and remove its files."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The process id. Raises RuntimeError when the process does not run."""
        if self._process is None:
            raise RuntimeError("the simulator is not running")
        return self._process.pid

    # -- addresses

    @property
    def url(self) -> str:
        """The address of the first host, the master to begin with; `hosts` has those of all."""
        return f"{'https' if self._tls else 'http'}://{_ADDRESS}:{self.port}"

    @property
    def certificate(self) -> Path:
        """The generated certificate (with TLS)."""
        return self.state_dir / "certificate.pem"

    def connect(self, timeout_s: float = 60, address: str = _ADDRESS) -> http.client.HTTPConnection:
        """Return a connection to the first host, or to another; the caller closes it."""
        if self._tls:
            context = ssl.create_default_context(cafile=str(self.certificate))
            context.check_hostname = False
            return http.client.HTTPSConnection(address, self.port, timeout=timeout_s, context=context)
        return http.client.HTTPConnection(address, self.port, timeout=timeout_s)

    # -- control plane

    def control(self, method: str, path: str, body: object = None) -> Any:
        """Send a request to /simulator/PATH of whichever host answers and return the JSON answer.

        Raises ControlRefused.
        """
        connection = self._connect_to_any()
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, f"/simulator/{path}", payload)
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise ControlRefused(f"{method} {path}: {response.status} {answer}")
        return answer

    def _connect_to_any(self) -> http.client.HTTPConnection:
        """Return an open connection to the first host that answers. Raises OSError when none does."""
        refusal: OSError | None = None
        for address in self._addresses:
            connection = self.connect(address=address)
            try:
                connection.connect()
            except OSError as error:
                connection.close()
                refusal = refusal or error
            else:
                return connection
        raise refusal or ConnectionRefusedError

    def stats(self) -> dict[str, Any]:
        """Return the counts of calls and sessions: `{"calls": {name: count}, "total": n, "sessions": n}`."""
        answer: dict[str, Any] = self.control("GET", "stats")
        return answer

    def calls(self) -> dict[str, int]:
        """Return how often each call came."""
        answer: dict[str, int] = self.stats()["calls"]
        return answer

    def reset_stats(self) -> None:
        """Begin to count anew."""
        self.control("POST", "stats/reset")

    def leaks(self) -> dict[str, list[dict[str, Any]]]:
        """Return what belongs to nobody, without the kinds of which there is nothing: {} is a clean pool."""
        answer: dict[str, list[dict[str, Any]]] = self.control("GET", "leaks")
        return {kind: objects for kind, objects in answer.items() if objects}

    def add_fault(self, **fault: object) -> str:
        """Set a fault (keys: simulator.faults); return its id."""
        identifier: str = self.control("POST", "faults", fault)["id"]
        return identifier

    def faults(self) -> list[dict[str, Any]]:
        """Return the faults with their hits and the calls that wait in them."""
        answer: list[dict[str, Any]] = self.control("GET", "faults")
        return answer

    def clear_faults(self, identifier: str | None = None) -> None:
        """Remove one fault, or all; calls that they hold go on."""
        self.control("DELETE", f"faults/{identifier}" if identifier else "faults")

    def wait_for_hit(self, identifier: str, timeout_s: float = 60) -> None:
        """Wait until a fault has acted, or holds a call. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while not any(fault["hits"] for fault in self.faults() if fault["id"] == identifier):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no call met the fault {identifier}")
            time.sleep(_LOOK_EVERY_S)

    def restart_toolstack(self, downtime_s: float = 0.1) -> None:
        """Restart XAPI: sessions and tasks are lost, VMs run on. Returns when it serves calls again."""
        self.control("POST", "xapi", {"action": "restart", "downtime_s": downtime_s})
        self.wait_until_listening()

    def kill_toolstack(self, downtime_s: float = 0.1) -> None:
        """Kill XAPI: what the database had not written yet is lost, too. Returns when it serves calls again."""
        self.control("POST", "xapi", {"action": "kill", "downtime_s": downtime_s})
        self.wait_until_listening()

    def wait_until_listening(self, timeout_s: float = 60) -> None:
        """Wait until the port answers again, and with more than HOST_STILL_BOOTING."""
        deadline = time.monotonic() + timeout_s
        while not self._serves_calls():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the pool does not answer at port {self.port} within {timeout_s:g} s")
            time.sleep(_LOOK_EVERY_S)

    def _serves_calls(self) -> bool:
        try:
            socket.create_connection((_ADDRESS, self.port), 1).close()
        except OSError:
            return False
        hosts = self.control("GET", "hosts").values()
        return all(host["state"] != "booting" for host in hosts if host["is_master"])

    def add_vm(self, **wish: object) -> dict[str, Any]:
        """Make a VM (keys: simulator.build); return its uuid, ref and the uuids of its disks."""
        answer: dict[str, Any] = self.control("POST", "vms", wish)
        return answer

    def guest(self, vm_uuid: str, **habits: object) -> dict[str, Any]:
        """Change how a guest behaves (keys: simulator.control); return its habits, and what is inside."""
        answer: dict[str, Any] = self.control("POST", f"guests/{vm_uuid}", habits)
        return answer

    def guest_xenstore(self, vm_uuid: str) -> str:
        """Return a socket on which whoever connects is the guest to XenStore: `XENSTORED_PATH` of its tools."""
        answer: str = self.control("POST", f"guests/{vm_uuid}/xenstore", {})["xenstore"]
        return answer

    def hosts(self) -> dict[str, dict[str, Any]]:
        """Return by uuid where every host answers, and as what (simulator.control_hosts)."""
        answer: dict[str, dict[str, Any]] = self.control("GET", "hosts")
        urls = [host["url"] for host in answer.values() if host["url"] is not None]
        self._addresses = sorted({urlsplit(url).hostname or _ADDRESS for url in urls} | {_ADDRESS})
        return answer

    def host(self, host_uuid: str, action: str, **more: object) -> None:
        """Let a host `die`, `return`, `restart` or `become_master` (keys: simulator.control_hosts)."""
        self.hosts()
        self.control("POST", f"hosts/{host_uuid}", {"action": action, **more})

    def storage(self, **wish: object) -> dict[str, Any]:
        """Change the storage's habits (keys: simulator.control); return the state of each repository by uuid."""
        answer: dict[str, Any] = self.control("POST", "storage", wish)
        return answer

    def coalesce(self, wait_s: float = 10) -> None:
        """Let the collector work now, and wait for it."""
        self.storage(coalesce_now=True, wait_s=wait_s)

    def disk(self, uuid: str) -> dict[str, Any]:
        """Return digest, digest at the snapshot's instant, depth and chain of a disk."""
        answer: dict[str, Any] = self.control("GET", f"vdis/{uuid}")
        return answer
