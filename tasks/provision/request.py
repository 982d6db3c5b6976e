"""What a build is asked for: the image, the flavor, the networks, what the guest shall know."""

from __future__ import annotations

import json
import re
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from tasks.parts.guest_file import GuestFile
from worker.guest.networkdata import Hostname, MacAddress
from worker.network.desired import addresses_told
from worker.network.rules import GroupId
from worker.operations.request import Request, Secret
from worker.settings import AgentBuild, Provider

#: Keys that may stand below vm-data/user-metadata in XenStore (operations.md 3.3).
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=255)]
PublicKey = Annotated[str, StringConstraints(pattern=r"^[^\r\n]+$", max_length=16 << 10)]
_NOT_IN_NAMES = re.compile(r'["\\\x00-\x1f]')
_NOT_IN_HOSTNAMES = re.compile(r"[^A-Za-z0-9.-]+")
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_@-]")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NewInstance(_Part):
    """The instance to be made."""

    uuid: UUID = Field(description="OpenStack's instance uuid; it marks everything that is made.")
    name: str = Field(min_length=1, max_length=255, description="The VM's name_label, not taken by another VM.")

    @model_validator(mode="after")
    def _is_no_special_name(self) -> NewInstance:
        if self.name.endswith(("-rescue", "-orig")):
            raise ValueError("a name may not end in -rescue or -orig: those mark rescue VMs and VMs under resize")
        if not self.name.strip() or _NOT_IN_NAMES.search(self.name):
            raise ValueError("a name may not hold double quotes, backslashes or control characters, nor be blank")
        return self


class Flavor(_Part):
    """The size of the VM."""

    memory_mb: int = Field(ge=16, le=12 << 20, description="Memory, MiB.")
    vcpus: int = Field(ge=1, le=64, description="Virtual CPUs.")
    root_gb: int = Field(default=0, ge=0, le=2040, description="Least size of the root disk, GiB; 0: the image's.")
    swap_mb: int = Field(default=0, ge=0, le=1 << 20, description="Swap disk, MiB; at least 2, or 0 for none.")
    ephemeral_gb: int = Field(default=0, ge=0, le=16 << 10, description="Ephemeral disks, GiB in all.")
    vcpu_weight: int | None = Field(default=None, ge=1, le=65535, description="Share of the processors; XAPI's is 256.")
    vcpu_cap: int | None = Field(default=None, ge=0, le=6400, description="Most of a processor, percent; 0: no limit.")

    @model_validator(mode="after")
    def _swap_has_room(self) -> Flavor:
        if self.swap_mb == 1:
            raise ValueError("swap_mb: the first MiB is the partition table's, so take 2 at least, or 0 for no swap")
        return self


class Vlan(_Part):
    """The VLAN that a network is on."""

    device: str = Field(pattern=r"^[a-z][a-z0-9_.-]{0,14}$", description="The hosts' device below it, such as eth0.")
    tag: int = Field(ge=1, le=4094, description="The VLAN's number.")


class Network(_Part):
    """One interface of the VM, in the order of the devices."""

    network: str = Field(min_length=1, max_length=255, description="The network's uuid, bridge or name_label.")
    vlan: Vlan | None = Field(
        default=None, description="The VLAN that it must be on; a network that is not there is made, on every host."
    )
    mac: MacAddress | None = Field(default=None, description="Default: made from the instance's uuid.")
    rate_limit_kbps: int | None = Field(default=None, ge=1, description="Kilobytes a second.")
    port_id: UUID | None = Field(default=None, description="The port that the interface belongs to.")
    locking_mode: Literal["network_default", "locked", "unlocked", "disabled"] = Field(
        default="network_default", description="What traffic passes; locked: only that of the addresses below."
    )
    ipv4_allowed: list[IPv4Address] = Field(
        default=[], max_length=256, description="With locking_mode=locked, or security groups."
    )
    ipv6_allowed: list[IPv6Address] = Field(
        default=[], max_length=256, description="With locking_mode=locked, or security groups."
    )
    info: dict[str, Any] = Field(
        default={}, description="What the guest shall know of it: label, ips, gateway, ip6s, gateway_v6, dns, routes."
    )

    @property
    def addresses(self) -> list[str]:
        """The addresses that are the interface's own: those it is allowed, or else those the guest is told."""
        allowed = [str(one) for one in (*self.ipv4_allowed, *self.ipv6_allowed)]
        return allowed or addresses_told(json.dumps(self.info))

    @model_validator(mode="after")
    def _mac_is_one(self) -> Network:
        if self.mac and int(self.mac[:2], 16) & 1:
            raise ValueError(f"mac {self.mac} is a multicast address: the first byte must be even")
        return self


def refuse_same_mac(networks: list[Network]) -> None:
    """Raise ValueError when two interfaces would have one address."""
    macs = [one.mac for one in networks if one.mac]
    if len(set(macs)) != len(macs):
        raise ValueError("two networks have the same mac")


class ConfigDrive(_Part):
    """What a config drive carries besides hostname, networks and metadata."""

    form: Literal["configdrive", "nocloud"] = Field(
        default="configdrive", description="OpenStack's, with the label config-2, or cloud-init's NoCloud (cidata)."
    )
    user_data: str | None = Field(default=None, max_length=1 << 20, description="Handed to the guest as it is.")
    ssh_keys: list[PublicKey] = Field(default=[], max_length=100, description="Public keys of the first user.")
    network_data: dict[str, Any] | None = Field(
        default=None,
        description="Handed on as it is, instead of what the networks say: network_data.json, nocloud: network-config.",
    )
    admin_password: bool = Field(
        default=False, description="Write the request's admin_password on the drive, in clear, as guests read it."
    )


class AgentWishes(_Part):
    """What the agent in the guest shall do after the build, beside what `files` and `admin_password` need."""

    use: bool | None = Field(
        default=None, description="Let it set up all it can; false: leave it alone. Default: the image, the settings."
    )
    update: AgentBuild | None = Field(default=None, description="Install this one where an older one runs.")
    reset_network: bool = Field(default=False, description="Set the network up as the networks' info says.")
    provider: Provider | None = Field(
        default=None, description="What the guest reads at vm-data/provider_data/provider. Default: the settings."
    )


class BuildRequest(Request):
    """What the steps of a build need."""

    example: ClassVar[dict[str, Any]] = {
        "instance": {"uuid": "3e9c3f0a-5a5e-4f7d-a9d6-0d0a6f7a2c11", "name": "web01"},
        "image_id": "7f1de29e-6da0-4d49-a9c4-33a5fbc3a6f2",
        "flavor": {"memory_mb": 512, "vcpus": 1, "root_gb": 1},
    }

    instance: NewInstance
    image_id: UUID = Field(description="An active image: vhd (bare), bundle (tar.gz with 0.vhd), raw or iso.")
    flavor: Flavor
    networks: list[Network] = Field(default=[], max_length=7, description="The interfaces; XAPI allows seven.")
    security_groups: list[GroupId] = Field(
        default=[], max_length=32, description="Groups that the VM is in; what they allow must be known."
    )
    os_type: Literal["linux", "windows"] | None = Field(default=None, description="Default: the image's os_type.")
    vm_mode: Literal["pv", "hvm"] | None = Field(default=None, description="Default: the image's vm_mode, or hvm.")
    sr: UUID | None = Field(default=None, description="Storage repository; default: the pool's default SR.")
    host: UUID | None = Field(default=None, description="Host to start on if it can; any other if it cannot.")
    hostname: Hostname | None = Field(default=None, description="Name for the guest; default: made from the name.")
    metadata: dict[MetadataKey, str] = Field(default={}, max_length=128, description="User metadata for the guest.")
    config_drive: ConfigDrive | None = Field(default=None, description="Makes a config drive.")
    admin_password: Secret | None = Field(
        default=None, description="Set by the guest's agent, over a weak exchange, or carried by the config drive."
    )
    files: list[GuestFile] = Field(default=[], max_length=50, description="Written by the guest's agent.")
    agent: AgentWishes = AgentWishes()
    cache_image: bool = Field(default=True, description="Keep the image in the storage repository for the next VM.")
    start: Literal["running", "paused", "no"] = Field(default="running", description="State at the end.")
    image_token: Secret | None = Field(default=None, description="Token for the image store, sealed.")

    role: ClassVar[Literal["rescue"] | None] = None
    """What kind of VM is made, as its marks say."""

    @property
    def label(self) -> str:
        """The VM's name."""
        return self.instance.name

    @property
    def vm_name(self) -> str:
        """The name_label of the VM that is made."""
        return self.instance.name

    @property
    def guest_name(self) -> str:
        """The host name for the guest: letters, digits, dots and hyphens."""
        return self.hostname or _NOT_IN_HOSTNAMES.sub("-", self.instance.name).strip("-.")[:63].rstrip("-.") or "vm"

    @model_validator(mode="after")
    def _fits_together(self) -> BuildRequest:
        refuse_same_mac(self.networks)
        for position, one in enumerate(self.networks):
            if (one.ipv4_allowed or one.ipv6_allowed) and one.locking_mode != "locked" and not self.security_groups:
                raise ValueError("ipv4_allowed and ipv6_allowed go with locking_mode=locked, or with security_groups")
            if self.security_groups and not one.addresses:
                raise ValueError(
                    f"networks.{position}: with security_groups give the addresses that are its own: ipv4_allowed or "
                    "ipv6_allowed, or info.ips"
                )
        if len({metadata_key(key) for key in self.metadata}) != len(self.metadata):
            raise ValueError("metadata: two keys are the same in XenStore, which knows letters, digits, @, _ and -")
        return self


class RescueBuildRequest(BuildRequest):
    """A VM beside the instance's own, to repair that from: `<name>-rescue`, with the same addresses."""

    role: ClassVar[Literal["rescue"] | None] = "rescue"

    @property
    def vm_name(self) -> str:
        """The name_label of the rescue VM, as Nova gives it."""
        return f"{self.instance.name}-rescue"

    @property
    def guest_name(self) -> str:
        """The instance's host name with Nova's prefix."""
        return f"RESCUE-{super().guest_name}"


def metadata_key(key: str) -> str:
    """Return a metadata key as XenStore takes it."""
    return _NOT_IN_KEYS.sub("_", key)
