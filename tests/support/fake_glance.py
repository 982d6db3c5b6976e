"""The fake Glance (`fake_glance_server`) as a process of its own, and its control."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any, Self

from tests.support.fake_glance_images import Record


class FakeGlance:
    """The fake as a process of its own: start it, arrange failures, look, kill it, start it again."""

    def __init__(self, state_dir: Path, *arguments: str) -> None:
        self._state_dir, self._arguments = state_dir, arguments
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._is_tls = "--cert" in arguments

    @property
    def url(self) -> str:
        return f"{'https' if self._is_tls else 'http'}://127.0.0.1:{self._port}"

    def start(self) -> Self:
        """Start it; after `kill` on the same port, with the images as they were."""
        self._state_dir.mkdir(parents=True, exist_ok=True)
        port_file = self._state_dir / "port"
        port_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.support.fake_glance_server", "--listen", f"127.0.0.1:{self._port}"]
        command += ["--port-file", str(port_file), "--state-dir", str(self._state_dir / "images"), *self._arguments]
        self._process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        deadline = time.monotonic() + 20
        while not port_file.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError("the fake Glance does not start")
            time.sleep(0.01)
        self._port = int(port_file.read_text())
        return self

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def fault(self, call: str, effect: str, **details: float) -> None:
        """Arrange a failure."""
        self._ask("POST", "faults", {"call": call, "effect": effect, **details})

    def calls(self) -> Counter[str]:
        return Counter(self._ask("GET", "stats")["calls"])

    def log(self) -> list[str]:
        """The names of all calls, in order."""
        log: list[str] = self._ask("GET", "stats")["log"]
        return log

    def reset(self) -> None:
        """Forget faults and counts, and let paused calls go on."""
        self._ask("DELETE", "faults")
        self.resume()
        self._ask("POST", "stats/reset", {})

    def await_pause(self, timeout_s: float = 60.0) -> str:
        """Wait until a fault holds a call; return its name."""
        deadline = time.monotonic() + timeout_s
        while not (paused := self._ask("GET", "paused")):
            if time.monotonic() > deadline:
                raise TimeoutError("no call is paused")
            time.sleep(0.01)
        return str(paused[0])

    def resume(self, *, drop: bool = False) -> None:
        self._ask("POST", "resume", {"drop": drop})

    def images(self) -> dict[str, Record]:
        """Every record by id, deleted ones too."""
        return {record["id"]: record for record in self._ask("GET", "images")}

    def settings(self, **changes: str | int | None) -> None:
        self._ask("POST", "settings", changes)

    def data(self, image_id: str) -> bytes:
        return (self._state_dir / "images" / f"{image_id}.data").read_bytes()

    def _ask(self, method: str, what: str, body: Record | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}/fake/{what}", data, {"Content-Type": "application/json"}, method=method
        )
        unverified = ssl._create_unverified_context() if self._is_tls else None  # noqa: S323 - its own certificate
        with urllib.request.urlopen(request, timeout=10, context=unverified) as response:
            return json.loads(response.read())
