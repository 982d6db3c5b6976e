"""What a guest prints to its console while it boots."""

from __future__ import annotations

import re

_BOOT = """\
[    0.000000] Linux version 6.1.0-simulated (simulated) #1 SMP
[    0.000000] Command line: root=/dev/xvda1 ro console=hvc0
[    0.000000] Hypervisor detected: Xen HVM
[    0.012345] smp: Brought up 1 node, {vcpus} CPUs
[    0.023456] Memory: {memory_kib}K available
[    0.234567] xen_netfront: Initialising Xen virtual ethernet driver
[    0.345678] EXT4-fs (xvda1): mounted filesystem with ordered data mode
[    0.456789] systemd[1]: Detected virtualization xen.
"""
_LOGIN = """\

Debian GNU/Linux 12 {name} hvc0

{name} login: """


def boot_text(vcpus: int, memory_kib: int) -> str:
    """Return the kernel's messages."""
    return _on_a_line(_BOOT.format(vcpus=vcpus, memory_kib=memory_kib))


def login_text(name: str) -> str:
    """Return the prompt that ends a boot."""
    host_name = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-") or "localhost"
    return _on_a_line(_LOGIN.format(name=host_name))


def _on_a_line(text: str) -> str:
    return text.replace("\n", "\r\n")
