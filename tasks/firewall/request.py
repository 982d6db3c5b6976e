"""What the operations on security groups are asked for."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from worker.network.rules import GroupId, Rule
from worker.operations.request import InstanceRequest, Request

_GROUP = "5f8c2f5e-0b7c-4a1e-9a52-0f1c6b3a7d10"


class GroupRequest(Request):
    """Which group."""

    security_group_id: GroupId = Field(description="The group's id: a uuid, a name or a number.")
    version: int | None = Field(
        default=None, ge=1, description="Of what is given; what is not newer than what is known changes nothing."
    )

    @property
    def label(self) -> str:
        """The group."""
        return self.security_group_id


class RulesRequest(GroupRequest):
    """A group, and what it allows."""

    example: ClassVar[dict[str, Any]] = {
        "security_group_id": _GROUP,
        "rules": [
            {"direction": "ingress", "protocol": "tcp", "port_range_min": 80, "port_range_max": 80},
            {"direction": "egress", "ethertype": "IPv4"},
        ],
    }

    rules: list[Rule] | None = Field(
        default=None, max_length=5000, description="All that the group allows; default: what it did before."
    )


class Member(BaseModel):
    """A member of a group: an instance of this pool, or somebody elsewhere."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    instance: UUID | None = Field(default=None, description="OpenStack's uuid; its VM in this pool is marked.")
    addresses: list[IPv4Address | IPv6Address] = Field(
        default=[], max_length=64, description="Addresses; those of an instance of this pool are on its VIFs."
    )

    @model_validator(mode="after")
    def _is_somebody(self) -> Member:
        if self.instance is None and not self.addresses:
            raise ValueError("a member is an instance, or has addresses")
        return self


class MembersRequest(GroupRequest):
    """A group, and who is in it."""

    example: ClassVar[dict[str, Any]] = {
        "security_group_id": _GROUP,
        "members": [{"instance": "3e9c3f0a-5a5e-4f7d-a9d6-0d0a6f7a2c11"}, {"addresses": ["10.2.0.7"]}],
    }

    members: list[Member] | None = Field(
        default=None, max_length=10_000, description="All members; default: those that there were before."
    )


class ProviderRequest(Request):
    """What the provider denies to every VM that is filtered."""

    example: ClassVar[dict[str, Any]] = {
        "rules": [{"direction": "ingress", "protocol": "tcp", "port_range_min": 25, "cidr": "192.0.2.0/24"}]
    }

    rules: list[Rule] | None = Field(
        default=None, max_length=1000, description="All that is denied; default: what was before."
    )
    version: int | None = Field(
        default=None, ge=1, description="Of what is given; what is not newer than what is known changes nothing."
    )


class UnfilterRequest(InstanceRequest):
    """Which VM."""

    example: ClassVar[dict[str, Any]] = {"instance": {"name": "web01"}}
