"""A secret is in clear in its caller and in the step that needs it, and nowhere between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from nacl.public import PrivateKey

from tests.support.engine import Toys, toys_of
from tests.support.events import EventLog
from tests.support.servers import RedisServer
from tests.support.transcript import Transcript, stored
from worker.cli import catalogue
from worker.errors import OperationFailed, PermanentError
from worker.operations.reconciler import reconcile
from worker.operations.secrets import make_private_key, seal

CANARY = f"canary-{uuid4()}"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """The workers' private key."""
    path = tmp_path / "secret.key"
    path.write_text(make_private_key())
    return path


@contextmanager
def running(server: RedisServer, folder: Path, **settings: object) -> Iterator[Toys]:
    with toys_of(server, folder, **settings) as found:
        found.deployment.worker(loglevel="DEBUG", concurrency=1)
        yield found


@pytest.mark.slow
def test_a_secret_is_sealed_by_the_client_and_opened_only_in_the_step(
    redis_server: RedisServer, tmp_path: Path, key_file: Path
) -> None:
    with running(redis_server, tmp_path, secret_key_file=str(key_file)) as toys, EventLog(toys.client.app) as log:
        transcript = Transcript(redis_server)
        done = toys.submit(password=CANARY)
        assert done.wait(20)["secret_length"] == len(CANARY), "the step has read it"
        failed = toys.submit(password=toys.client.seal(CANARY), fail_at="second")
        with pytest.raises(OperationFailed) as failure:
            failed.wait(20)
        heard = transcript.text()
        assert "sealed" in heard
        assert done.id in heard
        everything = [heard, stored(redis_server), toys.deployment.log(), str(log.events), str(failure.value)]
        everything += [repr(handle.record()) + str(list(handle.events())) for handle in (done, failed)]
        everything += [str(toys.client.app.AsyncResult(handle.id).info) for handle in (done, failed)]
        assert [place for place, text in enumerate(everything) if CANARY in text] == []
        private_key = key_file.read_text()
        assert [place for place, text in enumerate(everything) if private_key in text] == []


@pytest.mark.slow
def test_a_secret_in_clear_is_refused_and_kept_nowhere(
    redis_server: RedisServer, tmp_path: Path, key_file: Path
) -> None:
    with toys_of(redis_server, tmp_path, secret_key_file=str(key_file)) as toys:
        toys.deployment.worker(concurrency=1)
        with EventLog(toys.client.app) as log:
            sent = toys.stock_client().send_task(
                "vmops.toy", kwargs={"password": CANARY, "vm": "web01"}, queue="vmops.control"
            )
            with pytest.raises(OperationFailed, match=r"password: the secret came in clear; seal it \(VMOps.seal\)"):
                sent.get(timeout=20)
            (received,) = log.of(sent.id, "task-received")
            assert received["kwargs"] == "{'password': '***', 'vm': 'web01'}"
            places = [stored(redis_server), toys.deployment.log(), str(log.events)]
            assert [place for place, text in enumerate(places) if CANARY in text] == []


@pytest.mark.slow
def test_a_secret_in_clear_is_sealed_on_arrival_where_the_settings_allow_it(
    redis_server: RedisServer, tmp_path: Path, key_file: Path
) -> None:
    settings = {"secret_key_file": str(key_file), "allow_secrets_in_clear": True}
    with toys_of(redis_server, tmp_path, **settings) as toys:
        toys.deployment.worker(concurrency=1)
        sent = toys.stock_client().send_task("vmops.toy", kwargs={"password": CANARY}, queue="vmops.control")
        assert sent.get(timeout=20)["secret_length"] == len(CANARY)
        assert CANARY not in stored(redis_server)
        assert CANARY not in toys.deployment.log()


def test_a_secret_is_not_sent_in_clear_before_any_worker_has_said_what_is_secret(own_toys: Toys) -> None:
    with pytest.raises(PermanentError, match="No worker has published a public key"):
        own_toys.client.set_admin_password(instance={"name": "web01"}, new_pass=CANARY)
    assert own_toys.client.operations() == []


def test_what_clients_must_know_is_told_again_after_the_journal_was_wiped(own_toys: Toys) -> None:
    catalogue.load()
    reconcile(own_toys.runtime)
    before = own_toys.journal.catalogue()
    own_toys.journal.redis.flushdb()
    reconcile(own_toys.runtime)
    assert own_toys.journal.catalogue() == before
    assert before["set_admin_password"] == ["new_pass"]


def test_a_secret_that_was_sealed_for_another_key_fails_the_operation(running_toys: Toys) -> None:
    stranger = PrivateKey.generate().public_key.encode().hex()
    handle = running_toys.submit(password={"sealed": seal(stranger, CANARY)})
    with pytest.raises(OperationFailed, match="cannot be opened: it was sealed for another key"):
        handle.wait(20)
    assert running_toys.undone(handle) == ["first"]


@pytest.mark.slow
def test_without_a_key_no_secret_can_be_sent(own_toys: Toys) -> None:
    own_toys.deployment.worker(concurrency=1)
    with pytest.raises(PermanentError, match="No worker has published a public key: set secret_key_file"):
        own_toys.submit(password=CANARY)
