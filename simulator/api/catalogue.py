"""All calls: importing this module registers those of every module beside it."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from simulator import api
from simulator.api import registry

for _module in pkgutil.iter_modules(api.__path__, f"{api.__name__}."):
    if _module.name != __name__:
        import_module(_module.name)

METHODS, dispatch = registry.METHODS, registry.dispatch
