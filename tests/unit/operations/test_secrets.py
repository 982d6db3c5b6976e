"""Sealed boxes."""

from __future__ import annotations

from pathlib import Path

import pytest
from nacl.public import PrivateKey

from worker.errors import PermanentError, RequestError
from worker.operations.secrets import derive, make_private_key, read_private_key, seal, unseal


@pytest.fixture
def key(tmp_path: Path) -> PrivateKey:
    """A private key, read from its file."""
    path = tmp_path / "key"
    path.write_text(make_private_key() + "\n")
    return read_private_key(path)


def public(key: PrivateKey) -> str:
    return key.public_key.encode().hex()


@pytest.mark.parametrize("text", ["hunter2", "", "größer als ASCII ☃"])
def test_what_is_sealed_can_be_opened_with_the_private_key(key: PrivateKey, text: str) -> None:
    sealed = seal(public(key), text)
    assert unseal(key, sealed) == text
    assert sealed != seal(public(key), text), "two boxes with the same content look different"


def test_another_key_does_not_open_it(key: PrivateKey) -> None:
    with pytest.raises(PermanentError, match="it was sealed for another key"):
        unseal(PrivateKey.generate(), seal(public(key), "hunter2"))


@pytest.mark.parametrize("sealed", ["", "no base64!", "c2hvcnQ="])
def test_what_is_no_box_is_a_clear_error(key: PrivateKey, sealed: str) -> None:
    with pytest.raises(PermanentError, match="cannot be opened"):
        unseal(key, sealed)


@pytest.mark.parametrize("bad", ["", "zz", "00" * 31])
def test_a_bad_public_key_is_a_clear_error(bad: str) -> None:
    with pytest.raises(RequestError, match="not 64 hex digits"):
        seal(bad, "hunter2")


@pytest.mark.parametrize("content", ["", "zz" * 32, "00" * 31])
def test_a_bad_key_file_is_named_and_not_shown(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path} must hold 64 hex digits") as refusal:
        read_private_key(path)
    assert not content or content not in str(refusal.value)


def test_whoever_has_the_key_derives_the_same_secret_and_nobody_else(key: PrivateKey) -> None:
    mine = derive(key, "an operation's purpose")
    assert derive(key, "an operation's purpose") == mine
    assert derive(key, "another purpose") != mine
    assert derive(PrivateKey.generate(), "an operation's purpose") != mine
    assert key.encode() not in mine
