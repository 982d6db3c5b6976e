"""Everything a snapshot needs, for real: a pool simulator, a fake Glance, Redis, a worker and beat."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.support.fake_glance import FakeGlance
from tests.support.servers import RedisServer, keep
from tests.support.simulator import SimulatorProcess
from tests.support.worker import Deployment, eventually, kill_group
from worker.cli.embedded import ManagedProcess
from worker.client import Handle, VMOps
from worker.images.vhd import raw_digest
from worker.operations.states import FINAL

MIB = 1 << 20

#: Times of a deployment whose workers are killed all the time.
HASTY = {
    "lease_ttl_s": 1,
    "submit_grace_s": 1.5,
    "watch_interval_s": 0.3,
    "reconcile_interval_s": 0.5,
    "visibility_timeout_s": 2,
    "retry_delay_s": 0.1,
    "retry_delay_max_s": 1,
    "coalesce_check_s": 2,
    "domain_poll_interval_s": 3600,  # tests count calls
    "step_deadline_s": 60,
    "undo_deadline_s": 60,
    "orphan_interval_s": 0,
}


@dataclass
class Rig:
    """One pool, one image service, one deployment. A context manager."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    simulator_options: tuple[str, ...] = ("--guest-writes", "20", "--quiet-period", "0.4")
    store: str = "glance"
    pool: str = "threads"
    concurrency: int = 4
    pool_settings: dict[str, Any] = field(default_factory=dict)
    loglevel: str = "INFO"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.redis = RedisServer(self.folder / "redis")
            self.redis.start()
            stack.callback(self.redis.stop)
            self.simulator = stack.enter_context(SimulatorProcess(*self.simulator_options))
            self.glance = stack.enter_context(FakeGlance(self.folder / "glance"))
            self.images = self.folder / "images"
            self.deployment = Deployment(self.folder / "vmops", self._toml())
            stack.callback(self.deployment.stop)
            self.client: VMOps = self.deployment.client()
            self.worker: ManagedProcess = self.deployment.worker(
                pool=self.pool, concurrency=self.concurrency, loglevel=self.loglevel
            )
            stack.enter_context(keep(self.worker))
            self.beat = self.deployment.beat()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _toml(self) -> str:
        store = f"glance+{self.glance.url}" if self.store == "glance" else f"file://{self.images}"
        values = {
            "broker_url": self.redis.url(0),
            "journal_url": self.redis.url(1),
            "image_store": store,
            **HASTY,
            **self.settings,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        pool = {"url": self.simulator.url, "username": "root", "password": self.simulator.password}
        pool |= self.pool_settings
        return "\n".join([*lines, "[pools.lab]", *(f"{key} = {json.dumps(value)}" for key, value in pool.items())])

    # -- faults --------------------------------------------------------------------------------------------------------

    def start_worker(self) -> None:
        """Start the worker again after `kill_worker`."""
        self.deployment.start_again(self.worker)

    def kill_worker(self) -> None:
        """SIGKILL the worker and its children."""
        kill_group(self.worker)

    # -- operations ----------------------------------------------------------------------------------------------------

    def add_vm(self, name: str, *, disks: int = 1, **disk: Any) -> dict[str, Any]:
        """Add a running VM with small disks; return what the simulator says of it."""
        one = {"size": 4 * MIB, "content": "random", "chain_depth": 2, **disk}
        return self.simulator.add_vm(name=name, disks=[one] * disks, running=True)

    def submit(self, vm: str, **fields: Any) -> Handle:
        """Submit a snapshot of the VM called `vm`."""
        return self.client.snapshot(instance={"name": vm}, **fields)

    def wait(self, handle: Handle, timeout_s: float = 60) -> Any:
        """Return the operation's record when it has ended."""
        try:
            eventually(handle.has_ended, timeout_s)
        except AssertionError as error:
            history = "\n".join(map(str, self.client.journal.events(handle.id)[-30:]))
            raise AssertionError(f"{error}\n{handle.record()}\n{history}\n{self.deployment.log()[-6000:]}") from None
        return handle.record()

    # -- claims --------------------------------------------------------------------------------------------------------

    def image_file(self, image_id: str) -> Path:
        """Return the image's data as a file."""
        if self.store == "directory":
            return self.images / f"{image_id}.vhd"
        target = self.folder / f"{image_id}.image"
        target.write_bytes(self.glance.data(image_id))
        return target

    def assert_image_is_right(self, pushed: dict[str, Any], vdi_uuid: str) -> None:
        """Compare an image with its disk as it was at the snapshot's instant."""
        path = self.image_file(pushed["image_id"])
        content = raw_digest(path) if pushed["format"] == "vhd" else hashlib.sha256(path.read_bytes()).hexdigest()
        digests = self.simulator.disk(vdi_uuid)["snapshot_digests"].values()
        assert content in digests, "the image is not the disk at the snapshot's instant"

    def assert_nothing_is_left(self) -> None:
        """No object in the pool that no VM owns, no lease, no open entry in the journal."""
        eventually(lambda: not self.simulator.leaks())
        journal = self.client.journal
        assert not journal.open_holds()
        assert self._entries("live", "waiting:lab", "watch:lab") == []
        assert all(record.state in FINAL for record in journal.find())

    def wait_for_all(self) -> None:
        """Wait until no operation is under way: what a failed test has begun would meet the faults of the next one."""
        eventually(lambda: not self._entries("live", "waiting:lab"), 120)

    def _entries(self, *names: str) -> list[str]:
        """Return which of these registers of the journal have an entry."""
        journal = self.client.journal
        return [name for name in names if journal.redis.exists(f"{journal.prefix}:{name}")]
