"""A password is in clear with its caller, in the step that needs it and in the guest, and nowhere between."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import quote
from uuid import uuid4

import pytest

from tests.integration.guest.support import GuestWard
from tests.support.events import EventLog
from tests.support.spawning import put_image, request_for
from tests.support.transcript import Transcript, stored
from tests.support.worker import eventually
from worker.cli.embedded import free_port
from worker.client import Handle
from worker.errors import OperationFailed

#: It reads otherwise in JSON and in URLs, so that these forms are looked for as well.
CANARY = f"Canary-{uuid4()}/ß"
#: In a file. XAPI gives a plugin its arguments on the command line, and an agent has no cipher for files.
OF_A_FILE = f"Canary-{uuid4()}/ß"


def forms(text: str) -> set[str]:
    """Return the spellings in which a text may stand somewhere: as it is, escaped, or in base64 at any offset."""
    raw = text.encode()
    inside = {b64encode(bytes(shift) + raw)[4 if shift else 0 : -4].decode() for shift in range(3)}
    return {text, json.dumps(text)[1:-1], repr(raw)[2:-1], quote(text), quote(text, safe=""), raw.hex(), *inside}


def places_of(text: str, places: dict[str, str]) -> list[str]:
    """Return where a text can be read."""
    return [place for place, found in places.items() if any(form in found for form in forms(text))]


def test_a_text_is_found_in_every_spelling() -> None:
    for before in ("", "x", "xy"):
        hidden = b64encode(f"{before}{CANARY}\n".encode()).decode()
        assert any(form in hidden for form in forms(CANARY))
    assert any(form in json.dumps({"password": CANARY}) for form in forms(CANARY))


class ProcessWatch:
    """Reads the argument lists and environments of all processes again and again; a context manager."""

    def __enter__(self) -> Self:
        self.seen: set[str] = set()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(10)

    def _watch(self) -> None:
        while not self._is_over.wait(0.02):
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        self.seen.add((process / name).read_bytes().decode(errors="replace"))


FILE = {"path": "/root/key", "secret_contents": OF_A_FILE}


@pytest.fixture
def flower(guests: GuestWard) -> Iterator[str]:
    """The address of a Flower."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = guests.deployment.celery("flower", "flower", "--address=127.0.0.1", f"--port={port}", "--read_only")
    process.wait_until(lambda: bool(fetched(f"{url}/healthcheck")), 120)
    yield url
    process.kill()


def fetched(url: str) -> str:
    """Return what is at an address, nothing when nobody answers."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=20) as answer:
        return str(answer.read().decode())
    return ""


def failure_of(handle: Handle) -> str:
    """Wait for a failure; return all of its exception."""
    with pytest.raises(OperationFailed) as failure:
        handle.wait(60)
    return f"{failure.value!r} {failure.getrepr(showlocals=False)}"


@pytest.mark.slow
def test_a_password_is_nowhere_on_its_way(guests: GuestWard, flower: str) -> None:
    transcript = Transcript(guests.redis)
    with ProcessWatch() as processes, EventLog(guests.client.app) as log:
        vm = guests.new_guest("nova-agent")
        silent = guests.new_guest("unix", **guests.accident("mute", "password"))
        spawning = {**request_for(put_image(guests).id), "admin_password": CANARY, "files": [FILE]}
        done = [
            guests.do("set_admin_password", vm, new_pass=CANARY),
            guests.do("inject_file", vm, **FILE),
            guests.client.submit("spawn", spawning),
        ]
        failing = [
            guests.do("set_admin_password", silent, new_pass=CANARY, timeout_s=1),
            guests.do("set_admin_password", vm, new_pass=f"{CANARY} with blanks", os_type="windows"),
            guests.do("set_admin_password", vm, new_pass=f"{CANARY}\n"),
        ]
        results = [guests.succeeded(handle, 60) for handle in done]
        failures = [failure_of(handle) for handle in failing]
        inside = guests.inside(vm)
        assert (inside["passwords"]["root"], inside["files"]["/root/key"]["content"]) == (CANARY, OF_A_FILE)
        assert results[2]["guest"]["done"] == ["file /root/key", "password"], "both arrived"
        eventually(lambda: all(one.id in fetched(f"{flower}/task/{one.id}") for one in done + failing))
        pages = [fetched(f"{flower}/api/tasks?limit=1000"), fetched(f"{flower}/tasks")]
        pages += [fetched(f"{flower}/task/{handle.id}") for handle in done + failing]
        heard = transcript.text()
        everything = {
            "broker and journal, as said": heard,
            "broker": stored(guests.redis, 0),
            "journal": stored(guests.redis, 1),
            "worker's log": guests.deployment.log(),
            "beat's log": guests.deployment.log("beat"),
            "events": str(log.events),
            "results": str(results),
            "exceptions": str(failures),
            "records": str([(handle.record(), list(handle.events())) for handle in done + failing]),
            "Flower": str(pages),
            "processes": "\n".join(processes.seen),
            "the pool's tasks": str(guests.call("task.get_all_records")),
        }
    assert done[0].id in everything["Flower"]
    assert "vmops-agent" in everything["processes"], "the plugin was seen at work"
    assert "set_admin_password" in everything["events"]
    assert places_of(CANARY, everything) == []
    assert places_of(OF_A_FILE, everything) == ["processes"]
