"""vmops-console: the end of the right log, and logs that do not fill dom0's disk."""

from __future__ import annotations

import base64
import os
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vmops_lib import console
from vmops_lib.arguments import Arguments
from vmops_lib.failures import BadArgument, CommandFailed, Failure, NotFound, Unsupported

from simulator.dom0.tree import Domain
from tests.support.dom0 import OTHER_VM_UUID, VM_UUID, Host

DOMIDS = iter(range(100, 10_000))
NO_ARGUMENTS = Arguments({})


@pytest.fixture
def place(inside: Host) -> Iterator[Host]:
    """A host where nothing is logged yet; afterwards, too."""
    inside.store.update({console.EVERY_LOG: None})
    yield inside
    inside.store.update({console.EVERY_LOG: None})
    for folder in (inside.root / "var/log/xen/guest", inside.root / "var/lib/vmops"):
        for path in folder.iterdir() if folder.exists() else ():
            path.unlink()


def log(host: Host, domid: int) -> Path:
    return host.root / f"var/log/xen/guest/console.{domid}"


def tail(domain: Domain, **args: str) -> Any:
    answer = console.tail(Arguments({"dom_id": str(domain.domid), "vm_uuid": VM_UUID, **args}))
    answer["text"] = zlib.decompress(base64.b64decode(str(answer.pop("b64z"))))
    return answer


def grow(path: Path, size: int) -> bytes:
    """Write lines up to a size; return the content."""
    content = b"".join(b"%09d\n" % number for number in range(size // 10 + 1))[:size]
    path.write_bytes(content)
    return content


def test_the_end_of_the_log_is_returned_byte_by_byte(place: Host) -> None:
    console.enable(NO_ARGUMENTS)
    domain = place.begin(next(DOMIDS))
    log(place, domain.domid).write_bytes(b"boot\r\n\x00\xff\x1b[0m end")
    assert tail(domain) == {"text": b"boot\r\n\x00\xff\x1b[0m end", "size": 16, "truncated": False}
    assert tail(domain, bytes="3") == {"text": b"end", "size": 16, "truncated": True}


def test_a_log_of_its_own_comes_before_that_of_all(place: Host) -> None:
    console.enable(NO_ARGUMENTS)
    domain = place.begin(next(DOMIDS))
    own = place.root / "var/log/own"
    own.write_bytes(b"own")
    place.store.update({f"/local/logconsole/{domain.domid}": "/var/log/own"})
    assert tail(domain)["text"] == b"own"


def test_a_domain_that_is_gone_still_has_its_log_but_not_to_another_vm(place: Host) -> None:
    console.enable(NO_ARGUMENTS)
    domain = place.begin(next(DOMIDS))
    log(place, domain.domid).write_bytes(b"last words")
    place.end(domain)
    assert tail(domain)["text"] == b"last words"
    place.begin(domain.domid, OTHER_VM_UUID)
    with pytest.raises(NotFound, match="belongs to another VM"):
        tail(domain)


def test_a_host_that_logs_nothing_says_what_to_do(place: Host) -> None:
    with pytest.raises(Unsupported, match="fn=enable"):
        tail(place.begin(next(DOMIDS)))


@pytest.mark.parametrize("pattern", ["/etc/shadow", "/var/log/../../etc/%d", "/var/logs/%d", "relative/%d"])
def test_a_log_outside_the_folder_of_logs_is_never_read(place: Host, pattern: str) -> None:
    place.store.update({console.EVERY_LOG: pattern})
    with pytest.raises(Unsupported, match="outside /var/log/"):
        tail(place.begin(next(DOMIDS)))


def test_links_folders_and_pipes_are_never_read(place: Host, tmp_path: Path) -> None:
    console.enable(NO_ARGUMENTS)
    secret = tmp_path / "secret"
    secret.write_text("secret", encoding="ascii")
    kinds: list[tuple[Any, type[Failure]]] = [
        (lambda path: path.symlink_to(secret), NotFound),
        (Path.mkdir, CommandFailed),
        (os.mkfifo, CommandFailed),
    ]
    for make, failure in kinds:
        domain = place.begin(next(DOMIDS))
        path = log(place, domain.domid)
        make(path)
        with pytest.raises(failure):
            tail(domain)
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("length", ["0", "-1", "1048577", "x"])
def test_a_length_out_of_bounds_is_refused(place: Host, length: str) -> None:
    with pytest.raises(BadArgument, match="bytes"):
        tail(place.begin(next(DOMIDS)), bytes=length)


def test_logging_begins_once_and_ends_and_what_somebody_set_stays(place: Host) -> None:
    assert console.enable(NO_ARGUMENTS) == {"changed": True, "pattern": console.PATTERN}
    assert console.enable(NO_ARGUMENTS) == {"changed": False, "pattern": console.PATTERN}
    assert console.disable(NO_ARGUMENTS) == {"changed": True}
    assert console.disable(NO_ARGUMENTS) == {"changed": False}
    assert not place.store.exists(console.EVERY_LOG)
    place.store.update({console.EVERY_LOG: "/var/log/theirs.%d"})
    assert console.enable(NO_ARGUMENTS) == {"changed": False, "pattern": "/var/log/theirs.%d"}
    assert console.disable(NO_ARGUMENTS) == {"changed": False}
    assert place.store.get(console.EVERY_LOG) == "/var/log/theirs.%d"


# -- tending


def test_after_a_reboot_logging_begins_again_but_only_if_it_was_wanted(place: Host) -> None:
    console.tend()
    assert not place.store.exists(console.EVERY_LOG)
    console.enable(NO_ARGUMENTS)
    place.store.update({console.EVERY_LOG: None})
    console.tend()
    assert place.store.get(console.EVERY_LOG) == console.PATTERN


def test_a_log_that_has_grown_is_cut_to_its_end_and_opened_again(place: Host) -> None:
    console.enable(NO_ARGUMENTS)
    domain, small = place.begin(next(DOMIDS)), place.begin(next(DOMIDS))
    content = grow(log(place, domain.domid), console.MOST_BYTES + 7)
    grow(log(place, small.domid), console.MOST_BYTES)
    changes: list[str] = []
    watch = place.store.watch(console.EVERY_LOG, "t", lambda path, _token: changes.append(path))
    changes.clear()
    console.tend()
    place.store.unwatch(watch)
    kept = log(place, domain.domid).read_bytes()
    assert content.endswith(kept)
    assert console.KEPT_BYTES - 10 <= len(kept) <= console.KEPT_BYTES
    assert re.match(rb"\d{9}\n", kept)
    assert changes == [console.EVERY_LOG]  # the daemon opens the new file when the pattern is written
    assert log(place, small.domid).stat().st_size == console.MOST_BYTES


def test_old_logs_of_domains_that_are_gone_are_removed(place: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    console.enable(NO_ARGUMENTS)
    monkeypatch.setattr(console, "ALL_BYTES", 25)
    living, now = place.begin(next(DOMIDS)), time.time()
    ages = {living.domid: 10**7, 60001: 100, 60002: 200, 60003: 300, 60004: console.KEPT_S + 60}
    for domid, age in ages.items():
        log(place, domid).write_bytes(b"x" * 10)
        os.utime(log(place, domid), (now - age, now - age))
    (log(place, 1).parent / "others.log").write_bytes(b"x" * 100)
    console.tend()
    left = sorted(path.name for path in log(place, 1).parent.iterdir())
    assert left == sorted([f"console.{living.domid}", "console.60001", "console.60002", "others.log"])
