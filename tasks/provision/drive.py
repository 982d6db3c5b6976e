"""What a build writes on the config drive: the same facts as into XenStore, and what only the request says."""

from __future__ import annotations

from collections.abc import Sequence
from os import SEEK_END
from typing import Any, BinaryIO

from pydantic import ValidationError

from tasks.provision.guestdata import host_name
from tasks.provision.request import BuildRequest, ConfigDrive
from worker.errors import RequestError
from worker.guest.config_drive import LABELS, Contents, write_iso
from worker.guest.networks import Interface, network_config, network_data
from worker.operations.op import Op


def write_drive(op: Op, file: BinaryIO) -> int:
    """Write the config drive of the operation's VM; return its size. The password is opened here, and kept nowhere."""
    request, plan = op.request(BuildRequest), op.data["plan"]
    wish = _wish_of(request)
    open_password = op.secret("admin_password") if wish.admin_password else None
    macs = [one["mac"] for one in plan["networks"]]
    contents = contents_of(request, plan["os_type"], macs, open_password() if open_password else None)
    write_iso(file, LABELS[wish.form], contents.files())
    return file.seek(0, SEEK_END)


def check_drive(request: BuildRequest, os_type: str | None, macs: Sequence[str]) -> None:
    """Raise RequestError when the config drive that is asked for cannot be made."""
    if request.config_drive is None:
        return
    if request.config_drive.admin_password and request.admin_password is None:
        raise RequestError("config_drive.admin_password says to write the admin_password, but there is none: give it.")
    contents_of(request, os_type, macs, None)


def contents_of(request: BuildRequest, os_type: str | None, macs: Sequence[str], password: str | None) -> Contents:
    """Return what the config drive says. Raises RequestError."""
    wish = _wish_of(request)
    return Contents(
        form=wish.form,
        uuid=str(request.instance.uuid),
        name=request.vm_name,
        hostname=host_name(request, os_type),
        network=_network_document(request, wish, macs),
        metadata=request.metadata,
        ssh_keys=wish.ssh_keys,
        user_data=wish.user_data,
        admin_password=password,
    )


def _network_document(request: BuildRequest, wish: ConfigDrive, macs: Sequence[str]) -> dict[str, Any]:
    if wish.network_data is not None:
        return wish.network_data
    interfaces = []
    for device, (one, mac) in enumerate(zip(request.networks, macs, strict=True)):
        try:
            interfaces.append(Interface.model_validate({**one.info, "mac": mac}))
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(map(str, problem["loc"]))
            raise RequestError(
                f"networks.{device}.info.{where} cannot be written on the config drive ({problem['msg']}): correct it, "
                "or give config_drive.network_data."
            ) from None
    return network_data(interfaces) if wish.form == "configdrive" else network_config(interfaces)


def _wish_of(request: BuildRequest) -> ConfigDrive:
    if request.config_drive is None:
        raise RequestError("The request asks for no config drive.")
    return request.config_drive
