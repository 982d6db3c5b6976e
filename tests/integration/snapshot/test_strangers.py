"""Pools and image stores that do not answer, or do not let us in: told so, and nothing is left behind."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import pytest

from tests.integration.snapshot.support import SETTINGS, Lab
from tests.support.rig import MIB
from tests.support.simulator import SimulatorProcess
from tests.support.worker import eventually
from worker.client import Handle
from worker.operations.states import State

#: Patience of the deployment whose pools and stores do not answer.
PATIENCE_S = 2


# -- what does not answer, or does not let us in -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def encrypted() -> Iterator[SimulatorProcess]:
    """A pool with TLS and a certificate that it made for itself, as XCP-ng's hosts do."""
    with SimulatorProcess("--guest-writes", "0", tls=True) as simulator:
        simulator.add_vm(name="demo-01", disks=[{"size": 4 * MIB, "content": "random"}])
        yield simulator


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory, encrypted: SimulatorProcess) -> Iterator[Lab]:
    """A deployment with little patience, and with pools that are not as its settings say."""
    certificate = ssl.PEM_cert_to_DER_cert(encrypted.certificate.read_text(encoding="ascii"))
    secured = {"url": encrypted.url, "password": encrypted.password}
    pools: dict[str, dict[str, Any]] = {
        "locked": {"password": "not the password"},
        "nowhere": {"url": "http://127.0.0.1:9", "password": "unused"},
        "trusted": {**secured, "fingerprints": [hashlib.sha256(certificate).hexdigest()]},
        "impostor": {**secured, "fingerprints": ["ab" * 32]},
    }
    settings = {"step_deadline_s": PATIENCE_S, "undo_deadline_s": 30}
    with Lab(tmp_path_factory.mktemp("hasty"), settings=settings, pools=pools) as made:
        yield made


@pytest.fixture(scope="module")
def into_nowhere(hasty: Lab) -> Handle:
    """A snapshot in a pool that does not answer: begun early, since a pool is given time to restart."""
    return hasty.client.snapshot(instance={"name": "web01"}, pool="nowhere")


@pytest.fixture
def strange(hasty: Lab, into_nowhere: Handle) -> Iterator[Lab]:
    """The hasty deployment, tidy afterwards."""
    hasty.simulator.reset_stats()
    yield hasty
    assert hasty.simulator.leaks() == {}


def test_a_wrong_password_is_not_tried_again_and_not_told(strange: Lab) -> None:
    handle = strange.client.snapshot(instance={"name": "web01"}, pool="locked")
    text = strange.refused(handle, "PoolAuthenticationFailed")
    assert text == "Pool 'locked' refused user 'root': check username and password_file."
    assert strange.simulator.calls()["session.login_with_password"] == 1
    assert "not the password" not in strange.deployment.log()


def test_a_certificate_that_does_not_match_is_refused_before_the_password_is_sent(
    strange: Lab, encrypted: SimulatorProcess
) -> None:
    encrypted.reset_stats()
    handle = strange.client.snapshot(instance={"name": "demo-01"}, pool="impostor")
    text = strange.refused(handle, "CertificateMismatch")
    seen = hashlib.sha256(ssl.PEM_cert_to_DER_cert(encrypted.certificate.read_text(encoding="ascii"))).hexdigest()
    compact = text.replace(":", "").lower()
    assert "127.0.0.1" in text
    assert seen in compact, "what it is"
    assert "ab" * 32 in compact, "what it should be"
    assert encrypted.calls() == {}


def test_a_certificate_that_matches_lets_the_snapshot_through(strange: Lab, encrypted: SimulatorProcess) -> None:
    handle = strange.client.snapshot(instance={"name": "demo-01"}, pool="trusted", coalesce="skip")
    (pushed,) = strange.succeeded(handle)
    (vdi,) = [vdi for vdi in disks_of(encrypted).values() if not vdi["is_a_snapshot"] and vdi["managed"]]
    assert strange.content(pushed) in encrypted.disk(vdi["uuid"])["snapshot_digests"].values()
    assert encrypted.leaks() == {}


def disks_of(simulator: SimulatorProcess) -> dict[str, dict[str, Any]]:
    """Return every disk of a pool."""
    with simulator.session() as call:
        disks: dict[str, dict[str, Any]] = call("VDI.get_all_records")
    return disks


@pytest.mark.slow
def test_a_pool_that_does_not_answer_is_given_up_in_the_end(strange: Lab, into_nowhere: Handle) -> None:
    text = strange.refused(into_nowhere, "DeadlineExceeded", timeout_s=120)
    assert "Pool 'nowhere'" in text
    assert "127.0.0.1:9" in text


def test_an_image_store_that_does_not_let_us_in_is_refused_before_anything_is_touched(strange: Lab) -> None:
    vm = strange.new_vm(running=False)
    strange.glance.settings(token="another")
    try:
        strange.simulator.reset_stats()
        handle = strange.snapshot(vm)
        text = strange.refused(handle, "ImageStoreDenied")
    finally:
        strange.glance.settings(token=None)
    assert strange.glance.url in text
    assert "check image_store_token_file" in text
    assert strange.changing_calls() == {}


# -- an image store that dies, in a deployment of the test's own: the store is started again ---------------------------


@pytest.fixture
def own(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A laboratory of the test's own, with a step's patience in seconds as the test gives it."""
    with Lab(tmp_path, settings={**SETTINGS, "step_deadline_s": request.param}) as made:
        yield made
        made.tidy()
        made.assert_nothing_is_left()


@pytest.mark.parametrize("own", [PATIENCE_S], indirect=True)
def test_an_image_store_that_does_not_answer_is_waited_for_and_then_named(own: Lab) -> None:
    vm = own.new_vm(running=False)
    own.glance.kill()
    own.simulator.reset_stats()
    handle = own.snapshot(vm)
    text = own.refused(handle, "DeadlineExceeded")
    assert f"The image service {own.glance.url} does not answer" in text
    assert own.changing_calls() == {}
    own.glance.start()
    own.succeeded(own.snapshot(vm))


@pytest.mark.parametrize("own", [PATIENCE_S], indirect=True)
def test_an_image_store_that_dies_in_the_middle_ends_with_nothing_left(own: Lab) -> None:
    """The image cannot be deleted while its store is away: the undo waits for that."""
    vm = own.new_vm()
    own.storage(bytes_per_s=MIB // 64)
    handle = own.snapshot(vm, coalesce="skip")
    eventually(lambda: own.glance.calls()["upload"])
    own.glance.kill()
    own.storage(bytes_per_s=None)
    eventually(lambda: handle.record().state == State.UNDOING)
    own.glance.start()
    text = own.refused(handle, "DeadlineExceeded", State.UNDONE)
    assert own.glance.url in text
    assert own.images_of(handle) == []
    assert own.snapshots_of(vm.vdis[0]) == {}


@pytest.mark.parametrize("own", [60], indirect=True)
def test_an_image_store_that_comes_back_gets_another_image_for_the_one_that_it_left_saving(own: Lab) -> None:
    """Glance never leaves that state by itself, and does not take the id again."""
    vm = own.new_vm()
    own.storage(bytes_per_s=MIB // 64)
    handle = own.snapshot(vm, coalesce="skip")
    eventually(lambda: own.glance.calls()["upload"])
    (first,) = own.images_of(handle)
    own.glance.kill()
    own.storage(bytes_per_s=None)
    eventually(lambda: handle.record().failures)
    own.glance.start()
    (pushed,) = own.succeeded(handle)
    own.assert_right(pushed, vm.vdis[0])
    assert own.glance.images()[first["id"]]["status"] == "deleted"
    assert pushed["image_id"] == str(uuid5(NAMESPACE_OID, f"vmops {handle.id} disk 0 replacement 1"))
    assert [one["id"] for one in own.images_of(handle)] == [pushed["image_id"]]
