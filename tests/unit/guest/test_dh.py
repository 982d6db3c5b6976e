"""SimpleDH: its six members as documented, and the wire that agents in the field understand (dom0-and-guest.md 6.5)."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.guest.dh import SimpleDH

X, Y = 123456789012345678901234567890, 987654321098765432109876543210
PUBLIC_X, PUBLIC_Y = 87026283966945425842820102345650, 62926949355534456960433115680151
SECRET = 15662844816734432090894226621930
VECTORS = [
    ("", "zg9B7JUUilStvF772txkWA=="),
    ("secret\n", "xOIjRoClXD7TutSw0+dPdw=="),
    ("0123456789abcdef", "ySwo1K+vgymHvWqEwXQcUXgUAfmOiyth1rFXPLRBoLQ="),
    ("pässwörd\n", "tP5zRYEEU5QO8yIFFjfOIA=="),
    ("a" * 31 + "\n", "CZ09W9P/q4w94DrZt/CtIPeljROoHUT43IOd1kN6/WaxZAS/z3FR8zx+KAC886mZ"),
]
OPENSSL = shutil.which("openssl")


def pair() -> tuple[SimpleDH, SimpleDH]:
    """Both sides of an exchange that has taken place."""
    ours, theirs = SimpleDH(), SimpleDH()
    ours.compute_shared(theirs.get_public())
    theirs.compute_shared(ours.get_public())
    return ours, theirs


def known() -> SimpleDH:
    """One side that has the secret of the vectors."""
    side = SimpleDH(X)
    side.compute_shared(PUBLIC_Y)
    return side


@pytest.mark.parametrize(
    ("private", "public"),
    [(X, PUBLIC_X), (Y, PUBLIC_Y), (1234567890, 20880636440239517297902235803311)],
)
def test_the_public_key_is_the_base_to_the_power_of_the_private_one(private: int, public: int) -> None:
    assert SimpleDH(private).get_public() == public


def test_both_sides_compute_the_same_secret() -> None:
    assert SimpleDH(X).compute_shared(PUBLIC_Y) == SimpleDH(Y).compute_shared(PUBLIC_X) == SECRET
    ours, theirs = SimpleDH(), SimpleDH()
    assert ours.compute_shared(theirs.get_public()) == theirs.compute_shared(ours.get_public())


def test_each_object_draws_a_private_key_of_its_own() -> None:
    assert SimpleDH().get_public() != SimpleDH().get_public()


def test_a_private_key_that_is_drawn_anew_is_returned_and_used() -> None:
    side = SimpleDH()
    private = side.generate_private()
    assert 0 < private < 1 << 80
    assert side.get_public() == pow(5, private, SimpleDH.prime)


@given(st.integers(0, 1 << 120), st.integers(0, 1 << 120), st.integers(2, 1 << 107))
def test_mod_exp_is_a_power_modulo(num: int, exp: int, mod: int) -> None:
    assert SimpleDH.mod_exp(num, exp, mod) == pow(num, exp, mod)


def test_the_power_of_zero_is_one() -> None:
    assert SimpleDH.mod_exp(5, 0, 1) == 1


@pytest.mark.parametrize(("text", "cipher"), VECTORS, ids=[repr(text)[:20] for text, _ in VECTORS])
def test_the_cipher_is_the_one_that_agents_read(text: str, cipher: str) -> None:
    assert known().encrypt(text) == cipher
    assert known().decrypt(cipher) == text


def test_the_old_drivers_vector_holds() -> None:
    side = SimpleDH(1234567890)
    assert side.compute_shared(54826962390526707868642406807865) == 19322288998518999312437843344049
    assert side.encrypt("pa55-word\n") == "wmztMbJoDBosvx0NUUE2OQ=="


@pytest.mark.parametrize(
    "text", ["", "hello", "\n\nleading", "inner\n\nline", "trailing\n\n\n", "ä☃𝄞", 'q"u\\o$te', "long" * 50_000]
)
def test_what_one_side_encrypts_the_other_reads(text: str) -> None:
    ours, theirs = pair()
    cipher = ours.encrypt(text)
    assert cipher.isascii()
    assert "\n" not in cipher
    assert theirs.decrypt(cipher) == text


@pytest.mark.skipif(OPENSSL is None, reason="there is no openssl program here")
@pytest.mark.parametrize("text", [text for text, _ in VECTORS])
def test_the_openssl_program_reads_and_writes_the_same(text: str) -> None:
    assert OPENSSL is not None
    options = [OPENSSL, "enc", "-aes-128-cbc", "-A", "-a", "-nosalt", "-md", "md5", "-pass", f"pass:{SECRET}"]
    written = subprocess.run(options, input=text.encode(), capture_output=True, check=True).stdout
    assert known().decrypt(written.decode()) == text
    read = subprocess.run([*options, "-d"], input=known().encrypt(text).encode(), capture_output=True, check=True)
    assert read.stdout.decode() == text


@pytest.mark.parametrize("text", ["vnU2IX7DiMIX6sr7at9+FQ==", "AAAA", "%%%", "nt1vqDs0rV8q32k6b0bUPA=="])
def test_what_was_made_with_another_key_is_an_error(text: str) -> None:
    with pytest.raises(RuntimeError, match="was not encrypted with the common secret"):
        known().decrypt(text)


def test_without_a_secret_nothing_is_encrypted() -> None:
    with pytest.raises(RuntimeError, match="compute_shared comes first"):
        SimpleDH().encrypt("secret")
