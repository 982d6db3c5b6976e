"""The journal's address leads to another server."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest

from tests.support.servers import RedisServer
from worker.operations.journal import Journal, connect
from worker.operations.moves import Move
from worker.operations.record import Record
from worker.operations.states import State
from worker.settings import Settings


class Address(ThreadingTCPServer):
    """An address that leads to a server for as long as a connection lasts; the next one may lead to another."""

    daemon_threads = True
    target = 0


class _Relay(BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Address)
        with socket.create_connection(("127.0.0.1", self.server.target)) as far:
            ways = {self.request: far, far: self.request}
            while True:
                for here in select.select(list(ways), [], [])[0]:
                    data = here.recv(65536)
                    if not data:
                        return
                    ways[here].sendall(data)


@contextmanager
def journal_at(port: int) -> Iterator[Journal]:
    made = connect(Settings.model_validate({"journal_url": f"redis://127.0.0.1:{port}/1", "pools": {}}))
    yield made
    made.redis.close()


def enter(journal: Journal, operation_id: str) -> None:
    record = Record(id=operation_id, name="toy", pool="lab", request={}, position=0, step="first")
    assert journal.enter(record)


@pytest.mark.slow
def test_after_a_failover_the_new_master_is_found(redis_server: RedisServer, tmp_path: Path) -> None:
    master = RedisServer(tmp_path / "other")
    master.start()
    with Address(("127.0.0.1", 0), _Relay) as address, journal_at(address.server_address[1]) as journal:
        threading.Thread(target=address.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        address.target = redis_server.broker.port
        enter(journal, "before")
        with redis_server.client() as former:
            former.replicaof("127.0.0.1", master.broker.port)
        address.target = master.broker.port
        enter(journal, "after")
        with master.client(1) as found:
            assert found.exists("vmops:op:after")
        assert journal.move_all([(journal.get("after"), Move(State.FAILED, "none", {}))])[0] > 0
        address.shutdown()
    master.stop()
