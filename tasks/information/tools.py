"""get_worker_tools: which programs of its machine a worker of the pool finds, for `vmops doctor`."""

from __future__ import annotations

import shutil

from tasks.information.request import PoolQuery
from worker.disks.ext import TOOLS_PATH
from worker.operations.query import query

#: All of e2fsprogs: file systems are made by the first, and made smaller by the others.
_TOOLS = ("mke2fs", "e2fsck", "resize2fs")


@query("get_worker_tools", PoolQuery)
def get_worker_tools(request: PoolQuery) -> dict[str, str | None]:
    """Tell where each program is that operations need, None for one that is missing. Asks the pool nothing."""
    del request
    return {name: shutil.which(name, path=TOOLS_PATH) for name in _TOOLS}
