"""The ids of the images that a snapshot makes."""

from __future__ import annotations

from uuid import NAMESPACE_OID, uuid5


def own_image_id(operation_id: str, userdevice: str, number: int = 0) -> str:
    """Return the id of an image that an operation makes: no try makes a second one. `number` counts replacements."""
    again = f" replacement {number}" if number else ""
    return str(uuid5(NAMESPACE_OID, f"vmops {operation_id} disk {userdevice}{again}"))
