"""The crash matrices of the operations on security groups: hosts have what was asked for, once, whatever happened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import pytest

from tests.crash.matrix import Accident, Matrix
from tests.integration.power.support import VM
from tests.support.fenced import CALL, HTTP, SSH, Fenced
from tests.support.rig import Rig
from worker.client import Handle

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.matrix]

_numbers = count(1)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fenced]:
    """Hosts that enforce; they have said what they can do."""
    with Fenced(tmp_path_factory.mktemp("fenced")) as made:
        yield made


@dataclass(frozen=True)
class Fence:
    """A group, and a VM of it on each of two hosts."""

    group: str
    vms: tuple[VM, VM]


def fence(rig: Rig) -> Fence:
    """Make a group with two VMs, enforced."""
    assert isinstance(rig, Fenced)
    group = f"g{next(_numbers)}"
    made = Fence(group, (rig.member(0, group), rig.member(1, group)))
    rig.allow(group, HTTP)
    return made


def refresh(rig: Rig, made: Fence) -> Handle:
    """Change what the group allows."""
    return rig.client.refresh_security_group_rules(security_group_id=made.group, rules=[SSH])


def check_refreshed(rig: Rig, made: Fence, handle: Handle) -> None:
    """Both hosts have the rules, the third has nothing."""
    assert isinstance(rig, Fenced)
    rig.succeeded(handle)
    key = f"rules:{made.group}"
    assert [rig.objects(host).get(key) for host in range(3)] == [[["i", 4, 6, 22, 22, None]]] * 2 + [None]
    _forget(rig, made)


def leave(rig: Rig, made: Fence) -> Handle:
    """Let one of the VMs leave, and a stranger join."""
    members = [{"instance": made.vms[1].instance}, {"addresses": ["192.0.2.7"]}]
    return rig.client.refresh_security_group_members(security_group_id=made.group, members=members)


def check_left(rig: Rig, made: Fence, handle: Handle) -> None:
    """One VM is filtered, the other is not."""
    assert isinstance(rig, Fenced)
    rig.succeeded(handle)
    mark = f"vmops.group.{made.group}"
    assert [mark in rig.rec(vm)["other_config"] for vm in made.vms] == [False, True]
    assert [bool(rig.objects(host)) for host in range(3)] == [False, True, False]
    _forget(rig, made)


def unfilter(rig: Rig, made: Fence) -> Handle:
    """Unfilter one of the VMs."""
    return rig.client.unfilter_instance(instance={"vm_uuid": made.vms[0].uuid})


def _forget(rig: Fenced, made: Fence) -> None:
    """Nothing is left; remove the VMs, and what hosts have of them."""
    rig.assert_nothing_is_left()
    rig.tidy()
    rig.client.poll_firewall()
    assert [rig.objects(host) for host in range(3)] == [{}] * 3


MATRICES: dict[str, Matrix[Fence]] = {
    "refresh_security_group_rules": Matrix([(CALL, 1), (CALL, 2)], fence, refresh, check_refreshed),
    "refresh_security_group_members": Matrix([("VM.remove_from_other_config", 1), (CALL, 1)], fence, leave, check_left),
    "unfilter_instance": Matrix(
        [("VM.get_all_records_where", 1), ("VM.remove_from_other_config", 1), (CALL, 1)], fence, unfilter, check_left
    ),
}
CASES = [accident.case(name) for name, one in MATRICES.items() for accident in one.accidents]


@pytest.mark.parametrize("name", MATRICES)
def test_the_matrix_has_every_call(rig: Fenced, name: str) -> None:
    MATRICES[name].assert_is_complete(rig)


@pytest.mark.parametrize(("name", "accident"), CASES)
def test_an_accident_changes_nothing(rig: Fenced, name: str, accident: Accident) -> None:
    MATRICES[name].endure(rig, accident)
