"""The directory store as files: what lies there, what a crash leaves, what several processes do to it."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.images_contract import NOISE, await_state, failing, new_image, pieces, read_all
from tests.integration.images_support import MIB, RAW, VHD, Export, Watch, plan
from worker.errors import (
    ImageConflict,
    ImageNotFound,
    ImageNotReady,
    ImageStoreDenied,
    ImageStoreFull,
    ImageStoreUnreachable,
)
from worker.images.directory import DirectoryStore
from worker.images.push import push
from worker.images.store import ImageMeta, ImageState, open_store
from worker.settings import Settings


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "images")


def files(store: DirectoryStore) -> set[str]:
    return {path.name for path in store.root.iterdir()} - {".lock"}


def test_without_a_setting_images_lie_in_the_state_directory(tmp_path: Path) -> None:
    store = open_store(Settings(state_dir=tmp_path))
    new_image(store)
    assert (tmp_path / "images").is_dir()


def test_an_address_may_hold_spaces_and_local_host(tmp_path: Path) -> None:
    for address in (f"file://{tmp_path}/my%20images", f"file://localhost{tmp_path}/my%20images"):
        assert new_image(open_store(Settings(image_store=address)))
    assert (tmp_path / "my images").is_dir()


@pytest.mark.parametrize(
    ("image_format", "data", "suffix"),
    [("vhd", VHD, ".vhd"), ("raw", RAW, ".raw"), ("bundle", VHD, ".tar.gz")],
)
def test_the_file_of_an_image_bears_its_id_and_kind(
    store: DirectoryStore, image_format: str, data: bytes, suffix: str
) -> None:
    image_id = new_image(store, None, None)
    with pytest.raises(ImageNotReady):
        store.path_of(image_id)
    push(store, image_id, Export(data), plan(image_format), Watch())  # type: ignore[arg-type] # literals by table
    assert store.path_of(image_id) == store.root / f"{image_id}{suffix}"
    assert files(store) == {f"{image_id}{suffix}", f"{image_id}.json"}
    record = json.loads((store.root / f"{image_id}.json").read_text())
    assert record["os_hash_algo"] == "sha512"
    assert record["size"] == store.path_of(image_id).stat().st_size


def test_nothing_is_left_of_a_failed_upload(store: DirectoryStore) -> None:
    image_id = new_image(store)
    with pytest.raises(OSError, match="unplugged"):
        store.upload(image_id, failing(NOISE, OSError("unplugged")))
    assert files(store) == {f"{image_id}.json"}


def test_a_deleted_image_leaves_a_tombstone_only(store: DirectoryStore) -> None:
    image_id = new_image(store)
    store.upload(image_id, pieces(NOISE))
    store.delete(image_id)
    assert files(store) == {f"{image_id}.json"}
    assert json.loads((store.root / f"{image_id}.json").read_text())["status"] == "deleted"


def _upload_for_ever(root: Path, image_id: str) -> None:
    DirectoryStore(root).upload(image_id, iter(lambda: bytes(100_000), b""))


def test_a_dead_writers_file_is_taken_over(store: DirectoryStore, caplog: pytest.LogCaptureFixture) -> None:
    image_id = new_image(store)
    writer = multiprocessing.get_context("spawn").Process(target=_upload_for_ever, args=(store.root, image_id))
    writer.start()
    part = store.root / f"{image_id}.part"
    while not part.exists() or part.stat().st_size < MIB:
        assert writer.is_alive()
        time.sleep(0.01)
    assert store.describe(image_id).state is ImageState.SAVING
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join()
    writer.close()
    assert store.describe(image_id).state is ImageState.QUEUED
    assert part.exists()
    store.upload(image_id, pieces(NOISE))
    assert "dead writer" in caplog.text
    assert read_all(store, image_id) == NOISE
    assert not part.exists()


def test_a_stopped_writer_keeps_its_image_saving_and_its_age_grows(store: DirectoryStore) -> None:
    image_id = new_image(store)
    writer = multiprocessing.get_context("spawn").Process(target=_upload_for_ever, args=(store.root, image_id))
    writer.start()
    try:
        await_state(store, image_id, ImageState.SAVING)
        assert store.describe(image_id).unchanged_s < 5
        os.kill(writer.pid or 0, signal.SIGSTOP)
        time.sleep(0.3)
        image = store.describe(image_id)
        assert image.state is ImageState.SAVING
        assert 0.1 < image.unchanged_s < 5
        with pytest.raises(ImageConflict):
            store.upload(image_id, pieces(NOISE))
    finally:
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        writer.close()


def test_data_published_by_a_crash_without_its_record_counts_for_nothing(store: DirectoryStore) -> None:
    """Killed between the rename of the data and the record: the image is queued, and the file is replaced later."""
    image_id = new_image(store)
    (store.root / f"{image_id}.raw").write_bytes(b"half a truth")
    assert store.describe(image_id).state is ImageState.QUEUED
    store.upload(image_id, pieces(NOISE))
    assert read_all(store, image_id) == NOISE
    other = new_image(store)
    (store.root / f"{other}.raw").write_bytes(b"half a truth")
    store.delete(other)
    assert files(store) == {f"{image_id}.json", f"{image_id}.raw", f"{other}.json"}


CRASH = """
import os, sys
from pathlib import Path
from worker.images import directory
from worker.images.directory import DirectoryStore

at, root, image_id = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
count = 0
def dying(name):
    real = getattr(os, name)
    def call(*args, **kwargs):
        global count
        count += 1
        if count == at:
            os.kill(os.getpid(), 9)
        return real(*args, **kwargs)
    return call
for name in ("open", "write", "fsync", "replace", "rename", "ftruncate", "close"):
    setattr(os, name, dying(name))
DirectoryStore(root).upload(image_id, iter([b"x" * 100_000, b"y" * 100_000]))
print("done", count)
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_writer_killed_at_any_system_call_leaves_a_queued_or_a_whole_image(store: DirectoryStore) -> None:
    """Every call that changes the disk, one process for each; at the end none was left to be killed at."""
    whole = b"x" * 100_000 + b"y" * 100_000
    states = []
    for at in range(1, 60):
        image_id = new_image(store)
        ended = subprocess.run(
            [sys.executable, "-c", CRASH, str(at), str(store.root), image_id], check=False, capture_output=True
        )
        state = store.describe(image_id).state
        states.append(state)
        if state is ImageState.QUEUED:
            assert store.upload(image_id, iter([whole])).size == len(whole)
        assert read_all(store, image_id) == whole
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    else:
        pytest.fail("the upload never ran through")
    assert len(states) > 8
    assert set(states) == {ImageState.QUEUED, ImageState.ACTIVE}
    assert not [name for name in files(store) if name.endswith(".part")]


def test_many_processes_upload_to_one_image_and_one_wins(store: DirectoryStore) -> None:
    image_id = new_image(store)
    code = (
        "import sys; from pathlib import Path; from worker.errors import ImageConflict\n"
        "from worker.images.directory import DirectoryStore\n"
        "try: DirectoryStore(Path(sys.argv[1])).upload(sys.argv[2], iter([sys.argv[3].encode() * 100000] * 10))\n"
        "except ImageConflict: sys.exit(3)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(store.root), image_id, letter]) for letter in "abcdef"]
    codes = [writer.wait(30) for writer in writers]
    assert sorted(codes) == [0, 3, 3, 3, 3, 3]
    winner = "abcdef"[codes.index(0)].encode()
    assert read_all(store, image_id) == winner * 1_000_000


@pytest.fixture
def small_files() -> Iterator[None]:
    """A limit on the size of files, which the kernel reports as it reports a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_fills_up_is_told_and_the_room_given_back(store: DirectoryStore) -> None:
    image_id = new_image(store)
    with pytest.raises(ImageStoreFull, match=r"has no room.*free some, then submit again"):
        store.upload(image_id, pieces(NOISE))
    assert files(store) == {f"{image_id}.json"}
    assert store.describe(image_id).state is ImageState.QUEUED


def test_an_image_larger_than_the_free_room_is_refused_before_a_byte_is_read(store: DirectoryStore) -> None:
    image_id = new_image(store)
    with pytest.raises(ImageStoreFull, match="bytes are to come"):
        store.upload(image_id, failing(b"", AssertionError("it was read")), 1 << 60)
    assert store.describe(image_id).state is ImageState.QUEUED


def test_a_directory_that_cannot_be_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        store = DirectoryStore(root)
        with pytest.raises(ImageStoreDenied, match=r"cannot be used by user \d+.*choose another one in image_store"):
            store.create(ImageMeta(name="a"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_write_permission_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ImageStoreDenied, match="correct its owner and rights"):
        DirectoryStore(tmp_path / "images").create(ImageMeta(name="a"))


def test_a_failing_disk_is_told(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int) -> None:
        raise OSError(5, os.strerror(5))

    image_id = new_image(store)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ImageStoreUnreachable, match="Input/output error"):
        store.upload(image_id, pieces(NOISE))
    monkeypatch.undo()
    assert store.describe(image_id).state is ImageState.QUEUED


def test_a_disk_that_fails_behind_the_publication_takes_no_data_from_the_image(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = new_image(store)
    record = store.root / f"{image_id}.json"
    sync = os.fsync

    def fail_once_active(file: int) -> None:
        sync(file)
        if '"active"' in record.read_text():
            raise OSError(5, os.strerror(5))

    monkeypatch.setattr(os, "fsync", fail_once_active)
    with pytest.raises(ImageStoreUnreachable):
        store.upload(image_id, pieces(NOISE))
    monkeypatch.undo()
    assert store.describe(image_id).state is ImageState.ACTIVE
    assert read_all(store, image_id) == NOISE, "the next try takes the image for a finished one"


def test_a_damaged_record_is_told(store: DirectoryStore) -> None:
    image_id = new_image(store)
    (store.root / f"{image_id}.json").write_text('{"half')
    with pytest.raises(ImageConflict, match="is damaged: restore or remove it"):
        store.describe(image_id)


def test_an_id_never_leads_out_of_the_directory(store: DirectoryStore, tmp_path: Path) -> None:
    (tmp_path / "outside.json").write_text('{"status": "active", "file": "outside"}')
    store.create(ImageMeta(name="a"))
    for image_id in ("../outside", "/etc/passwd", str(tmp_path / "outside"), f"{uuid.uuid4()}/../x"):
        with pytest.raises(ImageNotFound):
            store.describe(image_id)
        store.delete(image_id)
    assert (tmp_path / "outside.json").exists()


def test_ids_in_any_spelling_are_one_image(store: DirectoryStore) -> None:
    image_id = new_image(store)
    for spelling in (image_id.upper(), image_id.replace("-", "")):
        assert store.describe(spelling).id == image_id
        with pytest.raises(ImageConflict):
            store.create(ImageMeta(name="a", image_id=spelling))
    store.upload(image_id.upper(), pieces(NOISE))
    assert read_all(store, image_id) == NOISE
    store.delete(image_id.upper())
    with pytest.raises(ImageNotFound):
        store.describe(image_id)
