"""Pushes into a real Glance, also into one that dies (`make test-glance`)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import pytest

from tests.integration.images_contract import await_state, new_image, read_all
from tests.integration.images_support import DISK, PATCHED, RAW, VHD, Export, Watch, plan
from tests.support.real_glance import RealGlance, find_venv, running
from worker.errors import ImageNotReady, ImageStoreUnreachable, ImageWedged, TruncatedStream
from worker.images.glance import GlanceStore
from worker.images.push import VIRTUAL_SIZE, push
from worker.images.store import ImageState, ImageStore

pytestmark = [pytest.mark.glance, pytest.mark.timeout(120)]


@pytest.fixture
def store(real_glance: RealGlance) -> ImageStore:
    return GlanceStore(real_glance.url)


@pytest.mark.parametrize("image_format", ["vhd", "raw", "bundle"])
def test_every_format_arrives_and_is_found_again(
    store: ImageStore, image_format: Literal["vhd", "raw", "bundle"]
) -> None:
    image_id = new_image(store, None, None)
    pushed = push(store, image_id, Export(RAW if image_format == "raw" else VHD), plan(image_format), Watch())
    image = store.describe(image_id)
    assert image.state is ImageState.ACTIVE
    assert (image.size, image.hash_value) == (pushed.size, pushed.sha512)
    assert pushed.virtual_size == DISK
    assert image.properties.get(VIRTUAL_SIZE) == (None if image_format == "raw" else str(DISK))
    if image_format != "bundle":
        assert image.virtual_size == DISK
        assert read_all(store, image_id) == (RAW if image_format == "raw" else PATCHED)
    assert push(store, image_id, Export(b""), plan(image_format), Watch()) == pushed


@pytest.mark.parametrize("left", [0, 100, 5000, -512, -1])
@pytest.mark.parametrize("image_format", ["vhd", "bundle"])
def test_an_export_that_breaks_off_never_becomes_an_image(
    store: ImageStore, left: int, image_format: Literal["vhd", "bundle"]
) -> None:
    image_id = new_image(store, None, None)
    with pytest.raises(TruncatedStream):
        push(store, image_id, Export(VHD[:left]), plan(image_format), Watch())
    await_state(store, image_id, ImageState.QUEUED)
    assert push(store, image_id, Export(), plan(image_format), Watch()).virtual_size == DISK


class Deadly(Export):
    """An export in whose middle Glance is killed."""

    def __init__(self, glance: RealGlance, store: ImageStore, image_id: str) -> None:
        super().__init__(RAW, most=1 << 20)
        self._glance, self._store, self._image_id = glance, store, image_id

    def readinto(self, buffer: memoryview, /) -> int:
        if self.reads == 4:
            await_state(self._store, self._image_id, ImageState.SAVING)
            self._glance.kill()
        return super().readinto(buffer)


def test_a_glance_that_dies_leaves_an_image_that_is_called_wedged(tmp_path: Path) -> None:
    venv = find_venv()
    if venv is None:
        pytest.skip("no Glance")
    with running(venv, tmp_path) as glance:
        store = GlanceStore(glance.url)
        image_id = new_image(store, None, None)
        with pytest.raises(ImageStoreUnreachable):
            push(store, image_id, Deadly(glance, store, image_id), plan("raw"), Watch())
        glance.start()
        assert store.describe(image_id).state is ImageState.SAVING
        with pytest.raises(ImageNotReady):
            push(store, image_id, Export(RAW), plan("raw"), Watch())
        time.sleep(1)
        with pytest.raises(ImageWedged):
            push(store, image_id, Export(RAW), plan("raw", wedged_after_s=1), Watch())
        store.delete(image_id)
        other = new_image(store, None, None)
        assert push(store, other, Export(RAW), plan("raw"), Watch()).size == DISK
