"""The simulated pool: everything that lives in one process, and how its toolstack restarts and dies."""

from __future__ import annotations

import hmac
import secrets
import shutil
from collections import Counter
from pathlib import Path

from simulator import messages
from simulator.agent.agents import Agents
from simulator.api import device_rules, vm_rules
from simulator.api.event import Registrations
from simulator.collector import Collector
from simulator.console.service import Consoles
from simulator.core.clock import Clock, Scheduler
from simulator.core.database import Database, Row
from simulator.core.events import EventHub
from simulator.core.failures import Failure
from simulator.core.ids import Ids
from simulator.core.log import Log
from simulator.core.operations import Operations
from simulator.core.sessions import Gate, Sessions
from simulator.core.tasks import Tasks
from simulator.dom0.dom0s import Dom0s
from simulator.dom0.guest_sockets import GuestSockets
from simulator.faults import Faults
from simulator.guest_mirror import GuestMirror
from simulator.guests import Guests
from simulator.hosts import Hosts
from simulator.metrics.engine import Metrics
from simulator.model.types import NULL
from simulator.settings import SimulatorSettings
from simulator.storage import VhdRepository
from simulator.transfers import Transfers

_WRONG_PASSWORD = "Authentication failure"  # noqa: S105 - XAPI's words
_WRONG_USER = "User not known to the underlying authentication module"
#: Passwords that are looked at at the same time: the default of pool.local_auth_max_threads.
AUTHENTICATIONS = 8
_SWEEP_PERIOD_S = 30.0
#: After a kill dom0's VBDs keep disks in use for so long; then the new toolstack has found them.
LEFTOVER_LIFE_S = 2.0


class Pool:
    """All parts of one pool."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        log = Log(settings.state_dir / "database.log" if settings.keeps_state else None)
        self.clock = Clock()
        self.scheduler = Scheduler(self.clock)
        self.db = Database(log)
        self._log = log
        self._password = settings.password
        self._secret = self._pool_secret()
        self.authentications = Gate(AUTHENTICATIONS)
        if not self.db.load() or "built" not in self.db.notes:
            self._wipe()
        boots = int(self.db.notes.get("boots", 0)) + 1
        with self.db:
            self.db.note("boots", boots)
        self.ids = Ids(settings.seed, boots)
        self.hub = EventHub(self.db)
        self.tasks = Tasks(self)
        self.sessions = Sessions(self)
        self.hosts = Hosts(self)
        self.operations = Operations(self)
        self.faults = Faults(self.ids)
        self.dom0s = Dom0s(self)
        self.guests = Guests(self)
        self.mirror = GuestMirror(self)
        self.agents = Agents(self)
        self.guest_sockets = GuestSockets(self)
        self.metrics = Metrics(self)
        self.consoles = Consoles(self)
        self.transfers = Transfers(self)
        self.registrations = Registrations()
        self.calls: Counter[str] = Counter()
        self.port = settings.port
        """The port that every host listens on."""
        self.latency_s = settings.latency_s
        self.scan_s = 0.0
        self.snapshot_s = 0.0
        """How long SR.scan and VDI.snapshot keep a repository to themselves before they act."""
        self._repositories: dict[str, VhdRepository] = {}
        self._collectors: dict[str, Collector] = {}

    # -- what many need

    @property
    def pool_row(self) -> Row:
        """The pool object."""
        return self.db.rows("pool")[0]

    @property
    def master_ref(self) -> str:
        """The master's reference; null while the pool is being built."""
        pools = self.db.rows("pool")
        return str(pools[0]["master"]) if pools else NULL

    def sr_path(self, sr_uuid: str) -> Path:
        """Return the folder of a storage repository."""
        return self.settings.state_dir / "sr" / sr_uuid

    def repository(self, sr: Row) -> VhdRepository:
        """Return the files of a storage repository. Raises SR_OPERATION_NOT_SUPPORTED for one without VHDs."""
        found = self._repositories.get(sr.ref)
        if found is None:
            raise Failure("SR_OPERATION_NOT_SUPPORTED", sr.ref)
        return found

    def repository_of(self, vdi: Row) -> VhdRepository:
        """Return the files that a disk lies in."""
        return self.repository(self.db.row("SR", vdi["SR"]))

    def has_repository(self, sr: Row) -> bool:
        """Tell whether the folder of a repository is open."""
        return sr.ref in self._repositories

    def open_repository(self, sr: Row) -> VhdRepository:
        """Make or open the folder of a storage repository, with its collector."""
        path = self.sr_path(sr["uuid"])
        path.mkdir(parents=True, exist_ok=True)
        repository = VhdRepository(path, self.settings.sr_capacity)
        self._repositories[sr.ref] = repository
        self._collectors[sr.ref] = Collector(self, sr, repository)
        return repository

    def match_repositories(self) -> None:
        """Close the folders of repositories that are gone; open those of which a record came back."""
        for ref in [ref for ref in self._repositories if self.db.find("SR", ref) is None]:
            self._collectors.pop(ref).stop()
            self._repositories.pop(ref).close()
        for sr in self.db.rows("SR"):
            if sr.ref not in self._repositories and self.sr_path(sr["uuid"]).exists():
                self.open_repository(sr)

    def collector(self, sr: Row) -> Collector:
        """Return the garbage collector of a storage repository."""
        return self._collectors[sr.ref]

    @property
    def collectors(self) -> list[Collector]:
        """All garbage collectors."""
        return list(self._collectors.values())

    def authenticate(self, user: str, password: str) -> None:
        """Raise SESSION_AUTHENTICATION_FAILED, after a while, unless user and password are the pool's.

        Only so many threads look at passwords at the same time; others wait (xapi.md 3.3).
        """
        is_user = user == self.settings.user
        with self.authentications:
            if is_user and hmac.compare_digest(password.encode(), self._password.encode()):
                return
            self.clock.wait(self.settings.bad_password_delay_s)
        raise Failure("SESSION_AUTHENTICATION_FAILED", user, _WRONG_PASSWORD if is_user else _WRONG_USER)

    def change_password(self, password: str) -> None:
        """Take another password from now on."""
        self._password = password

    def is_secret(self, text: str) -> bool:
        """Tell whether it is what the pool's hosts know each other by (in the file `ptoken` of the state)."""
        return hmac.compare_digest(text.encode(), self._secret.encode())

    def _pool_secret(self) -> str:
        path = self.settings.state_dir / "ptoken"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_hex(48), encoding="ascii")
        return path.read_text(encoding="ascii")

    # -- life

    def start(self) -> None:
        """Begin to live: hosts, timers, and the guests that the state says are running."""
        with self.db as db:
            db.note("built", value=True)
            self._forget_operations()
            self.drop_leftovers()
        self.hosts.load()
        self.match_repositories()
        self.db.flush()
        self.scheduler.start()
        self.scheduler.every(_SWEEP_PERIOD_S, self._sweep)
        self.scheduler.every(self.settings.flush_period_s, self.db.flush)
        self.dom0s.open()
        self.guests.adopt_running()
        self.metrics.start()

    @property
    def is_fresh(self) -> bool:
        """Tell whether nothing was built yet."""
        return "built" not in self.db.notes

    def _wipe(self) -> None:
        """Remove what a process left that was killed while it built the pool."""
        shutil.rmtree(self.settings.state_dir / "sr", ignore_errors=True)
        self.db.clear()

    def drop_leftovers(self) -> None:
        """Remove dom0's VBDs that no transfer holds: what a killed toolstack left (it does so when it starts)."""
        held = self.transfers.vbd_refs()
        with self.db as db:
            for vbd in db.rows("VBD"):
                vm = db.find("VM", vbd["VM"])
                if vm is not None and vm["is_control_domain"] and vbd.ref not in held:
                    disk = db.find("VDI", vbd["VDI"])
                    db.delete(vbd)
                    if disk is not None:
                        device_rules.refresh_vdi(db, disk)

    def stop(self) -> None:
        """End everything and keep the state."""
        self.scheduler.stop()
        self.guests.writes.stop_all()
        self.guest_sockets.close()
        self.dom0s.close()
        for collector in self.collectors:
            collector.stop()
        for repository in self._repositories.values():
            repository.close()
        self._log.close()

    def _sweep(self) -> None:
        self.tasks.sweep()
        self.sessions.sweep()
        messages.trim(self.db)

    def restart_toolstack(self) -> None:
        """Lose sessions and tasks; running work goes on (xapi-observed.md). The database is written first."""
        with self.db as db:
            db.flush()
            self._begin_anew()

    def kill_toolstack(self) -> None:
        """Lose sessions, tasks and every write since the last flush; running calls stop where they are."""
        with self.db as db:
            domains = self.guests.domains()
            db.roll_back()
            self.guests.settle(domains)
            self._begin_anew()
        self.match_repositories()
        self.scheduler.later(LEFTOVER_LIFE_S, self.drop_leftovers)

    def _forget_operations(self) -> None:
        db = self.db
        for cls in ("VM", "VBD", "VDI", "VIF", "SR", "host", "network", "pool"):
            for row in db.rows(cls):
                if row["current_operations"]:
                    db.put(row, current_operations={})
        for vm in db.rows("VM"):
            if vm["scheduled_to_be_resident_on"] != NULL:
                db.put(vm, scheduled_to_be_resident_on=NULL)
            vm_rules.refresh(db, vm)
        for device in [*db.rows("VBD"), *db.rows("VIF")]:
            device_rules.refresh_device(db, device)
        for sr in db.rows("SR"):
            device_rules.refresh_sr(db, sr)
        for disk in db.rows("VDI"):
            device_rules.refresh_vdi(db, disk)

    def _begin_anew(self) -> None:
        db = self.db
        db.forget_volatile()
        self.tasks.forget_all()
        self._forget_operations()
        self.registrations = Registrations()
        db.renumber()
        self.hub.wake_all()
