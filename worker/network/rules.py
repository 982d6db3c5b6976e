"""Rules of security groups: OpenStack's fields in, the compact form that hosts are sent out.

Neutron's names are ours; nova-network's (`ip_protocol`, `from_port`, `to_port`, `cidr`, `group_id`, -1 for any) are
read, too. Rules only allow, what no rule allows is dropped, and answers to what was allowed pass. The provider's rules
are the other way round: they deny, and come first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

GroupId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]

#: A rule as hosts are sent it: direction, family, protocol, lowest and highest port (ICMP: type, code), remote.
Compact = list[str | int | None]

_NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "ipv6-icmp": 58, "icmp6": 58, "sctp": 132, "any": None}
_PORTED = {6, 17, 132}
_ICMP = {4: 1, 6: 58}
_SYNONYMS = {
    "ip_protocol": "protocol",
    "from_port": "port_range_min",
    "to_port": "port_range_max",
    "cidr": "remote_ip_prefix",
    "group_id": "remote_group_id",
}
#: What Neutron and Nova say of a rule beside what it allows.
_SAID_BESIDE = frozenset(
    {"id", "description", "security_group_id", "parent_group_id", "tenant_id", "project_id", "revision_number"}
    | {"created_at", "updated_at", "tags", "standard_attr_id"}
)


class Rule(BaseModel):
    """One rule."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    direction: Literal["ingress", "egress"] = Field(default="ingress", description="To the VM, or from it.")
    ethertype: Literal["IPv4", "IPv6"] | None = Field(default=None, description="Default: that of the prefix, or IPv4.")
    protocol: str | int | None = Field(default=None, description="tcp, udp, icmp, icmpv6, sctp, 0 to 255; null: any.")
    port_range_min: int | None = Field(default=None, ge=0, le=65535, description="Lowest port; for ICMP the type.")
    port_range_max: int | None = Field(default=None, ge=0, le=65535, description="Highest port; for ICMP the code.")
    remote_ip_prefix: IPv4Network | IPv6Network | None = Field(
        default=None, description="The other end; null: anybody."
    )
    remote_group_id: GroupId | None = Field(default=None, description="The other end is a member of this group.")

    @model_validator(mode="before")
    @classmethod
    def _as_neutron_says_it(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        fields = {_SYNONYMS.get(name, name): one for name, one in value.items() if name not in _SAID_BESIDE}
        for name in ("port_range_min", "port_range_max", "protocol"):
            if fields.get(name) in (-1, "-1", ""):
                fields[name] = None
        prefix = fields.get("remote_ip_prefix")
        if isinstance(prefix, str):
            try:
                fields["remote_ip_prefix"] = ip_network(prefix, strict=False)
            except ValueError:
                text = f"remote_ip_prefix {prefix!r} is no network: give one such as 10.1.0.0/16 or fd00::/8"
                raise ValueError(text) from None
        return fields

    @model_validator(mode="after")
    def _can_be(self) -> Rule:
        number = self.number
        if self.remote_ip_prefix is not None and self.remote_group_id is not None:
            raise ValueError("a rule has a remote_ip_prefix or a remote_group_id, not both")
        if self.remote_ip_prefix is not None and self.ethertype not in (None, f"IPv{self.remote_ip_prefix.version}"):
            raise ValueError(f"remote_ip_prefix {self.remote_ip_prefix} is not of {self.ethertype}")
        if self.family == 4 and number == _ICMP[6]:  # noqa: PLR2004 - IPv4
            raise ValueError("icmpv6 goes with ethertype IPv6")
        low, high = self.port_range_min, self.port_range_max
        if low is None and high is None:
            return self
        if low is None:
            raise ValueError("port_range_max goes with port_range_min")
        if number == _ICMP[self.family]:
            if max(low, high or 0) > 255:  # noqa: PLR2004 - a byte each
                raise ValueError("types and codes of ICMP are from 0 to 255")
        elif number not in _PORTED:
            raise ValueError("a port range goes with protocol tcp, udp or sctp")
        elif high is not None and high < low:
            raise ValueError(f"port_range_max {high} is below port_range_min {low}")
        return self

    @property
    def family(self) -> int:
        """4 or 6."""
        if self.ethertype is not None:
            return int(self.ethertype[-1])
        if self.remote_ip_prefix is not None:
            return self.remote_ip_prefix.version
        return 6 if self.protocol in {"icmpv6", "ipv6-icmp", "icmp6"} else 4

    @property
    def number(self) -> int | None:
        """The protocol's number, None for any. Raises ValueError; `icmp` is that of the family."""
        protocol = self.protocol.lower() if isinstance(self.protocol, str) else self.protocol
        if isinstance(protocol, str) and not protocol.isdecimal():
            if protocol not in _NUMBERS:
                raise ValueError(f"protocol {self.protocol!r} is not known: give its number")
            found = _NUMBERS[protocol]
        else:
            found = None if protocol is None else int(protocol)
        if found is not None and not 0 <= found <= 255:  # noqa: PLR2004 - a byte
            raise ValueError(f"protocol {found} is not from 0 to 255")
        return _ICMP[6] if found == _ICMP[4] and self.family == 6 else found  # noqa: PLR2004 - IPv6

    def compact(self) -> Compact:
        """Return the form that hosts are sent; rules that allow the same have the same."""
        low, high = self.port_range_min, self.port_range_max
        if self.number in _PORTED and low is not None:
            low, high = (None, None) if (low, high) == (0, 65535) else (low, low if high is None else high)
        remote: str | None = f"@{self.remote_group_id}" if self.remote_group_id else None
        if self.remote_ip_prefix is not None and self.remote_ip_prefix.prefixlen:
            remote = str(self.remote_ip_prefix)
        return [self.direction[0], self.family, self.number, low, high, remote]


def compiled(rules: Iterable[Rule]) -> list[Compact]:
    """Return a set of rules as hosts are sent it: each once, in an order that does not depend on that of `rules`."""
    return [json.loads(text) for text in sorted({json.dumps(rule.compact()) for rule in rules})]


def groups_meant(rules: Iterable[Compact]) -> set[str]:
    """Return the groups whose members the rules mean."""
    return {str(rule[5])[1:] for rule in rules if str(rule[5]).startswith("@")}
