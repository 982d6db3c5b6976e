"""A simulated pool in a process of its own, for every test that needs one.

with SimulatorProcess("--vms", "1") as simulator:
simulator.url, simulator.password
simulator.add_fault(match="Async.VDI.snapshot", effect="reset", when="after", nth=1)
"""

from __future__ import annotations

import contextlib
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
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

PASSWORD = "simulated"
_START_TIMEOUT_S = 30
_ROOT = Path(__file__).resolve().parents[2]


def vm_record(**fields: Any) -> dict[str, Any]:
    """Return a constructor's struct for an ordinary VM, with some fields replaced."""
    memory = str(256 << 20)
    texts = dict.fromkeys(
        ("PV_bootloader", "PV_kernel", "PV_ramdisk", "PV_args", "PV_bootloader_args", "PV_legacy_args", "PCI_bus"), ""
    )
    record: dict[str, Any] = {
        **texts,
        "name_label": "vm",
        "name_description": "",
        "user_version": "1",
        "is_a_template": False,
        "affinity": "OpaqueRef:NULL",
        "memory_static_max": memory,
        "memory_dynamic_max": memory,
        "memory_dynamic_min": memory,
        "memory_static_min": str(128 << 20),
        "VCPUs_params": {},
        "VCPUs_max": "1",
        "VCPUs_at_startup": "1",
        "actions_after_shutdown": "destroy",
        "actions_after_reboot": "restart",
        "actions_after_crash": "restart",
        "HVM_boot_policy": "BIOS order",
        "HVM_boot_params": {"order": "cd"},
        "platform": {"acpi": "1", "viridian": "true"},
        "other_config": {},
        "recommendations": "",
    }
    return record | fields


class ControlRefused(AssertionError):
    """The control plane answered with an error."""


class SimulatorProcess:
    """Starts `python -m simulator` on a free port of the loopback; ends it with the block, whatever happens.

    Arguments are further command-line options. With `state_dir` the pool outlives the process: a second
    SimulatorProcess on the same folder finds it again. Guests write and the collector waits as the options say; the
    defaults here are for tests: no quiet period, a wrong password refused at once.
    """

    def __init__(self, *options: str, state_dir: Path | None = None, port: int = 0, tls: bool = False) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="simulator-test-"))
        self.state_dir = state_dir or self._folder / "state"
        self.password = PASSWORD
        self.password_file = self._folder / "password"
        self.password_file.write_text(PASSWORD + "\n", encoding="utf-8")
        self._options = options
        self._tls = tls
        self.port = port
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
        """Start the process, on the port it had before if any, and wait until it serves."""
        port_file = self._folder / "port"
        port_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "simulator", "--listen", f"127.0.0.1:{self.port}"]
        command += ["--password-file", str(self.password_file), "--port-file", str(port_file)]
        command += ["--state-dir", str(self.state_dir), "--quiet-period", "0", "--bad-password-delay", "0"]
        command += ["--tls"] if self._tls else []
        self._process = subprocess.Popen([*command, *self._options], cwd=_ROOT, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not port_file.exists():
            if self._process.poll() is not None:
                raise RuntimeError(f"the simulator ended with status {self._process.returncode}")
            if time.monotonic() > deadline:
                raise TimeoutError("the simulator did not start")
            time.sleep(0.01)
        self.port = int(port_file.read_text(encoding="utf-8"))

    def stop(self) -> int:
        """End the process in order (SIGTERM); return its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def kill_process(self) -> None:
        """Kill the process (SIGKILL): the machine went, not just the toolstack. `start` brings it back."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """End the process and remove its files."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    # -- addresses

    @property
    def url(self) -> str:
        """The pool's address, as a client takes it."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def certificate(self) -> Path:
        """The generated certificate (with --tls)."""
        return self.state_dir / "certificate.pem"

    def connect(self, timeout_s: float = 60) -> http.client.HTTPConnection:
        """Return a connection to the pool."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        if self._tls:
            context = ssl.create_default_context(cafile=str(self.certificate))
            context.check_hostname = False
            return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout_s, context=context)
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)

    # -- control plane

    def control(self, method: str, path: str, body: object = None) -> Any:
        """Send a request to /simulator/PATH and return the JSON answer. Raises ControlRefused."""
        connection = self.connect()
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

    def stats(self) -> dict[str, Any]:
        """Return the counts of calls and sessions."""
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

    def wait_for_hit(self, identifier: str, timeout_s: float = 10) -> None:
        """Wait until a fault has acted, or holds a call."""
        deadline = time.monotonic() + timeout_s
        while not any(fault["hits"] for fault in self.faults() if fault["id"] == identifier):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no call met the fault {identifier}")
            time.sleep(0.01)

    def restart(self, downtime_s: float = 0.1) -> None:
        """Restart the toolstack: sessions and tasks are lost."""
        self.control("POST", "xapi", {"action": "restart", "downtime_s": downtime_s})
        self.wait_until_listening()

    def kill(self, downtime_s: float = 0.1) -> None:
        """Kill the toolstack: what the database had not written yet is lost, too."""
        self.control("POST", "xapi", {"action": "kill", "downtime_s": downtime_s})
        self.wait_until_listening()

    def wait_until_listening(self, timeout_s: float = 10) -> None:
        """Wait until the port answers again."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def add_vm(self, **wish: object) -> dict[str, Any]:
        """Make a VM (keys: simulator.build); return its uuid, ref and the uuids of its disks."""
        answer: dict[str, Any] = self.control("POST", "vms", wish)
        return answer

    def coalesce(self, wait_s: float = 10) -> None:
        """Let the collector work now, and wait for it."""
        self.control("POST", "storage", {"coalesce_now": True, "wait_s": wait_s})

    def disk(self, uuid: str) -> dict[str, Any]:
        """Return digest, digest at the snapshot's instant, depth and chain of a disk."""
        answer: dict[str, Any] = self.control("GET", f"vdis/{uuid}")
        return answer

    # -- a small client of its own, so that these tests need nobody else's

    @contextlib.contextmanager
    def session(self) -> Iterator[Client]:
        """Log in, and out at the end."""
        client = Client(self)
        try:
            yield client
        finally:
            client.close()


class XenFailure(Exception):
    """A call failed; `details` is the code and its parameters."""

    def __init__(self, details: list[str]) -> None:
        super().__init__(details)
        self.details = details


class Client:
    """A plain XML-RPC client on one kept-alive connection, without any cleverness."""

    def __init__(self, simulator: SimulatorProcess, originator: str = "tests") -> None:
        self._connection = simulator.connect()
        self.ref = ""
        self.ref = self.raw("session.login_with_password", "root", simulator.password, "1.0", originator)

    def raw(self, method: str, *params: Any) -> Any:
        """Call without a session argument. Raises XenFailure."""
        body = xmlrpc.client.dumps(params, method, allow_none=True)
        self._connection.request("POST", "/RPC2", body.encode(), {"Content-Type": "text/xml"})
        response = self._connection.getresponse()
        text = response.read()
        if response.status != http.HTTPStatus.OK:
            raise ConnectionError(f"HTTP {response.status}")
        answer: Any = xmlrpc.client.loads(text)[0][0]
        if answer["Status"] != "Success":
            raise XenFailure(answer["ErrorDescription"])
        return answer["Value"]

    def __call__(self, method: str, *params: Any) -> Any:
        """Call with the session. Raises XenFailure."""
        return self.raw(method, self.ref, *params)

    def error(self, method: str, *params: Any) -> list[str]:
        """Call, expect a failure, return its details."""
        try:
            result = self(method, *params)
        except XenFailure as failure:
            return failure.details
        raise AssertionError(f"{method} succeeded: {result!r}")

    def wait(self, task_ref: str, timeout_s: float = 30) -> dict[str, Any]:
        """Wait for a task's end; return its record."""
        deadline = time.monotonic() + timeout_s
        while True:
            record: dict[str, Any] = self("task.get_record", task_ref)
            if record["status"] not in ("pending", "cancelling"):
                return record
            if time.monotonic() > deadline:
                raise TimeoutError(f"{record['name_label']} is still pending")
            time.sleep(0.01)

    def find_vm(self, name: str) -> str:
        """Return the reference of the VM of this name."""
        found: list[str] = self("VM.get_by_name_label", name)
        assert len(found) == 1, found
        return found[0]

    def root_disk(self, vm_ref: str) -> str:
        """Return the reference of the disk at position 0."""
        for vbd_ref in self("VM.get_VBDs", vm_ref):
            if self("VBD.get_userdevice", vbd_ref) == "0":
                vdi_ref: str = self("VBD.get_VDI", vbd_ref)
                return vdi_ref
        raise AssertionError("no disk at position 0")

    def close(self) -> None:
        """Log out and close the connection."""
        with contextlib.suppress(XenFailure, OSError, http.client.HTTPException):
            self("session.logout")
        self._connection.close()
