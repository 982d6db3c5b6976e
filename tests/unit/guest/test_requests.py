"""Requests that make no sense: their models refuse them, so that nothing is ever touched."""

from __future__ import annotations

from typing import Any

import pytest

import tasks.guest
import tasks.xenstore  # noqa: F401 - both declare
from worker.errors import RequestError
from worker.operations.catalogue import definition_of
from worker.operations.request import check

MAC = "00:16:3E:12:34:56"


@pytest.mark.parametrize(
    ("operation", "fields", "wrong"),
    [
        ("inject_network_info", {"network_info": []}, "network_info: List should have at least 1 item"),
        ("inject_network_info", {"network_info": [{"label": "x"}]}, "network_info.0.mac: Field required"),
        ("inject_network_info", {"network_info": [{"label": "x", "mac": MAC}] * 2}, "two interfaces have the same mac"),
        ("inject_network_info", {"network_info": [{"mac": MAC}]}, "network_info.0.label: Field required"),
        (
            "inject_network_info",
            {"network_info": [{"label": "x", "mac": MAC, "ip6s": [{"ip": "::7", "netmask": 64}]}]},
            "ip6s need gateway_v6",
        ),
        ("inject_hostname", {"hostname": "-web"}, "hostname: String should match pattern"),
        ("inject_hostname", {"hostname": "web 1"}, "hostname: String should match pattern"),
        ("inject_file", {"path": "etc/motd", "contents": ""}, "path: a path in the guest is absolute"),
        ("inject_file", {"path": "/etc/motd"}, "give one of contents, contents_base64 and secret_contents"),
        ("inject_file", {"path": "/f", "contents": "", "contents_base64": ""}, "give one of"),
        ("inject_file", {"path": "/f", "contents_base64": "%"}, "base64"),
        ("inject_file", {"path": "/f", "contents": "x" * 2992}, "its messages have 4029"),
        ("agent_update", {"url": "http://a,b", "md5sum": "0" * 32}, "url must begin with"),
        ("agent_update", {"url": "http://a", "md5sum": "0"}, "md5sum must be 32 hex digits"),
        ("agent_update", {"url": "http://a", "md5sum": "0" * 32, "version": "new"}, "version: String should match"),
        ("get_agent_version", {"timeout_s": 0}, "timeout_s: Input should be greater than or equal to 1"),
        ("set_admin_password", {}, "new_pass: Field required"),
        ("set_admin_password", {"new_pass": 5}, "new_pass"),
        ("reset_network", {"nic": 1}, "nic: there is no such field"),
        ("add_to_param_xenstore", {"key": "vm-data/a.b", "val": 1}, "'a.b' cannot be part of a XenStore path"),
        ("add_to_param_xenstore", {"key": "vm-data/ä", "val": 1}, "cannot be part of a XenStore path"),
        ("add_to_param_xenstore", {"key": "vm-data/a\\b", "val": 1}, "cannot be part of a XenStore path"),
        ("add_to_param_xenstore", {"key": "vm-data/a", "val": "x" * 2047}, "takes 2049 bytes as JSON"),
        ("add_to_param_xenstore", {"key": "vm-data/a"}, "val: Field required"),
        ("write_to_param_xenstore", {"mapping": {}}, "mapping: Dictionary should have at least 1 item"),
        ("write_to_param_xenstore", {"mapping": {"vm-data/a": 1, "/b": 2}}, "begins or ends with a slash"),
        ("remove_from_param_xenstore", {"key_or_keys": []}, "key_or_keys"),
        ("write_to_xenstore", {"path": "data/a", "value": "x" * 4069}, "and XenStore 4069 there"),
        ("write_to_xenstore", {"path": "device/vbd/0", "value": 1}, "is none of the guest's business"),
        ("write_to_xenstore", {"path": "vm-data/", "value": 1}, "begins or ends with a slash"),
        ("add_to_xenstore", {"path": "vm-data/a", "key": "", "value": 1}, "key: String should have at least 1"),
        ("add_to_xenstore", {"path": "vm-data/a", "key": "k", "value": "x" * 2040}, "takes 2049 bytes as JSON"),
        ("remove_from_xenstore", {"path": "vm-data/a"}, "key_or_keys: Field required"),
        ("clear_xenstore", {"path": "name"}, "is none of the guest's business"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_with_what_is_wrong(
    operation: str, fields: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        check(definition_of(operation).request, {"instance": {"name": "web01"}, **fields}, {})
    assert wrong in str(refusal.value)
