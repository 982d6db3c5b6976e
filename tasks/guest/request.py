"""What the operations on guests take."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from tasks.parts.guest_file import GuestFile
from worker.guest.agent import check_md5, check_url
from worker.guest.networkdata import Hostname, NetworkDocument
from worker.operations.request import InstanceRequest, Secret

_VM: dict[str, Any] = {"name": "web01"}
Version = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64)]
OsType = Annotated[
    Literal["linux", "windows"] | None, Field(default=None, description="Default: what the guest's tools report.")
]


class AgentRequest(InstanceRequest):
    """Whose agent."""

    example: ClassVar[dict[str, Any]] = {"instance": _VM}

    timeout_s: int | None = Field(
        default=None, ge=1, le=60, description="Time for each answer of the agent; default: the settings."
    )


class VersionRequest(AgentRequest):
    """Whose agent, and how long it may take to come up."""

    patience_s: float | None = Field(
        default=None, ge=0, le=3600, description="Ask again and again for so long; default: agent_version_timeout_s."
    )


class UpdateRequest(AgentRequest):
    """The agent that shall replace the present one."""

    example: ClassVar[dict[str, Any]] = {
        "instance": _VM,
        "url": "http://10.0.0.5/agent/agent-1.39.tgz",
        "md5sum": "0123456789abcdef0123456789abcdef",
        "version": "1.39",
    }

    url: Annotated[str, AfterValidator(check_url)] = Field(max_length=1024, description="Where the guest finds it.")
    md5sum: Annotated[str, AfterValidator(check_md5)] = Field(description="MD5 of what is there, 32 hex digits.")
    version: Version | None = Field(
        default=None, description="Its version: an agent that is not older is left alone. Default: always update."
    )


class PasswordRequest(AgentRequest):
    """The administrator's new password."""

    example: ClassVar[dict[str, Any]] = {"instance": _VM, "new_pass": {"sealed": "libsodium sealed box, base64"}}

    new_pass: Secret = Field(description="The password, sealed to the workers' public key.")
    os_type: OsType = None


class FileRequest(GuestFile, AgentRequest):
    """A small file for the guest; its contents are given in one of three ways."""

    example: ClassVar[dict[str, Any]] = {"instance": _VM, "path": "/etc/motd", "contents": "Welcome"}


class NetworkInfoRequest(InstanceRequest):
    """What a guest shall know of its interfaces."""

    example: ClassVar[dict[str, Any]] = {
        "instance": _VM,
        "network_info": [
            {
                "label": "public",
                "mac": "00:16:3e:12:34:56",
                "ips": [{"ip": "192.0.2.7", "netmask": "255.255.255.0", "gateway": "192.0.2.1"}],
                "dns": ["192.0.2.53"],
            }
        ],
    }

    network_info: list[NetworkDocument] = Field(
        min_length=1, max_length=64, description="One for each interface, or pairs (network, mapping) as Nova has them."
    )

    @model_validator(mode="after")
    def _each_mac_is_there_once(self) -> NetworkInfoRequest:
        if len({one.mac for one in self.network_info}) != len(self.network_info):
            raise ValueError("network_info: two interfaces have the same mac")
        return self


class HostnameRequest(InstanceRequest):
    """The guest's name."""

    example: ClassVar[dict[str, Any]] = {"instance": _VM, "hostname": "web01"}

    hostname: Hostname = Field(description="Letters, digits, dots, hyphens; Windows gets the first 15.")
    os_type: OsType = None
