"""The crash matrices of what is asked of guests, and told to them: each effect is there, as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from _pytest.mark import ParameterSet

from tests.crash.matrix import Accident, Matrix
from tests.integration.guest.support import GuestWard
from tests.integration.power.support import VM
from tests.support.rig import Rig
from tests.support.worker import eventually
from worker.client import Handle

pytestmark = [pytest.mark.crash, pytest.mark.slow]

FIND = [("VM.get_all_records_where", 1), ("VM.get_record", 1)]
SET = ("VM.set_xenstore_data", 1)
PLUGIN = "host.call_plugin"
PASSWORD = "c0rrect-Horse"
MAC = "00163E123456"
Effect = Callable[[GuestWard, VM, Any], object]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestWard]:
    """A pool with plugins and agents, and a worker that is killed again and again."""
    with GuestWard(tmp_path_factory.mktemp("rig"), loglevel="INFO") as made:
        yield made


def questions(number: int) -> list[tuple[str, int]]:
    """Return the calls of a step that asks the agent so often."""
    names = (f"Async.{PLUGIN}", "task.destroy")
    return [*FIND, *((name, nth) for nth in range(1, number + 1) for name in names)]


def guest(data: dict[str, str], rig: Rig) -> VM:
    """Make a VM whose guest has an agent and these data."""
    assert isinstance(rig, GuestWard)
    vm = rig.new_guest("unix")
    if data:
        rig.call("VM.set_xenstore_data", vm.ref, data)
    return vm


def submit(operation: str, fields: dict[str, Any], rig: Rig, vm: VM) -> Handle:
    """Submit an operation on the VM."""
    assert isinstance(rig, GuestWard)
    return rig.do(operation, vm, **fields)


def check(effect: Effect, rig: Rig, vm: VM, handle: Handle) -> None:
    """The operation succeeded with its effect; nothing is left but the VM, which goes."""
    assert isinstance(rig, GuestWard)
    record = rig.wait(handle, 60)
    assert record.state == "succeeded", record.error
    assert effect(rig, vm, record.result)
    eventually(lambda: not rig.in_guest(vm, "xenstore-list", "data/host"), 30)  # no question is left
    rig.assert_nothing_is_left()
    rig.call("VM.hard_shutdown", vm.ref)


def inside(field: str, expected: Any) -> Effect:
    """Return the claim that this is in the guest."""
    return lambda ward, vm, _: ward.inside(vm)[field] == expected


def record_is(expected: dict[str, str], *gone: str) -> Effect:
    """Return the claim that the guest sees these data, and not those, and the record says the same."""

    def is_so(ward: GuestWard, vm: VM, _: Any) -> bool:
        data = ward.data(vm)
        wanted = {**expected, **dict.fromkeys(gone)}
        return {key: data.get(key) for key in wanted} == {key: ward.live(vm, key) for key in wanted} == wanted

    return is_so


def live_is(path: str, text: str | None) -> Effect:
    """Return the claim that the guest reads this text there."""
    return lambda ward, vm, _: ward.live(vm, path) == text


def has_file(ward: GuestWard, vm: VM, _: Any) -> bool:
    """Tell whether the file is there; asked twice, an agent keeps a backup that is the same."""
    file = ward.inside(vm)["files"]["/etc/motd"]
    return {file["content"], *file["backups"]} == {"Hello"}


def told_version(ward: GuestWard, vm: VM, result: Any) -> bool:
    """Tell whether the operation's result is the agent's version."""
    return bool(result["version"] == ward.inside(vm)["version"])


@dataclass(frozen=True)
class Case:
    """One operation, what it is about, its calls and its effect."""

    fields: dict[str, Any]
    calls: Sequence[tuple[str, int]]
    effect: Effect
    data: dict[str, str] | None = None
    operation: str = ""


A, B = {"vm-data/a": '"1"'}, {"vm-data/b": '"2"'}
RECORD = [*FIND, SET]
LINUX = {"os_type": "linux"}
UPDATE = {"url": "http://192.0.2.5/agent-9.9.9.tgz", "md5sum": "0" * 32}
NETWORKS = {"network_info": [{"label": "public", "mac": "00:16:3e:12:34:56"}]}
DOCUMENT = {f"vm-data/networking/{MAC}": '{"label": "public", "mac": "00:16:3e:12:34:56"}'}

CASES = {
    "get_agent_version": Case({}, questions(1), told_version),
    "agent_update": Case(UPDATE, questions(2), inside("version", "9.9.9")),
    "set_admin_password": Case({"new_pass": PASSWORD, **LINUX}, questions(3), inside("passwords", {"root": PASSWORD})),
    "inject_file": Case({"path": "/etc/motd", "contents": "Hello"}, questions(2), has_file),
    "reset_network": Case({}, questions(2), inside("hostname", "web01"), {"vm-data/hostname": "web01"}),
    "inject_network_info": Case(NETWORKS, RECORD, record_is({**A, **DOCUMENT}), A),
    "inject_hostname": Case({"hostname": "web01", **LINUX}, RECORD, record_is({**A, "vm-data/hostname": "web01"}), A),
    "add_to_param_xenstore": Case({"key": "vm-data/b", "val": "2"}, RECORD, record_is({**A, **B}), A),
    "write_to_param_xenstore": Case({"mapping": {"vm-data/b": "2"}}, RECORD, record_is({**A, **B}), A),
    "remove_from_param_xenstore": Case({"key_or_keys": "vm-data/b"}, RECORD, record_is(A, *B), {**A, **B}),
    "clear_param_xenstore": Case({}, RECORD, record_is({}, *A, *B), {**A, **B}),
    "write_to_xenstore": Case({"path": "vm-data/b", "value": "2"}, RECORD, record_is({**A, **B}), A),
    "clear_xenstore": Case({"path": "vm-data/b"}, RECORD, record_is(A, *B), {**A, **B}),
    "write_to_xenstore by plugin": Case(
        {"path": "data/b", "value": "2"}, [*FIND, (PLUGIN, 1)], live_is("data/b", '"2"')
    ),
    "add_to_xenstore": Case(
        {"path": "data/b", "key": "k", "value": "2"},
        [*FIND, (PLUGIN, 1), (PLUGIN, 2)],
        live_is("data/b", '{"k": "2"}'),
    ),
    "remove_from_xenstore": Case(
        {"path": "vm-data/map", "key_or_keys": ["k"]},
        RECORD,
        record_is({"vm-data/map": "{}"}),
        {"vm-data/map": '{"k": "2"}'},
    ),
    "clear_xenstore by plugin": Case({"path": "data/b"}, [*FIND, (PLUGIN, 1)], live_is("data/b", None)),
}
MATRICES = {
    name: Matrix(
        case.calls,
        partial(guest, case.data or {}),
        partial(submit, name.partition(" ")[0], case.fields),
        partial(check, case.effect),
    )
    for name, case in CASES.items()
}
#: Where most would be lost: the password is set, the node written, and nobody has noted it.
TELLING = {
    "set_admin_password": f"killed after Async.{PLUGIN} 3",
    "write_to_xenstore by plugin": f"killed after {PLUGIN} 1",
}


def case_of(name: str, accident: Accident) -> ParameterSet:
    """Return an accident as a test case; `make test` has the telling ones."""
    marks = () if TELLING.get(name) == str(accident) else (pytest.mark.matrix,)
    return pytest.param(name, accident, id=f"{name} {accident}", marks=marks)


@pytest.mark.matrix
@pytest.mark.parametrize("name", MATRICES)
def test_the_matrix_has_every_call(rig: GuestWard, name: str) -> None:
    MATRICES[name].assert_is_complete(rig)


@pytest.mark.parametrize(
    ("name", "accident"), [case_of(name, accident) for name, one in MATRICES.items() for accident in one.accidents]
)
def test_an_accident_changes_nothing(rig: GuestWard, name: str, accident: Accident) -> None:
    MATRICES[name].endure(rig, accident)
