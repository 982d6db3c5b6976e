"""Config drives, read by other code than what writes them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.iso import files_of, label_of
from tests.support.tools import run_tool
from worker.guest.config_drive import LABELS, Contents, Form, write_iso
from worker.guest.networks import Interface, network_config, network_data

ANY = "0.0.0.0"  # noqa: S104 - a default route, not a listener
CONTENTS = Contents(
    form="configdrive",
    uuid="3e9c3f0a-5a5e-4f7d-a9d6-0d0a6f7a2c11",
    name="web01",
    hostname="web01.example",
    network={"links": []},
    metadata={"tier": "front", "ä": "ö"},
    ssh_keys=["ssh-ed25519 AAAA me", "ssh-rsa BBBB you"],
    user_data="#!/bin/sh\necho 'grün'\n",
    admin_password=None,
)
FULL = Interface.model_validate(
    {
        "mac": "00:16:3e:00:00:01",
        "label": "public",
        "ips": [
            {"ip": "10.0.0.5", "netmask": "255.255.255.0", "enabled": "1", "gateway": "10.0.0.1"},
            {"ip": "10.0.0.6", "netmask": "255.255.255.0", "enabled": "1", "gateway": "10.0.0.1"},
        ],
        "ip6s": [{"ip": "fd00::5", "netmask": 64, "enabled": "1", "gateway": "fd00::1"}],
        "dns": ["10.0.0.2", "fd00::2"],
        "routes": [{"route": "10.1.0.0", "netmask": "255.255.0.0", "gateway": "10.0.0.9"}],
    }
)
SILENT = Interface.model_validate({"mac": "00:16:3e:00:00:02", "dns": ["10.0.0.2"]})


def written(path: Path, contents: Contents) -> bytes:
    """Return the image of a config drive."""
    with path.open("w+b") as file:
        write_iso(file, LABELS[contents.form], contents.files())
    return path.read_bytes()


@pytest.mark.parametrize(("form", "label"), [("configdrive", "config-2"), ("nocloud", "cidata")])
def test_a_drive_bears_its_label_and_every_file(tmp_path: Path, form: Form, label: str) -> None:
    contents = replace(CONTENTS, form=form, user_data="x" * (1 << 20))
    image = written(tmp_path / "iso", contents)
    assert label_of(image) == label
    assert files_of(image) == contents.files()
    found = run_tool("blkid", "-p", str(tmp_path / "iso"))
    assert f'LABEL="{label}"' in found
    assert 'TYPE="iso9660"' in found


def test_openstacks_form_says_who_the_guest_is(tmp_path: Path) -> None:
    files = files_of(written(tmp_path / "iso", CONTENTS))
    meta = json.loads(files["openstack/latest/meta_data.json"])
    assert (meta["uuid"], meta["name"], meta["hostname"]) == (CONTENTS.uuid, "web01", "web01.example")
    assert meta["meta"] == CONTENTS.metadata
    assert list(meta["public_keys"].values()) == CONTENTS.ssh_keys
    assert files["openstack/latest/user_data"] == files["ec2/latest/user-data"] == CONTENTS.user_data.encode()  # type: ignore[union-attr]  # set above
    ec2 = json.loads(files["ec2/latest/meta-data.json"])
    assert (ec2["instance-id"], ec2["hostname"]) == (CONTENTS.uuid, "web01.example")
    assert json.loads(files["openstack/latest/network_data.json"]) == {"links": []}


def test_no_user_data_is_no_file_for_openstack_and_an_empty_one_for_nocloud() -> None:
    bare = replace(CONTENTS, user_data=None)
    assert not [path for path in bare.files() if "user" in path]
    assert replace(bare, form="nocloud").files()["user-data"] == b""


def test_a_password_is_where_each_forms_readers_look_and_never_in_a_repr() -> None:
    contents = replace(CONTENTS, admin_password='s3"cret')
    assert json.loads(contents.files()["openstack/latest/meta_data.json"])["admin_pass"] == 's3"cret'
    head, _, rest = replace(contents, form="nocloud").files()["vendor-data"].partition(b"\n")
    assert head == b"#cloud-config"
    assert json.loads(rest) == {"password": 's3"cret', "chpasswd": {"expire": False}}
    assert "s3" not in repr(contents)


def test_network_data_has_addresses_routes_and_name_servers() -> None:
    document = network_data([FULL, SILENT])
    assert [(one["id"], one["ethernet_mac_address"]) for one in document["links"]] == [
        ("interface0", "00:16:3e:00:00:01"),
        ("interface1", "00:16:3e:00:00:02"),
    ]
    first, second, third, last = document["networks"]
    assert (first["type"], first["link"], first["ip_address"]) == ("ipv4", "interface0", "10.0.0.5")
    assert first["routes"] == [
        {"network": ANY, "netmask": ANY, "gateway": "10.0.0.1"},
        {"network": "10.1.0.0", "netmask": "255.255.0.0", "gateway": "10.0.0.9"},
    ]
    assert (second["ip_address"], second["routes"]) == ("10.0.0.6", [])
    assert (third["type"], third["netmask"]) == ("ipv6", "ffff:ffff:ffff:ffff::")
    assert third["routes"] == [{"network": "::", "netmask": "::", "gateway": "fd00::1"}]
    assert (last["type"], last["link"]) == ("ipv4_dhcp", "interface1")
    assert [one["address"] for one in document["services"]] == ["10.0.0.2", "fd00::2"]


def test_network_config_has_the_same_in_cloud_inits_words() -> None:
    first, second, servers = network_config([FULL, SILENT])["config"]
    assert (first["type"], first["name"], first["mac_address"]) == ("physical", "eth0", "00:16:3e:00:00:01")
    one, two, six = first["subnets"]
    assert one == {
        "type": "static",
        "address": "10.0.0.5",
        "netmask": "255.255.255.0",
        "gateway": "10.0.0.1",
        "routes": [{"network": "10.1.0.0", "netmask": "255.255.0.0", "gateway": "10.0.0.9"}],
    }
    assert two == {"type": "static", "address": "10.0.0.6", "netmask": "255.255.255.0"}
    assert six == {"type": "static6", "address": "fd00::5/64", "gateway": "fd00::1"}
    assert second["subnets"] == [{"type": "dhcp4"}]
    assert servers == {"type": "nameserver", "address": ["10.0.0.2", "fd00::2"]}


@pytest.mark.parametrize(
    ("prefix", "netmask"), [(0, "::"), (1, "8000::"), (127, "ffff:" * 7 + "fffe"), (128, "ffff:" * 7 + "ffff")]
)
def test_a_prefix_length_becomes_a_netmask(prefix: int, netmask: str) -> None:
    found: dict[str, Any] = {"mac": "00:16:3e:00:00:01", "ip6s": [{"ip": "fd00::5", "netmask": prefix}]}
    (network,) = network_data([Interface.model_validate(found)])["networks"]
    assert network["netmask"] == netmask
