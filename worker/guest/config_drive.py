"""The config drive: a small ISO 9660 disk from which cloud-init and its like set up the guest at its first boot.

Two forms (dom0-and-guest.md 8): `configdrive`, OpenStack's, with the label config-2, and `nocloud`, with the label
cidata. JSON documents are YAML as well, so no YAML is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, Literal

from pycdlib import PyCdlib

Form = Literal["configdrive", "nocloud"]

LABELS: dict[Form, str] = {"configdrive": "config-2", "nocloud": "cidata"}
_CLOUD_CONFIG = b"#cloud-config\n"
_SHORT_NAME_LENGTH = 8


@dataclass(frozen=True, slots=True, repr=False)
class Contents:
    """What a config drive says. Has no repr: it may hold a password."""

    form: Form
    uuid: str
    """The instance; a guest that meets another one on the drive sets itself up anew."""
    name: str
    hostname: str
    network: Mapping[str, Any]
    """The network document of the form."""
    metadata: Mapping[str, str]
    ssh_keys: Sequence[str]
    user_data: str | None
    admin_password: str | None

    def files(self) -> dict[str, bytes]:
        """Return path -> content."""
        return _configdrive(self) if self.form == "configdrive" else _nocloud(self)


def write_iso(file: BinaryIO, label: str, files: Mapping[str, bytes]) -> None:
    """Write an ISO 9660 image with Rock Ridge and Joliet names, which keep case, dots and length. `file` is empty."""
    iso = PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=label)
    try:
        folders: dict[str, str] = {"": ""}
        for number, (path, content) in enumerate(sorted(files.items())):
            short = _add_folders(iso, folders, path)
            name = path.rpartition("/")[2]
            iso.add_fp(
                BytesIO(content),
                len(content),
                f"{short}/F{number:0{_SHORT_NAME_LENGTH - 1}}.;1",
                rr_name=name,
                joliet_path=f"/{path}",
                file_mode=0o100444,
            )
        iso.write_fp(file)
    finally:
        iso.close()


def _add_folders(iso: PyCdlib, folders: dict[str, str], path: str) -> str:
    """Make the folders above `path` that are not there yet; return the last one's ISO path."""
    above = ""
    for name in path.split("/")[:-1]:
        here = f"{above}/{name}"
        if here not in folders:
            folders[here] = f"{folders[above]}/D{len(folders):0{_SHORT_NAME_LENGTH - 1}}"
            iso.add_directory(folders[here], rr_name=name, joliet_path=here, file_mode=0o040555)
        above = here
    return folders[above]


def _configdrive(contents: Contents) -> dict[str, bytes]:
    keys = {f"key{number}": key for number, key in enumerate(contents.ssh_keys)}
    meta: dict[str, Any] = {
        "uuid": contents.uuid,
        "name": contents.name,
        "hostname": contents.hostname,
        "launch_index": 0,
        "meta": dict(contents.metadata),
        "public_keys": keys,
        "keys": [{"name": name, "type": "ssh", "data": key} for name, key in keys.items()],
    }
    if contents.admin_password is not None:
        meta["admin_pass"] = contents.admin_password
    ec2 = {
        "instance-id": contents.uuid,
        "hostname": contents.hostname,
        "local-hostname": contents.hostname,
        "public-keys": {str(n): {"openssh-key": key} for n, key in enumerate(contents.ssh_keys)},
    }
    files = {
        "openstack/latest/meta_data.json": _json(meta),
        "openstack/latest/network_data.json": _json(contents.network),
        "openstack/latest/vendor_data.json": _json({}),
        "ec2/latest/meta-data.json": _json(ec2),
    }
    if contents.user_data is not None:
        user_data = contents.user_data.encode()
        files |= {"openstack/latest/user_data": user_data, "ec2/latest/user-data": user_data}
    return files


def _nocloud(contents: Contents) -> dict[str, bytes]:
    meta: dict[str, Any] = {
        "instance-id": contents.uuid,
        "local-hostname": contents.hostname,
        "public-keys": list(contents.ssh_keys),
        "meta": dict(contents.metadata),
    }
    files = {
        "meta-data": _json(meta),
        "network-config": _json(contents.network),
        # cloud-init looks for this file, and takes an empty one.
        "user-data": (contents.user_data or "").encode(),
    }
    if contents.admin_password is not None:
        password = {"password": contents.admin_password, "chpasswd": {"expire": False}}
        files["vendor-data"] = _CLOUD_CONFIG + _json(password)
    return files


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1, ensure_ascii=False).encode()
