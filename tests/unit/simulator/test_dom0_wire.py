"""xenstored on the wire: packets as the protocol has them (dom0-and-guest.md 5.4), clients of every kind."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator.dom0 import sockets, tree
from simulator.dom0.sockets import UnixListener
from simulator.dom0.xenstore import XenStore
from tests.support.worker import eventually
from tests.unit.simulator.dom0_support import ERROR, HEADER, WireClient, served

DIRECTORY, READ, GET_PERMS, WATCH, UNWATCH, START, END = 1, 2, 3, 4, 5, 6, 7
DOMAIN_PATH, WRITE, MKDIR, RM, SET_PERMS, IS_INTRODUCED, RESET_WATCHES, PART = 10, 11, 12, 13, 14, 17, 21, 22
PATIENCE_S = 30


@pytest.fixture
def store() -> XenStore:
    store = XenStore()
    tree.begin_dom0(store, "d0", 1024)
    return store


@pytest.fixture
def address(store: XenStore, tmp_path: Path) -> Iterator[Path]:
    with served(store, tmp_path) as address:
        yield address


@pytest.fixture
def client(address: Path) -> Iterator[WireClient]:
    with WireClient(address) as client:
        yield client


@pytest.mark.parametrize(
    ("kind", "payload", "answer"),
    [
        (WRITE, b"/a/b\0value", b"OK\0"),
        (WRITE, b"/a\0", b"OK\0"),
        (WRITE, b"/a", b"EINVAL\0"),
        (WRITE, b"/a.b\0x", b"EINVAL\0"),
        (READ, b"/local/domain/0/name\0", b"Domain-0"),
        (READ, b"name\0", b"Domain-0"),
        (READ, b"/nope\0", b"ENOENT\0"),
        (READ, b"/nope", b"EINVAL\0"),
        (READ, b"", b"EINVAL\0"),
        (READ, b"/a\0/b\0", b"EINVAL\0"),
        (READ, b"/\xff\0", b"EINVAL\0"),
        (DIRECTORY, b"/local\0", b"domain\0logconsole\0"),
        (DIRECTORY, b"/vss\0", b""),
        (DIRECTORY, b"/nope\0", b"ENOENT\0"),
        (GET_PERMS, b"/local\0", b"n0\0"),
        (SET_PERMS, b"/local\0n0\0r5\0", b"OK\0"),
        (SET_PERMS, b"/local\0", b"EINVAL\0"),
        (SET_PERMS, b"/nope\0n0\0", b"ENOENT\0"),
        (MKDIR, b"/new/er\0", b"OK\0"),
        (RM, b"/local\0", b"OK\0"),
        (RM, b"/missing\0", b"OK\0"),
        (RM, b"/missing/leaf\0", b"ENOENT\0"),
        (RM, b"/\0", b"EINVAL\0"),
        (DOMAIN_PATH, b"77\0", b"/local/domain/77\0"),
        (DOMAIN_PATH, b"x\0", b"EINVAL\0"),
        (IS_INTRODUCED, b"0\0", b"T\0"),
        (IS_INTRODUCED, b"77\0", b"F\0"),
        (UNWATCH, b"/a\0t\0", b"ENOENT\0"),
        (RESET_WATCHES, b"\0", b"OK\0"),
        (END, b"T\0", b"ENOENT\0"),
        (END, b"x\0", b"EINVAL\0"),
        (99, b"\0", b"ENOSYS\0"),
        (8, b"1\0002\0003\0", b"ENOSYS\0"),
    ],
)
def test_each_operation_has_its_answer(client: WireClient, kind: int, payload: bytes, answer: bytes) -> None:
    assert client.ask(kind, payload) == answer


def test_a_value_is_bytes_of_any_kind(client: WireClient) -> None:
    value = bytes(range(256))
    client.ask(WRITE, b"/a\0" + value)
    assert client.ask(READ, b"/a\0") == value


def test_a_message_may_be_4096_bytes_and_a_longer_one_ends_the_connection(client: WireClient, store: XenStore) -> None:
    assert client.ask(WRITE, b"/a\0" + b"v" * 4093) == b"OK\0"
    assert client.ask(READ, b"/a\0") == b"v" * 4093
    client.send(WRITE, b"/a\0" + b"v" * 4094)
    with pytest.raises((EOFError, ConnectionError)):
        client.receive()
    assert store.get("/a") == "v" * 4093


def test_a_long_list_of_names_comes_in_parts(client: WireClient, store: XenStore) -> None:
    names = [f"name-{number:04d}" for number in range(1000)]
    store.update({f"/many/{name}": "" for name in names})
    assert client.ask(DIRECTORY, b"/many\0") == b"E2BIG\0"
    found, versions, offset = b"", set(), 0
    while not found.endswith(b"\0\0"):
        version, _, part = client.ask(PART, b"/many\0%d\0" % offset).partition(b"\0")
        versions.add(version)
        found += part
        offset = len(found)
    assert found[:-2].decode().split("\0") == names
    assert len(versions) == 1
    store.write("/many/another", "")
    assert client.ask(PART, b"/many\0000\0").partition(b"\0")[0] not in versions


def test_a_watch_reports_at_once_and_then_changes(client: WireClient, store: XenStore) -> None:
    assert client.ask(WATCH, b"/a\0token\0") == b"OK\0"
    assert client.event() == b"/a\0token\0"
    store.write("/a/b", "1")
    assert client.event() == b"/a/b\0token\0"
    assert client.ask(WATCH, b"/a\0token\0") == b"EEXIST\0"
    assert client.ask(WATCH, b"/a\0other\0") == b"OK\0"
    assert client.event() == b"/a\0other\0"
    assert client.ask(UNWATCH, b"/a\0token\0") == b"OK\0"
    store.write("/a/c", "1")
    assert client.event() == b"/a/c\0other\0"


def test_the_answer_to_a_watch_comes_before_its_first_event(client: WireClient) -> None:
    for number in range(50):
        client.ask(WATCH, b"/a\0%d\0" % number)
        assert all(not event.endswith(b"\0%d\0" % number) for event in client.events)


def test_a_watch_on_a_bad_path_is_refused(client: WireClient) -> None:
    assert client.ask(WATCH, b"/a b\0t\0") == b"EINVAL\0"
    assert client.ask(WATCH, b"@nothing\0t\0") == b"EINVAL\0"
    assert client.ask(UNWATCH, b"/a b\0t\0") == b"ENOENT\0"


def test_transactions_belong_to_their_connection(client: WireClient, address: Path, store: XenStore) -> None:
    number = int(client.ask(START, b"\0")[:-1])
    client.ask(WRITE, b"/t\0x", transaction=number)
    assert client.ask(READ, b"/t\0", transaction=number) == b"x"
    assert client.ask(READ, b"/t\0") == b"ENOENT\0"
    assert client.ask(START, b"\0", transaction=number) == b"EBUSY\0"
    with WireClient(address) as other:
        assert other.ask(READ, b"/t\0", transaction=number) == b"ENOENT\0"
        assert other.ask(END, b"T\0", transaction=number) == b"ENOENT\0"
    assert client.ask(END, b"T\0", transaction=number) == b"OK\0"
    assert store.get("/t") == "x"


def test_a_transaction_that_others_came_between_answers_eagain(client: WireClient, store: XenStore) -> None:
    number = int(client.ask(START, b"\0")[:-1])
    client.ask(READ, b"/local/domain/0/name\0", transaction=number)
    client.ask(WRITE, b"/t\0x", transaction=number)
    store.write("/local/domain/0/name", "other")
    assert client.ask(END, b"T\0", transaction=number) == b"EAGAIN\0"
    assert not store.exists("/t")


def test_a_client_that_goes_leaves_no_watch_and_no_transaction(address: Path, store: XenStore) -> None:
    with WireClient(address) as client:
        client.ask(WATCH, b"/a\0t\0")
        client.ask(START, b"\0")
    eventually(lambda: not store._watches and not store._transactions)


def test_reset_watches_forgets_all(client: WireClient, store: XenStore) -> None:
    client.ask(WATCH, b"/a\0t\0")
    client.ask(START, b"\0")
    assert client.ask(RESET_WATCHES, b"\0") == b"OK\0"
    assert not store._watches
    assert not store._transactions


def test_requests_sent_together_are_answered_in_order(client: WireClient) -> None:
    packets = [HEADER.pack(WRITE, number, 0, 5) + b"/a\0%02d" % number for number in range(20)]
    client.sock.sendall(b"".join(packets))
    assert [client.receive()[1] for _packet in packets] == list(range(20))


def test_a_request_in_pieces_is_understood(client: WireClient) -> None:
    for byte in HEADER.pack(READ, 7, 0, 5) + b"name\0":
        client.sock.sendall(bytes([byte]))
    assert client.receive()[3] == b"Domain-0"


def test_nonsense_harms_nobody_else(address: Path) -> None:
    with WireClient(address) as good:
        for rubbish in (b"\xff" * 64, b"GET / HTTP/1.0\r\n\r\n", b"\0" * 15, os.urandom(4096)):
            with WireClient(address) as bad:
                bad.sock.sendall(rubbish)
        assert good.ask(READ, b"name\0") == b"Domain-0"


def test_a_client_that_never_reads_its_events_is_cut_off_and_holds_nobody_up(address: Path, store: XenStore) -> None:
    with WireClient(address) as lazy:
        lazy.ask(WATCH, b"/a\0t\0")
        for number in range(30_000):
            store.write("/a/b", str(number))
            if not store._watches:
                break
        eventually(lambda: not store._watches)


def test_many_clients_at_once_get_their_own_answers(address: Path) -> None:
    wrong: list[object] = []

    def talk(number: int) -> None:
        with WireClient(address) as client:
            for turn in range(20):
                value = b"%d-%d" % (number, turn)
                client.ask(WRITE, b"/own/%d\0" % number + value)
                if (seen := client.ask(READ, b"/own/%d\0" % number)) != value:
                    wrong.append(seen)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert wrong == []


def test_an_error_packet_carries_the_request_it_answers(client: WireClient) -> None:
    client.send(READ, b"/nope\0", request=4711)
    assert client.receive() == (ERROR, 4711, 0, b"ENOENT\0")


def test_closing_cuts_clients_and_removes_the_socket(store: XenStore, tmp_path: Path) -> None:
    with served(store, tmp_path) as address:
        client = WireClient(address)
        with client:
            client.ask(READ, b"name\0")
            link = tmp_path / "root" / "socket"
            assert link.readlink() == address
    with client, pytest.raises((EOFError, OSError)):
        client.receive()
    assert not link.is_symlink()
    assert not address.exists()


@pytest.mark.parametrize("has_proc", [True, False])
def test_a_folder_with_a_long_name_gets_a_short_one_for_its_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_proc: bool
) -> None:
    if not has_proc:
        monkeypatch.setattr(sockets, "_OPEN_FILES", tmp_path / "nothing")
    folder = tmp_path / ("long" * 30)
    listener = UnixListener(folder / "root" / "socket", folder, "x", socket.socket.close)
    listener.open()
    try:
        assert len(os.fsencode(listener.address)) < 100
        assert (folder / "root" / "socket").readlink() == listener.address
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(listener.address))
    finally:
        listener.close()
    assert not listener.address.exists()
    assert [found.name for found in folder.iterdir()] == ["root"]
