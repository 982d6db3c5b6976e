"""get_host_plugins: which hosts of a pool have vmops's dom0 plugins, in which version, and why the others do not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from tasks.information.request import PoolQuery
from worker.errors import PluginMissing, VmopsError
from worker.operations.query import query
from worker.xenapi import plugin
from worker.xenapi.session import Session

#: Hosts that are asked at once.
_AT_ONCE = 8
#: XCP-ng's releases before this one run plugins with Python 2 alone (dom0-and-guest.md 1).
_PYTHON_3_SINCE = (8, 3)


@query("get_host_plugins", PoolQuery)
def get_host_plugins(request: PoolQuery, pool: Session) -> list[dict[str, Any]]:
    """Tell which version of vmops's dom0 plugins each host of a pool has.

    `state` is `good`, `missing`, `outdated` (it speaks another version than this worker), `impossible` (the host has no
    Python 3 for plugins) or `unknown`, with the reason in `problem`. One call, and one to each host.
    """
    del request
    records: dict[str, dict[str, Any]] = pool.call("host.get_all_records")
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return sorted(threads.map(partial(_look, pool), records.items()), key=lambda one: str(one["name"]))


def _look(pool: Session, host: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    host_ref, host_rec = host
    found: dict[str, Any] = {
        "uuid": host_rec["uuid"],
        "name": host_rec["name_label"],
        "address": host_rec["address"],
        "version": None,
        "python": None,
        "problem": None,
    }
    try:
        answer = plugin.call(pool, host_ref, "vmops-info", "version", {})
    except PluginMissing:
        return {**found, "state": "impossible" if _is_too_old(host_rec) else "missing"}
    except VmopsError as error:
        return {**found, "state": "unknown", "problem": str(error)}
    state = "good" if answer["api"] == plugin.API else "outdated"
    return {**found, "state": state, "version": str(answer["pack"]), "python": str(answer["python"])}


def _is_too_old(host_rec: dict[str, Any]) -> bool:
    """Tell whether it is a release of XCP-ng without Python 3 for plugins."""
    software: dict[str, str] = host_rec["software_version"]
    if software.get("product_brand") != "XCP-ng":
        return False
    numbers = [int(part) for part in software.get("product_version", "").split(".")[:2] if part.isdigit()]
    return tuple(numbers) < _PYTHON_3_SINCE
