"""vmops-kernel: a file is there as a whole and right, or not at all; nothing outside its folder is touched."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from vmops_lib import kernel
from vmops_lib.arguments import Arguments
from vmops_lib.failures import BadArgument, Failure, NoSpace

from tests.support.dom0 import Host

CONTENT = random.Random(1).randbytes(2500)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = f"vmops-image-1-{SHA256}"


@pytest.fixture
def folder(inside: Host) -> Path:
    folder = inside.root / "boot/guest"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    return folder


def put(offset: int, data: bytes, *, size: int = len(CONTENT), **key: str) -> Any:
    text = base64.b64encode(data).decode("ascii")
    args = {"size": str(size), "offset": str(offset), "data_b64": text}
    return kernel.put(Arguments({"image_id": "image-1", "sha256": SHA256, **args, **key}))


def ask(fn: str, **key: str) -> Any:
    return kernel.FUNCTIONS[fn].body(Arguments({"image_id": "image-1", "sha256": SHA256, **key}))


def test_a_file_comes_in_parts_and_is_seen_only_when_it_is_complete(folder: Path) -> None:
    assert put(len(CONTENT), b"") == {"complete": False, "received": 0, "path": f"/boot/guest/{NAME}"}
    assert put(0, CONTENT[:1000])["received"] == 1000
    assert ask("list") == {"files": []}
    assert ask("verify")["complete"] is False
    assert put(1000, CONTENT[1000:2000])["received"] == 2000
    assert put(2000, CONTENT[2000:]) == {"complete": True, "received": 2500, "path": f"/boot/guest/{NAME}"}
    assert (folder / NAME).read_bytes() == CONTENT
    assert [path.name for path in folder.iterdir()] == [NAME]
    expected = {"image_id": "image-1", "sha256": SHA256, "size": 2500, "path": f"/boot/guest/{NAME}"}
    assert ask("list") == {"files": [expected]}
    assert (folder / NAME).stat().st_mode & 0o777 == 0o644


def test_a_part_may_come_twice_too_early_or_when_all_is_there(folder: Path) -> None:
    put(0, CONTENT[:1000])
    assert put(0, CONTENT[:1000])["received"] == 1000
    assert put(2000, CONTENT[2000:])["received"] == 1000  # not taken: there would be a hole
    assert put(500, CONTENT[500:1500])["received"] == 1500
    put(1500, CONTENT[1500:])
    assert put(0, CONTENT[:1000])["complete"] is True
    assert (folder / NAME).read_bytes() == CONTENT


def test_a_complete_part_that_a_killed_plugin_left_unnamed_is_named(folder: Path) -> None:
    put(0, CONTENT[:1000])
    (folder / f".{NAME}.part").write_bytes(CONTENT)
    assert put(len(CONTENT), b"")["complete"] is True


def test_content_that_is_not_what_was_promised_is_thrown_away(folder: Path) -> None:
    with pytest.raises(BadArgument, match="send it again"):
        put(0, bytes(len(CONTENT)))
    assert list(folder.iterdir()) == []
    assert put(0, CONTENT)["complete"] is True


def test_a_file_that_was_damaged_since_is_found_out_and_removed(folder: Path) -> None:
    put(0, CONTENT)
    assert ask("verify")["complete"] is True
    (folder / NAME).write_bytes(CONTENT[:-1] + b"x")
    assert ask("verify")["complete"] is False
    assert not (folder / NAME).exists()


def test_a_file_is_removed_with_what_has_come_of_it_and_may_be_gone(folder: Path) -> None:
    (folder / "vmlinuz-of-somebody").write_text("theirs", encoding="ascii")
    put(0, CONTENT)
    assert ask("remove") == {"removed": True}
    put(0, CONTENT[:10])
    assert ask("remove") == {"removed": True}
    assert ask("remove") == {"removed": False}
    assert [path.name for path in folder.iterdir()] == ["vmlinuz-of-somebody"]


@pytest.mark.parametrize("image_id", ["", "../x", "a/b", ".", "-rf", "x" * 65, "a b", "ä", "a\n"])
def test_no_name_leads_out_of_the_folder(folder: Path, image_id: str) -> None:
    for fn in ("verify", "remove"):
        with pytest.raises(BadArgument, match="image_id"):
            ask(fn, image_id=image_id)
    with pytest.raises(BadArgument, match="image_id"):
        put(0, b"x", image_id=image_id)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("sha256", ["", "ab", SHA256.upper(), SHA256 + "0", "../" + SHA256[3:]])
def test_what_is_no_checksum_is_refused(folder: Path, sha256: str) -> None:
    del folder
    with pytest.raises(BadArgument, match="sha256"):
        put(0, b"x", sha256=sha256)


def test_sizes_and_places_that_make_no_sense_are_refused(folder: Path) -> None:
    for offset, data, size in [(0, b"xx", 1), (2, b"", 1), (0, b"", 0), (0, b"", kernel.MOST_BYTES + 1)]:
        with pytest.raises(BadArgument):
            put(offset, data, size=size)
    assert list(folder.iterdir()) == []


def test_links_in_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"theirs")
    (folder / f".{NAME}.part").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        put(0, CONTENT)
    (folder / f".{NAME}.part").unlink()
    (folder / NAME).symlink_to(target)
    put(0, CONTENT)
    assert target.read_bytes() == b"theirs"
    assert (folder / NAME).read_bytes() == CONTENT


def test_the_disk_of_dom0_is_never_filled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    monkeypatch.setattr(kernel, "_SPARED_BYTES", free)
    with pytest.raises(NoSpace, match="MiB free"):
        put(0, CONTENT)
    assert list(folder.iterdir()) == []


def test_many_senders_of_one_file_do_each_other_no_harm(folder: Path) -> None:
    failures: list[Failure] = []

    def send() -> None:
        try:
            received = 0
            while not (state := put(received, CONTENT[received : received + 100]))["complete"]:
                received = int(state["received"])
        except Failure as failure:
            failures.append(failure)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert (folder / NAME).read_bytes() == CONTENT
