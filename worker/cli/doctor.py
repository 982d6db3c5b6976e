"""`vmops doctor`: looks at everything a deployment stands on, says what is wrong and what to do about it.

A part is a function that yields findings; each looks at one thing, and none raises for what is wrong with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from worker.cli.complaints import broker_problem, without_password
from worker.cli.dom0 import pack_version
from worker.errors import VmopsError
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.client import VMOps

Level = Literal["good", "note", "bad"]
_ANSWER_S = 40.0
#: Half of what beat allows for clocks that run apart (worker.app): beyond that, its ticks expire unseen.
_MOST_APART_S = 30.0
#: How much of a variable's name must be that of a setting.
_NEARLY = 0.75
_NO_PACK = (
    "get_console_output, what needs the agent in the guest, live XenStore records, kernel files and the firewall are "
    "refused there"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    part: str
    what: str
    level: Level
    text: str
    advice: str = ""


def examine(vmops: VMOps) -> Iterator[Finding]:
    """Yield what is found, part by part."""
    yield from _variables()
    yield from _journal(vmops)
    broker = _broker(vmops)
    yield broker
    if not vmops.settings.pools:
        yield Finding("pool", "", "bad", "no pool is configured", "Put one into vmops.toml: docs/settings.md.")
    for pool in vmops.settings.pools:
        if broker.level == "good":
            yield from _pool(vmops, pool)


def _variables() -> Iterator[Finding]:
    """Name the variables that are nearly settings; others may be anybody's, such as Kubernetes' own."""
    known = ["CONFIG", *map(str.upper, Settings.model_fields)]
    for name in sorted(os.environ):
        prefix, _, rest = name.upper().partition("_")
        setting, *parts = rest.split("__")
        if prefix != "VMOPS" or setting in known:
            continue
        if setting.startswith("POOLS_"):  # two underscores are easily overlooked
            close = ["POOLS__NAME__SETTING"]
        else:
            close = ["__".join([one, *parts]) for one in get_close_matches(setting, known, 1, _NEARLY)]
        if close:
            yield Finding("settings", name, "note", "is no setting, and ignored", f"Did you mean VMOPS_{close[0]}?")


def _journal(vmops: VMOps) -> Iterator[Finding]:
    """Judge how the journal's server keeps it."""
    shown, said = without_password(vmops.settings.journal_url or ""), vmops.journal.redis.info()
    policy = said.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        text = f"its server drops what it has when its memory is full ({policy})"
        yield Finding("journal", shown, "bad", text, "Set maxmemory-policy to noeviction.")
    elif not said.get("aof_enabled", True):
        text = "answers; its server keeps no append-only file: operations do not outlive it"
        yield Finding("journal", shown, "note", text, "Set appendonly to yes.")
    else:
        yield Finding("journal", shown, "good", "answers")


def _broker(vmops: VMOps) -> Finding:
    shown, problem = without_password(vmops.settings.broker_url), broker_problem(vmops)
    if problem is not None:
        return Finding("broker", shown, "bad", problem, "Start it, or correct broker_url.")
    return Finding("broker", shown, "good", "answers")


def _pool(vmops: VMOps, pool: str) -> Iterator[Finding]:
    """Ask a worker for the pool's hosts: so it shows, too, whether one serves the pool and the pool answers it."""
    try:
        hosts = vmops.query("get_host_plugins", {"pool": pool}, timeout_s=_ANSWER_S)
    except TimeoutError:
        yield Finding("pool", pool, "bad", "no worker has answered", "Start one: celery -A worker worker.")
        return
    except VmopsError as error:
        yield Finding("pool", pool, "bad", str(error))
        return
    yield Finding("pool", pool, "good", f"answers; {len(hosts)} host{'s' if len(hosts) > 1 else ''}")
    yield from (_host(pool, one) for one in hosts)
    try:
        found = vmops.query("get_worker", {"pool": pool}, timeout_s=_ANSWER_S)
    except TimeoutError:
        text = f"the worker has waited {_ANSWER_S:.0f} s for it"
        yield Finding("image store", pool, "bad", text, "See why it does not answer, or correct image_store.")
    except VmopsError as error:
        yield Finding("pool", pool, "bad", str(error))
    else:
        yield from _worker(pool, found)


def _worker(pool: str, found: dict[str, Any]) -> Iterator[Finding]:
    """Judge what a worker of the pool finds on its machine and from there."""
    yield _tools(pool, found["tools"])
    problem = found["image_store"]
    if problem is None:
        yield Finding("image store", pool, "good", "the worker can use it")
    else:
        yield Finding("image store", pool, "bad", problem)
    yield _clock(pool, found["clock_ahead_s"])


def _clock(pool: str, ahead_s: dict[str, float]) -> Finding:
    """Judge the worker's clock: marks, certificates and deadlines of tasks go by clocks."""
    wrong = [(name, s) for name, s in ahead_s.items() if abs(s) > _MOST_APART_S]
    if not wrong:
        return Finding("clock", pool, "good", f"the worker's is within {_MOST_APART_S:.0f} s of the others")
    servers = {"journal": "the journal's server", "pool": "the pool's master"}
    text = " and ".join(f"{abs(s):.0f} s {'ahead of' if s > 0 else 'behind'} {servers[name]}" for name, s in wrong)
    return Finding("clock", pool, "bad", f"the worker's is {text}", "Let NTP set the clocks of all of them.")


def _tools(pool: str, found: dict[str, str | None]) -> Finding:
    """Judge what the worker's machine has. Only some operations need it, so a lack is no fault."""
    missing = ", ".join(name for name, path in found.items() if path is None)
    if not missing:
        return Finding("tools", pool, "good", f"the worker has {', '.join(found)}")
    text = f"the worker has no {missing}: ephemeral disks with a file system and smaller root disks are refused"
    return Finding("tools", pool, "note", text, "apt-get install e2fsprogs")


def _host(pool: str, host: dict[str, Any]) -> Finding:
    """Judge the plugins of one host."""
    name, wanted = f"{pool}: {host['name']}", pack_version()
    command = f"vmops dom0 install {host['address']}"
    match host["state"]:
        case "good" if host["version"] == wanted:
            return Finding("plugins", name, "good", f"version {wanted}, Python {host['python']}")
        case "good":
            return Finding("plugins", name, "note", f"version {host['version']}; this vmops brings {wanted}", command)
        case "outdated":
            text = f"version {host['version']} does not understand this vmops, which brings {wanted}"
            return Finding("plugins", name, "bad", text, command)
        case "missing":
            return Finding("plugins", name, "bad", f"not installed: {_NO_PACK}", command)
        case "impossible":
            text = f"this release has no Python 3 for plugins: {_NO_PACK}"
            return Finding("plugins", name, "note", text, "Upgrade the host to XCP-ng 8.3 or later.")
    return Finding("plugins", name, "bad", str(host["problem"]))
