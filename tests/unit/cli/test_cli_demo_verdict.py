"""The demo's verdict can be bad: each way in which the image, the proof or the pool may be wrong is seen."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from worker.cli.demo import Digests, file_problems, leak_problems


def test_an_image_that_is_the_disk_of_that_instant_is_fine_once_the_guest_has_written_on() -> None:
    assert Digests("a", "a", "b").problems() == []


def test_an_image_that_differs_is_seen() -> None:
    assert "The image differs" in Digests("a", "b", "c").problems()[0]


def test_a_guest_that_does_not_write_proves_nothing() -> None:
    assert "proves nothing" in Digests("a", "a", "a").problems()[0]


@pytest.fixture
def image(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    path = tmp_path / "image.vhd"
    path.write_bytes(b"content")
    return path, {"sha512": hashlib.sha512(b"content").hexdigest(), "size": 7}


def test_the_file_that_was_stored_is_fine(image: tuple[Path, dict[str, Any]]) -> None:
    assert file_problems(*image) == []


@pytest.mark.parametrize("content", [b"contenT", b"content ", b""])
def test_a_file_that_is_not_what_was_stored_is_seen(image: tuple[Path, dict[str, Any]], content: bytes) -> None:
    path, result = image
    path.write_bytes(content)
    assert file_problems(path, result) == [f"{path} is not the file that the operation says it stored."]


def test_what_is_left_in_the_pool_is_seen() -> None:
    assert leak_problems({"vdis": [], "tasks": []}) == []
    assert leak_problems({"vdis": [{"uuid": "u"}], "tasks": []}) == [
        "Left behind in the pool: 1 vdis: [{'uuid': 'u'}]."
    ]
