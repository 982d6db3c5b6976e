"""refresh_security_group_rules, refresh_security_group_members, refresh_provider_fw_rules, unfilter_instance.

    refresh_security_group_rules     keep_rules -> enforce
    refresh_security_group_members   keep_members -> enforce
    refresh_provider_fw_rules        keep_provider_rules -> enforce
    unfilter_instance                leave_groups -> enforce

What is given is kept first, in the journal's Redis, and then brought to the hosts: one call for each host that has not
got it yet. A host that fails does not keep the others from theirs, and is tried again alone. What cannot be brought to
a host now is brought there later by `poll_firewall`: nothing is taken back.

Rules: operations.md 12, dom0-and-guest.md 9.6.
"""

from __future__ import annotations

from tasks.firewall import poller
from tasks.firewall.request import MembersRequest, ProviderRequest, RulesRequest, UnfilterRequest
from tasks.firewall.steps import enforce, keep_members, keep_provider_rules, keep_rules, leave_groups
from worker.operations.definition import operation

__all__ = ["poller"]

operation(
    "refresh_security_group_rules",
    RulesRequest,
    keep_rules,
    enforce,
    doc="refresh_security_group_rules: let hosts enforce what a security group allows.",
)
operation(
    "refresh_security_group_members",
    MembersRequest,
    keep_members,
    enforce,
    doc="refresh_security_group_members: let VMs join and leave a security group, and let hosts know its members.",
)
operation(
    "refresh_provider_fw_rules",
    ProviderRequest,
    keep_provider_rules,
    enforce,
    doc="refresh_provider_fw_rules: let hosts enforce what the provider denies.",
)
operation(
    "unfilter_instance",
    UnfilterRequest,
    leave_groups,
    enforce,
    doc="unfilter_instance: let a VM leave its security groups, so that it is filtered no more.",
)
