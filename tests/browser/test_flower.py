"""What an operator sees in Flower: one row for each operation, open as long as the operation, its steps beside it."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.rig import Rig
from tests.support.worker import eventually
from worker.cli.embedded import free_port

pytestmark = [pytest.mark.browser]

#: Debian's name first.
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
SECRET = "simulated"
#: Those of the demo and of the containers.
COLUMNS = "name,args,state,uuid,runtime,received"


@dataclass
class Flower:
    """Flower's pages in headless Chromium."""

    url: str
    folder: Path

    def page(self, path: str, picture: str) -> str:
        """Return the page's text as a person reads it; keep a screenshot."""
        assert CHROMIUM is not None
        options = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--window-size=1600,900",
            f"--user-data-dir={self.folder / 'chromium'}", "--virtual-time-budget=6000",
        ]  # fmt: skip
        shot = self.folder / f"{picture}.png"
        subprocess.run(
            [CHROMIUM, *options, f"--screenshot={shot}", f"{self.url}{path}"],
            check=True,
            capture_output=True,
            timeout=60,
        )
        assert shot.stat().st_size > 10_000
        dom = subprocess.run(
            [CHROMIUM, *options, "--dump-dom", f"{self.url}{path}"], check=True, capture_output=True, timeout=60
        ).stdout.decode()
        assert SECRET not in dom
        text = re.sub(r"<(script|style)\b.*?</\1>", " ", dom, flags=re.DOTALL)
        return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with Rig(tmp_path_factory.mktemp("rig")) as made:
        yield made


@pytest.fixture(scope="module")
def flower(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Flower:
    port = free_port()
    process = rig.deployment.celery(
        "flower", "flower", "--address=127.0.0.1", f"--port={port}", "--read_only", f"--tasks_columns={COLUMNS}"
    )
    process.wait_until(lambda: _hears_the_worker(f"http://127.0.0.1:{port}/metrics"), 30)
    return Flower(f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("pages"))


def _hears_the_worker(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return b"flower_worker_online{" in answer.read()
    except (OSError, urllib.error.URLError):
        return False


def test_an_operation_is_one_row_that_runs_as_long_as_the_operation_and_ends_with_its_state(
    rig: Rig, flower: Flower
) -> None:
    rig.add_vm("web01")
    fault = rig.simulator.add_fault(match="Async.VDI.destroy", effect="pause", nth=1)
    handle = rig.submit("web01")
    rig.simulator.wait_for_hit(fault)
    running = flower.page(f"/task/{handle.id}", "operation-running")
    assert "vmops.snapshot" in running
    assert re.search(r"Status\s+STARTED", running)
    steps = flower.page("/tasks", "tasks-running")
    for name in ("find_disks", "take_snapshot", "wait_for_coalesce", "push_to_glance", "discard_snapshot"):
        assert f"vmops.snapshot.{name}" in steps
    assert re.search(r"vmops\.snapshot \(web01\)", steps)
    assert f"vmops.snapshot.find_disks (web01: snapshot {handle.id}" in steps
    assert "poll_" not in steps  # the ticks of the pollers would hide the operations
    rig.simulator.clear_faults()
    assert rig.wait(handle).state == "succeeded"
    eventually(lambda: not rig.client.journal.unannounced())
    ended = flower.page(f"/task/{handle.id}", "operation-succeeded")
    assert re.search(r"Status\s+SUCCESS", ended)
    assert "image_id" in ended


def test_a_failed_operation_ends_as_failure_with_its_cause(rig: Rig, flower: Flower) -> None:
    handle = rig.submit("no-such-vm")
    assert rig.wait(handle).state == "failed"
    eventually(lambda: not rig.client.journal.unannounced())
    page = flower.page(f"/task/{handle.id}", "operation-failed")
    assert re.search(r"Status\s+FAILURE", page)
    assert "no-such-vm" in page


def test_a_cancelled_operation_ends_as_revoked(rig: Rig, flower: Flower) -> None:
    rig.add_vm("web02")
    rig.simulator.control("POST", "storage", {"pause": True})
    handle = rig.submit("web02")
    eventually(lambda: handle.record().state == "waiting")
    handle.cancel()
    assert rig.wait(handle).state == "cancelled"
    rig.simulator.control("POST", "storage", {"pause": False})
    eventually(lambda: not rig.client.journal.unannounced())
    assert re.search(r"Status\s+REVOKED", flower.page(f"/task/{handle.id}", "operation-cancelled"))
