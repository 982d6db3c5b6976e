"""What a guest finds in XenStore below vm-data when it boots: its name, its networks, its user metadata.

XAPI copies `VM.xenstore_data` there at each start (xapi.md 13.3); layout: dom0-and-guest.md 7.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from pydantic import ValidationError

from tasks.provision.request import BuildRequest, metadata_key
from worker.errors import RequestError
from worker.guest import networkdata
from worker.guest.networkdata import NetworkDocument
from worker.settings import Settings

#: XenStore's limits: bytes of a value, bytes of a path (xapi.md 13.3).
_VALUE_BYTES, _PATH_BYTES = 2048, 1024


def mac_of(instance: str, device: int) -> str:
    """Return the address of an instance's interface that was given none: locally administered, always the same.

    A rescue VM gets the same one, so that the network's rules for the instance hold for it.
    """
    raw = bytearray(uuid5(NAMESPACE_OID, f"vmops {instance} interface {device}").bytes[:6])
    raw[0] = (raw[0] | 2) & 0xFE
    return raw.hex(":")


def host_name(request: BuildRequest, os_type: str | None) -> str:
    """Return the name that the guest shall take; Windows' is shorter."""
    return networkdata.host_name(request.guest_name, is_windows=os_type == "windows")


def guest_data(
    request: BuildRequest, os_type: str | None, disk_config: str, macs: Sequence[str], settings: Settings
) -> dict[str, str]:
    """Return a new VM's xenstore_data. Raises RequestError when something does not fit into XenStore."""
    provider = request.agent.provider or settings.agent_provider
    data = {
        networkdata.HOSTNAME: host_name(request, os_type),
        "vm-data/allowvssprovider": "false",
    }
    if provider:
        data["vm-data/provider_data/provider"] = provider
    if disk_config:
        data["vm-data/auto-disk-config"] = disk_config
    for number, (one, mac) in enumerate(zip(request.networks, macs, strict=True)):
        if one.info:
            document = _document(number, {"label": one.network, **one.info, "mac": mac})
            data[document.key] = document.text()
    for key, value in request.metadata.items():
        data[f"vm-data/user-metadata/{metadata_key(key)}"] = json.dumps(value)
    for key, value in data.items():
        if len(value.encode()) > _VALUE_BYTES or len(key) > _PATH_BYTES // 2:
            raise RequestError(
                f"{key} takes {len(value.encode())} bytes and XenStore {_VALUE_BYTES} in one value: give the guest "
                "less there."
            )
    return data


def _document(number: int, info: dict[str, Any]) -> NetworkDocument:
    try:
        return NetworkDocument.model_validate(info)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, ("networks", number, "info", *problem["loc"])))
        raise RequestError(f"{place}: {problem['msg'].removeprefix('Value error, ')}.") from None


def flag_of(properties: dict[str, Any]) -> str:
    """Return "True" or "False" as the image's auto_disk_config says, "" when it says nothing."""
    wish = str(properties.get("auto_disk_config") or properties.get("hw_auto_disk_config") or "").lower()
    return {"true": "True", "false": "False", "disabled": "False"}.get(wish, "")
