"""The guards of the tests: nothing beyond the loopback address, no process left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from http.client import HTTPConnection

import psutil
import pytest

from tests.support.guard import OutsideConnection, is_local
from tests.support.servers import RedisServer, end_strays, keep
from worker.cli.embedded import ManagedProcess

#: Says first that it runs: while a program is being loaded, it has neither name nor environment.
SLEEP = "import time; print(flush=True); time.sleep(60)"


@pytest.mark.parametrize("address", ["192.0.2.1", "8.8.8.8", "2001:db8::1"])
def test_a_connection_beyond_this_machine_is_refused(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(1)
        with pytest.raises(OutsideConnection, match="tests stay on the loopback address"):
            client.connect((address, 80))


def test_a_datagram_beyond_this_machine_is_refused() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as client, pytest.raises(OutsideConnection):
        client.sendto(b"x", ("192.0.2.1", 9))


def test_names_are_not_looked_up() -> None:
    with pytest.raises(OutsideConnection, match="tests look no names up"):
        HTTPConnection("example.org", timeout=1).request("GET", "/")


@pytest.mark.parametrize("host", [None, "", "localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]", b"localhost", "::"])
def test_this_machine_may_be_reached(host: str | bytes | None) -> None:
    assert is_local(host)


def test_a_connection_on_the_loopback_address_works() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        connection, _ = server.accept()
        connection.close()


def test_a_forgotten_child_is_ended_and_named() -> None:
    known = set(psutil.pids())
    with subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE, start_new_session=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline()
        left = end_strays(known, patience_s=0)
        assert child.poll() is not None
    assert left == [f"pid {child.pid}: {sys.executable} -c {SLEEP}"]


ORPHANING = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
import os
os._exit(0)
"""


def test_an_orphan_is_found_too() -> None:
    known = set(psutil.pids())
    parent = subprocess.run([sys.executable, "-c", ORPHANING, SLEEP], stdout=subprocess.PIPE, text=True, check=True)
    left = end_strays(known, patience_s=0)
    assert left == [f"pid {parent.stdout.strip()}: {sys.executable} -c {SLEEP}"]


def test_processes_known_before_and_kept_servers_stay(redis_server: RedisServer) -> None:
    process: ManagedProcess = redis_server.broker.process
    known = set(psutil.pids())
    others = known - {process.pid}
    assert len(others) == len(known) - 1
    assert end_strays(known, patience_s=0) == []
    with keep(process):
        assert end_strays(others, patience_s=0) == []
    assert process.is_running


def test_children_inherit_the_mark() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", "import os; print(os.environ['VMOPS_TEST_PROCESS'])"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() == os.environ["VMOPS_TEST_PROCESS"]
