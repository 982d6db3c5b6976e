"""vmops-xenstore: any bytes, only below a domain's shared folders, only of the VM that is meant."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from vmops_lib import records, xenstore
from vmops_lib.arguments import Arguments
from vmops_lib.failures import BadArgument, CommandFailed, Failure, NotFound, Rebooted, TooLarge, Unsupported
from vmops_lib.xenstore import Store

from simulator.dom0.tree import Domain
from tests.support.dom0 import OTHER_VM_UUID, VM_UUID, Host

DOMIDS = iter(range(100, 10_000))
VALUES = [b"", b"plain", b'{"a": "C:\\\\tmp\\u00e9 \\"q\\""}', b"\x00\xff\n = \x1b", "ä€😀".encode(), b"x" * 3000]


@pytest.fixture
def domain(inside: Host) -> Domain:
    return inside.begin(next(DOMIDS), hostname="web1")


def ask(function: Callable[[Arguments], Any], domain: Domain, **args: str) -> Any:
    return function(Arguments({"dom_id": str(domain.domid), "vm_uuid": VM_UUID, **args}))


def packed(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value[:12]))
def test_a_value_comes_back_byte_by_byte(inside: Host, domain: Domain, value: bytes) -> None:
    ask(records.write, domain, path="data/a/b", value_b64=packed(value))
    assert inside.store.read(f"{domain.path}/data/a/b") == value
    assert ask(records.read, domain, path="data/a/b") == {"value_b64": packed(value)}


def test_what_is_not_there_is_not_found_and_its_removal_no_error(domain: Domain) -> None:
    for function in (records.read, records.list_names, records.tree):
        with pytest.raises(NotFound):
            ask(function, domain, path="vm-data/nonesuch")
    assert ask(records.remove, domain, path="vm-data/nonesuch/deeper") == {"removed": False}
    assert ask(records.remove, domain, path="vm-data/hostname") == {"removed": True}
    assert ask(records.remove, domain, path="vm-data/hostname") == {"removed": False}


def test_a_tree_is_everything_at_and_below_a_path(domain: Domain) -> None:
    ask(records.write, domain, path="vm-data/networking/AABB", value_b64=packed(b"a = b"))
    assert ask(records.tree, domain, path="vm-data") == {
        "values": {
            "vm-data": "",
            "vm-data/hostname": packed(b"web1"),
            "vm-data/networking": "",
            "vm-data/networking/AABB": packed(b"a = b"),
        }
    }
    assert ask(records.tree, domain, path="vm-data/hostname") == {"values": {"vm-data/hostname": packed(b"web1")}}
    assert ask(records.list_names, domain, path="vm-data") == {"names": ["hostname", "networking"]}


def test_more_names_than_fit_into_a_message_are_all_there(inside: Host, domain: Domain) -> None:
    names = [f"node-number-{number:05d}" for number in range(400)]
    inside.store.update({f"{domain.path}/data/many/{name}": "" for name in names})
    assert ask(records.list_names, domain, path="data/many") == {"names": names}


def test_a_tree_that_is_too_large_is_refused(inside: Host, domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RESULT_BYTES", 2000)
    inside.store.update({f"{domain.path}/data/{number}": "x" * 1000 for number in range(3)})
    with pytest.raises(TooLarge, match="more than 2000 bytes"):
        ask(records.tree, domain, path="data")


def test_a_tree_that_changes_meanwhile_is_read_again(
    inside: Host, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads one state, never half of one and half of another."""
    below, reads = records._below, []

    def disturbed(store: Store, path: str) -> dict[str, bytes]:
        values = below(store, path)
        reads.append(values)
        if len(reads) == 1:
            inside.store.update({f"{domain.path}/vm-data/hostname": "web2", f"{domain.path}/vm-data/new": "1"})
        return values

    monkeypatch.setattr(records, "_below", disturbed)
    values = ask(records.tree, domain, path="vm-data")["values"]
    assert (values["vm-data/hostname"], values["vm-data/new"]) == (packed(b"web2"), packed(b"1"))
    assert len(reads) == 2


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "name",
        "unique-domain-id",
        "device/vif/0",
        "vm",
        "vmops/x",
        "/local/domain/0/name",
        "data//x",
        "data/",
        "/data/x",
        "data/../name",
        "data/a.b",
        "data/a b",
        "data/ä",
        "data/x\n",
        "vm-dataX/y",
        "data/" + "x" * 2048,
    ],
)
def test_other_paths_are_refused(inside: Host, domain: Domain, path: str) -> None:
    before = inside.store.tree("/")
    for function in (records.read, records.list_names, records.tree, records.remove):
        with pytest.raises(BadArgument, match="path"):
            ask(function, domain, path=path)
    with pytest.raises(BadArgument, match="path"):
        ask(records.write, domain, path=path, value_b64="")
    assert inside.store.tree("/") == before


@pytest.mark.parametrize("value", ["?", "YQ", "ä", "YQ==\n"])
def test_a_value_that_is_no_base64_is_refused(domain: Domain, value: str) -> None:
    with pytest.raises(BadArgument, match="value_b64 is not base64"):
        ask(records.write, domain, path="data/x", value_b64=value)


def test_a_value_that_does_not_fit_is_refused_before_it_is_sent(inside: Host, domain: Domain) -> None:
    room = 4096 - len(f"{domain.path}/data/x") - 1
    ask(records.write, domain, path="data/x", value_b64=packed(b"y" * room))
    with pytest.raises(TooLarge, match=f"{room + 1} bytes, 1 more than XenStore takes"):
        ask(records.write, domain, path="data/x", value_b64=packed(b"z" * (room + 1)))
    assert inside.store.read(f"{domain.path}/data/x") == b"y" * room


@pytest.mark.parametrize("domid", ["0", "-1", "07", "x", "", "1 ", "999999", "../1"])
def test_what_is_no_guests_number_is_refused(inside: Host, domid: str) -> None:
    del inside
    with pytest.raises(BadArgument, match="dom_id"):
        records.read(Arguments({"dom_id": domid, "vm_uuid": VM_UUID, "path": "data"}))


def test_a_domain_that_is_gone_or_of_another_vm_is_not_touched(inside: Host, domain: Domain) -> None:
    args = {"dom_id": str(domain.domid), "vm_uuid": OTHER_VM_UUID, "path": "data/x", "value_b64": ""}
    with pytest.raises(Rebooted, match="belongs to another VM"):
        records.write(Arguments(args))
    inside.end(domain)
    with pytest.raises(Rebooted, match="is gone"):
        ask(records.write, domain, path="data/x", value_b64="")
    assert not inside.store.exists(domain.path)


def test_a_host_without_xenstore_is_a_failure_of_its_own(
    domain: Domain, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENSTORED_PATH", str(tmp_path / "none"))
    with pytest.raises(Unsupported, match="cannot be reached: No such file"):
        ask(records.read, domain, path="data")


@pytest.mark.parametrize(
    ("code", "kind"),
    [("ENOENT", NotFound), ("EINVAL", BadArgument), ("E2BIG", TooLarge), ("EQUOTA", CommandFailed)],
)
def test_each_refusal_of_xenstore_is_a_failure_that_says_what_it_means(code: str, kind: type[Failure]) -> None:
    assert type(xenstore._refusal(code)) is kind
