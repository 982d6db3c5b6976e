"""rescue: the instance's disks are there to be repaired, and nothing has happened to them."""

from __future__ import annotations

import pytest

from tests.integration.power.support import Ward
from tests.support.rescuing import (
    assert_as_before,
    assert_in_rescue,
    new_patient,
    own_vm,
    rescue,
    unrescue,
)
from tests.support.spawning import put_image


@pytest.mark.parametrize("state", ["Running", "Halted"])
def test_an_instance_goes_into_rescue_and_comes_back_as_it_was(ward: Ward, state: str) -> None:
    picture = put_image(ward)
    patient = new_patient(ward, running=state == "Running")
    handle = rescue(ward, patient, picture)
    result = ward.succeeded(handle, 60)
    rescuer = assert_in_rescue(ward, patient, handle, picture)
    assert result["vm_uuid"] == rescuer["uuid"]
    assert result["rescued"]["vm_uuid"] == patient.vm_uuid
    assert result["rescued"]["power_state_before"] == patient.state
    assert own_vm(ward, patient)["other_config"]["vmops.rescued"].startswith(f"{result['rescued']['entered']} ")
    result = ward.succeeded(unrescue(ward, patient))
    assert_as_before(ward, patient)
    assert result["power_state"] == patient.state
    assert result["rescue_vms"] == [rescuer["uuid"]]
    assert [one["role"] for one in result["destroyed"]] == ["root"]
    assert result["kept"] == []
