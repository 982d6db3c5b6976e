"""get_worker: what a worker of the pool has and reaches, for `vmops doctor`."""

from __future__ import annotations

import shutil
import time
from typing import Any

from tasks.information.request import PoolQuery
from worker.disks.ext import TOOLS_PATH
from worker.errors import VmopsError
from worker.images.store import open_store
from worker.operations.query import query
from worker.operations.runtime import current
from worker.settings import Settings
from worker.xenapi import event, host
from worker.xenapi.session import Session

#: All of e2fsprogs: file systems are made by the first, and made smaller by the others.
_TOOLS = ("mke2fs", "e2fsck", "resize2fs")


@query("get_worker", PoolQuery)
def get_worker(request: PoolQuery, pool: Session, settings: Settings) -> dict[str, Any]:
    """Tell what a worker finds: `tools`, `image_store`, `clock_ahead_s`. Two calls.

    `tools` are the programs that operations need, by name: the path, or null. `image_store` is null when it can be
    used, else what is wrong with it. `clock_ahead_s` are the seconds that the worker's clock is ahead of the journal's
    server (`journal`) and of the pool's master (`pool`).
    """
    del request
    master_ref = next(rec["master"] for rec in event.records(pool, ["pool"]).values())
    ahead_of_pool_s = time.time() - host.servertime(pool, master_ref)
    seconds, microseconds = current().journal.redis.time()
    return {
        "tools": {name: shutil.which(name, path=TOOLS_PATH) for name in _TOOLS},
        "image_store": _problem_of_store(settings),
        "clock_ahead_s": {
            "journal": round(time.time() - seconds - microseconds / 1e6, 3),
            "pool": round(ahead_of_pool_s, 3),
        },
    }


def _problem_of_store(settings: Settings) -> str | None:
    try:
        open_store(settings).probe()
    except (VmopsError, ValueError) as error:
        return str(error)
    return None
