"""An image store that is a directory: the embedded default.

    <id>.json     the record: what Glance would answer, and the name of the data file
    <id>.part     the data while somebody writes it; the writer holds an exclusive flock on it
    <id>.vhd      the data of an active image (.raw, .tar.gz, .iso, .image by its formats)
    .lock         flock held for moments, whenever a record is read and changed

An image is `saving` while a living process holds the flock of its part file. The kernel drops the lock when that
process dies, so an interrupted image is `queued` again at once and the next writer takes the file over. The data is
complete and on disk (fsync, rename) before the record says `active`. Records of deleted images stay, so that no id is
used twice.
Several processes may share the directory; several hosts as far as their file system carries flock between them.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
import uuid
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worker.errors import (
    ImageConflict,
    ImageFormatRefused,
    ImageNotFound,
    ImageNotReady,
    ImageStoreDenied,
    ImageStoreFull,
    ImageStoreUnreachable,
    TruncatedStream,
    VmopsError,
)
from worker.images import vhd
from worker.images.files import FileStream, fsync_directory, try_lock, write_all
from worker.images.image import (
    CORE_FIELDS,
    NUMBER_FIELDS,
    Image,
    ImageMeta,
    ImageState,
    Stored,
    Stream,
    checked_id,
)
from worker.images.refusals import check_content, check_record
from worker.images.tally import Tally

log = logging.getLogger(__name__)

#: Longest wait for the directory's lock, which others hold for moments; longer when a holder is stopped.
LOCK_TIMEOUT_S = 30.0
_LOCK_CHECK_S = 0.005

_SUFFIXES = {("vhd", "bare"): ".vhd", ("raw", "bare"): ".raw", ("vhd", "ovf"): ".tar.gz", ("iso", "bare"): ".iso"}
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
)


class DirectoryStore:
    """The images below one directory; made at first use."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __repr__(self) -> str:
        return f"DirectoryStore({str(self.root)!r})"

    def path_of(self, image_id: str) -> Path:
        """Return the data file of an active image. Raises ImageNotFound, ImageNotReady."""
        with self._errors():
            record = self._read(image_id)
        if record["status"] != ImageState.ACTIVE:
            raise ImageNotReady(f"Image {image_id} has no data: it is {record['status']}.")
        return self.root / str(record["file"])

    def probe(self) -> None:
        """Make the directory, and take its lock once; see `ImageStore.probe`."""
        with self._errors(), self._locked():
            pass

    def create(self, meta: ImageMeta) -> Image:
        """Make the record; see `ImageStore.create`."""
        image_id = checked_id(meta.image_id or str(uuid.uuid4()))
        now = time.time()
        record: dict[str, Any] = {
            "id": image_id,
            "name": meta.name,
            "status": ImageState.QUEUED.value,
            "visibility": meta.visibility,
            "disk_format": meta.disk_format,
            "container_format": meta.container_format,
            "min_disk": meta.min_disk,
            "min_ram": meta.min_ram,
            "size": None,
            "virtual_size": None,
            "os_hash_algo": None,
            "os_hash_value": None,
            "created_at": now,
            "updated_at": now,
            "properties": dict(meta.properties),
        }
        check_record(record)
        with self._errors(), self._locked():
            if self._record_path(image_id).exists():
                raise ImageConflict(f"The image id {image_id} is or was in use; an id is never used twice.")
            self._write(record)
        return self._image(record, ImageState.QUEUED)

    def describe(self, image_id: str) -> Image:
        """Return the image; see `ImageStore.describe`."""
        with self._errors():
            record = self._read(image_id)
            if record["status"] != ImageState.QUEUED:
                return self._image(record, ImageState(record["status"]))
            with self._locked():
                record = self._read(image_id)
                state = ImageState(record["status"])
                if state is ImageState.QUEUED and self._is_being_written(image_id):
                    state = ImageState.SAVING
                return self._image(record, state)

    def update(self, image_id: str, changes: Mapping[str, str | int]) -> Image:
        """Change properties and core fields; see `ImageStore.update`."""
        with self._errors(), self._locked():
            record = self._read(image_id)
            is_queued = record["status"] == ImageState.QUEUED
            saving = is_queued and self._is_being_written(image_id)
            for key, value in changes.items():
                if key in {"disk_format", "container_format"} and record[key] != value and (saving or not is_queued):
                    raise ImageStoreDenied(f"Image {image_id} has data, so its {key} can no longer change.")
                if key in NUMBER_FIELDS:
                    record[key] = int(value)
                elif key in CORE_FIELDS:
                    record[key] = value
                else:
                    record["properties"][key] = value
            check_record(record)
            record["updated_at"] = time.time()
            self._write(record)
            return self._image(record, ImageState.SAVING if saving else ImageState(record["status"]))

    def upload(self, image_id: str, chunks: Iterator[bytes | memoryview], size: int | None = None) -> Stored:
        """Write the data and publish it; see `ImageStore.upload`."""
        with self._errors():
            part = self._claim(image_id, size)
        try:
            stored, virtual_size = self._write_data(part, image_id, chunks, size)
            with self._errors():
                os.fsync(part)
                self._publish(image_id, stored, virtual_size)
        except BaseException:
            self._abandon(part, image_id)
            raise
        finally:
            os.close(part)
        return stored

    def open(self, image_id: str, offset: int = 0) -> Stream:
        """Return the data; see `ImageStore.open`."""
        path = self.path_of(image_id)
        with self._errors():
            try:
                return FileStream(path, offset)
            except FileNotFoundError:
                raise ImageNotFound(f"The data of image {image_id} is gone from {self.root}.") from None

    def delete(self, image_id: str) -> None:
        """Delete the data, keep the record as a tombstone; see `ImageStore.delete`."""
        with self._errors(), self._locked():
            try:
                record = self._read(image_id)
            except ImageNotFound:
                return
            # The record first: a crash in between leaves a file that nothing names, never a record without its data.
            self._write({"id": record["id"], "status": ImageState.DELETED.value, "deleted_at": time.time()})
            for path in self.root.glob(f"{record['id']}.*"):
                if path.suffix != ".json":
                    path.unlink(missing_ok=True)

    # -- the record ------------------------------------------------------------------------------------------------

    def _record_path(self, image_id: str) -> Path:
        return self.root / f"{image_id}.json"

    def _read(self, image_id: str) -> dict[str, Any]:
        missing = ImageNotFound(f"The directory {self.root} has no image {image_id}.")
        try:
            text = self._record_path(checked_id(image_id)).read_text(encoding="utf-8")
        except (FileNotFoundError, ImageFormatRefused):
            raise missing from None
        try:
            record: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise ImageConflict(
                f"The record {self._record_path(image_id)} is damaged: restore or remove it."
            ) from error
        if record["status"] == ImageState.DELETED:
            raise missing
        return record

    def _write(self, record: dict[str, Any]) -> None:
        """Replace the record at once or not at all; on disk when this returns."""
        path = self._record_path(record["id"])
        draft = path.with_suffix(".json.new")
        with draft.open("w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        fsync_directory(self.root)

    def _image(self, record: dict[str, Any], state: ImageState) -> Image:
        changed = record["updated_at"]
        if state is ImageState.SAVING:
            changed = max(changed, (self.root / f"{record['id']}.part").stat().st_mtime)
        return Image(
            id=record["id"],
            name=record["name"],
            state=state,
            size=record["size"],
            virtual_size=record["virtual_size"],
            disk_format=record["disk_format"],
            container_format=record["container_format"],
            hash_algo=record["os_hash_algo"],
            hash_value=record["os_hash_value"],
            min_disk=record["min_disk"],
            min_ram=record["min_ram"],
            visibility=record["visibility"],
            properties=record["properties"],
            store_state=state.value,
            unchanged_s=max(0.0, time.time() - changed),
        )

    # -- the data --------------------------------------------------------------------------------------------------

    def _claim(self, image_id: str, size: int | None) -> int:
        """Return the part file, empty and locked by us, of an image that accepts data."""
        with self._locked():
            record = self._read(image_id)
            if record["status"] != ImageState.QUEUED:
                raise ImageConflict(f"Image {image_id} is {record['status']}: it takes no data.")
            if record["disk_format"] is None or record["container_format"] is None:
                raise ImageFormatRefused(f"Image {image_id} needs a disk_format and a container_format before data.")
            part = os.open(self.root / f"{record['id']}.part", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                self._take_over(part, image_id, size)
            except BaseException:
                os.close(part)
                raise
            return part

    def _take_over(self, part: int, image_id: str, size: int | None) -> None:
        if not try_lock(part):
            raise ImageConflict(f"Image {image_id} is saving: somebody else is writing it.")
        if left := os.fstat(part).st_size:
            log.warning("image %s: dropping %d bytes that a dead writer left", image_id, left)
        os.ftruncate(part, 0)
        space = os.fstatvfs(part)
        if size is not None and size > space.f_bavail * space.f_frsize:
            raise self._full(f"{size} bytes are to come")

    def _write_data(
        self, part: int, image_id: str, chunks: Iterator[bytes | memoryview], size: int | None
    ) -> tuple[Stored, int | None]:
        with self._errors():
            record = self._read(image_id)
        formats = (record["disk_format"], record["container_format"])
        head = b""
        with Tally() as tally:
            for chunk in chunks:
                tally.add(chunk)
                if len(head) < vhd.SECTOR:
                    head += bytes(chunk[: vhd.SECTOR - len(head)])
                    if len(head) == vhd.SECTOR:
                        check_content(formats, head)
                if size is not None and tally.size > size:
                    raise TruncatedStream(f"Image {image_id}: more than the announced {size} bytes came.")
                with self._errors():
                    write_all(part, chunk)
            stored = tally.result()
        if stored.size == 0 or (size is not None and stored.size != size):
            raise TruncatedStream(f"Image {image_id}: {stored.size} bytes came instead of {size or 'any data'}.")
        virtual_size = check_content(formats, head)
        return stored, stored.size if formats == ("raw", "bare") else virtual_size

    def _publish(self, image_id: str, stored: Stored, virtual_size: int | None) -> None:
        """Rename the part file, then let the record say so; a crash in between leaves the image queued."""
        with self._locked():
            try:
                record = self._read(image_id)
            except ImageNotFound:
                raise ImageNotFound(f"Image {image_id} was deleted while it was uploaded.") from None
            suffix = _SUFFIXES.get((record["disk_format"], record["container_format"]), ".image")
            record |= {
                "status": ImageState.ACTIVE.value,
                "file": record["id"] + suffix,
                "size": stored.size,
                "virtual_size": virtual_size,
                "os_hash_algo": "sha512",
                "os_hash_value": stored.sha512,
                "updated_at": time.time(),
            }
            (self.root / f"{record['id']}.part").rename(self.root / record["file"])
            fsync_directory(self.root)
            self._write(record)

    def _abandon(self, part: int, image_id: str) -> None:
        """Remove the part file, whose lock we still hold; the error on its way up matters more than one here.

        Not what has been published: the error came when the record said `active` already.
        """
        try:
            with self._locked():
                if self._is_active(image_id):
                    return
                os.ftruncate(part, 0)
                (self.root / f"{checked_id(image_id)}.part").unlink(missing_ok=True)
        except (OSError, VmopsError) as error:
            log.warning("image %s: the part file stays behind: %s", image_id, error)

    def _is_active(self, image_id: str) -> bool:
        try:
            return bool(self._read(image_id)["status"] == ImageState.ACTIVE)
        except ImageNotFound:
            return False

    def _is_being_written(self, image_id: str) -> bool:
        """Tell whether a living process holds the part file. Only under `_locked`: the probe itself takes the lock."""
        try:
            part = os.open(self.root / f"{image_id}.part", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not try_lock(part)
        finally:
            os.close(part)

    # -- locks and errors ------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Hold the directory's lock, for moments only."""
        self.root.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        try:
            give_up = time.monotonic() + LOCK_TIMEOUT_S
            while not try_lock(lock):
                if time.monotonic() > give_up:
                    raise ImageStoreUnreachable(f"The image directory {self.root} stays locked by another process.")
                time.sleep(_LOCK_CHECK_S)
            yield
        finally:
            os.close(lock)

    @contextmanager
    def _errors(self) -> Generator[None]:
        """Turn the file system's refusals into ours."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise self._full(error.strerror or str(error)) from error
            if error.errno in _DENIED:
                raise ImageStoreDenied(
                    f"The image directory {self.root} cannot be used by user {os.geteuid()} ({error.strerror}): "
                    "correct its owner and rights, or choose another one in image_store."
                ) from error
            raise ImageStoreUnreachable(
                f"The image directory {self.root} failed: {error.strerror or error}."
            ) from error

    def _full(self, why: str) -> VmopsError:
        return ImageStoreFull(f"The image directory {self.root} has no room ({why}): free some, then submit again.")
