"""Where the files of dom0 are. Off-box, `VMOPS_DOM0_ROOT` names a folder that stands for `/`; XAPI never sets it."""

import os


def path(absolute: str) -> str:
    """Return where a file of dom0, named by its absolute path, lies."""
    root = os.environ.get("VMOPS_DOM0_ROOT", "")
    return os.path.join(root, absolute.lstrip("/")) if root else absolute


def xenstore_socket() -> str:
    """Return xenstored's socket, found as Xen's own library finds it."""
    return os.environ.get("XENSTORED_PATH") or path("/var/run/xenstored/socket")
