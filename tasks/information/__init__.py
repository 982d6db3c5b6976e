"""information: queries about VMs, each a single task that changes nothing (operations.md 5.2, 11, 13)."""

from __future__ import annotations

from tasks.information import bandwidth, console, diagnostics, domains, hosts, listing, output, worker_state

__all__ = ["bandwidth", "console", "diagnostics", "domains", "hosts", "listing", "output", "worker_state"]
