"""What may be sent to an agent, and what its answers mean."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import AgentError, RequestError, TooLarge
from worker.guest import agent
from worker.guest.agent import Answer, Question
from worker.guest.dh import SimpleDH


def sent(question: Question) -> dict[str, object]:
    """Return what stands in the node."""
    payload = question.payload()
    assert payload.isascii()
    said: dict[str, object] = json.loads(payload)
    return said


# -- questions


def test_the_questions_are_those_of_the_field() -> None:
    assert sent(agent.version()) == {"name": "version", "value": "agent"}
    assert sent(agent.features()) == {"name": "features", "value": ""}
    assert sent(agent.reset_network()) == {"name": "resetnetwork", "value": ""}
    assert sent(agent.update("http://a/b", "AB" * 16)) == {"name": "agentupdate", "value": f"http://a/b,{'ab' * 16}"}


def test_a_public_key_goes_as_text_and_success_is_d0() -> None:
    question = agent.key_init(SimpleDH(7))
    assert sent(question) == {"name": "keyinit", "value": str(5**7)}
    assert question.success == {"D0"}


def test_a_password_is_encrypted_with_its_line_feed() -> None:
    ours, theirs = SimpleDH(), SimpleDH()
    ours.compute_shared(theirs.get_public())
    theirs.compute_shared(ours.get_public())
    question = agent.password(ours, "größer")
    assert theirs.decrypt(str(question.value)) == "größer\n"
    assert "größer" not in repr(question)
    assert question.is_secret


def test_a_file_goes_in_the_form_that_the_agent_offers() -> None:
    old = sent(agent.inject_file("/etc/motd", b"Hi, you\n", {"injectfile", "version"}))
    assert old == {"name": "injectfile", "value": base64.b64encode(b"/etc/motd,Hi, you\n").decode()}
    assert sent(agent.inject_file("/etc/motd", b"Hi, you\n", None)) == old
    new = sent(agent.inject_file("/a,b", b"\xff", {"injectfile", "file_inject"}))
    assert new["name"] == "file_inject"
    assert new["value"] == {"b64_path": "L2EsYg==", "b64_file": "/w=="}


@pytest.mark.parametrize(("path", "contents"), [("/a,b", b"x"), ("/a", b"\xff\xfe")], ids=["comma", "no UTF-8"])
def test_what_old_agents_die_of_is_not_sent(path: str, contents: bytes) -> None:
    with pytest.raises(RequestError, match="The guest's agent cannot write"):
        agent.inject_file(path, contents, {"injectfile"})


def test_a_file_fits_to_the_byte() -> None:
    longest = 2994 - len("/f,")
    assert len(agent.inject_file("/f", b"x" * longest, None).payload()) <= agent.REQUEST_BYTES == 4029
    with pytest.raises(TooLarge, match=r"its messages have 4029: .* config drive"):
        agent.inject_file("/f", b"x" * (longest + 1), None).payload()
    with pytest.raises(ValueError, match="config drive"):
        agent.check_file_size("/f", b"x" * (longest + 1))


# -- checks


@pytest.mark.parametrize("url", ["", "file:///x", "http://a b", "http://a,b", "http://ä", "http://", "http://a\n"])
def test_a_url_that_agents_would_misread_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url must begin with"):
        agent.check_url(url)


@pytest.mark.parametrize("md5sum", ["", "0" * 31, "g" * 32, "0" * 33])
def test_a_digest_is_32_hex_digits(md5sum: str) -> None:
    with pytest.raises(ValueError, match="32 hex digits"):
        agent.check_md5(md5sum)


@pytest.mark.parametrize("path", ["", "etc/motd", "/etc/mo\ntd", "/a\0", "C:motd"])
def test_a_path_is_absolute_and_of_one_line(path: str) -> None:
    with pytest.raises(ValueError, match="is absolute"):
        agent.check_file_path(path)


@pytest.mark.parametrize("path", ["/etc/motd", "C:\\motd.txt", "c:/motd", "/ä b"])
def test_paths_of_both_worlds_are_taken(path: str) -> None:
    assert agent.check_file_path(path) == path


@pytest.mark.parametrize("password", ["", "a\nb", "a\rb", "a\0b", "\x7f"])
def test_a_password_without_an_end_of_line_is_asked_for_and_not_shown(password: str) -> None:
    with pytest.raises(RequestError) as refusal:
        agent.check_password(password, is_windows=False)
    with pytest.raises(RequestError):
        agent.check_password(password, is_windows=True)
    assert not password or password not in str(refusal.value)


@pytest.mark.parametrize(
    "password", ["pass word", "größe", 'a"b', "a'b", "a&b", "a|b", "a<b", "a^b", "50%", "/delete", "*"]
)
def test_what_a_windows_command_line_would_misread_is_refused_there_only(password: str) -> None:
    agent.check_password(password, is_windows=False)
    with pytest.raises(RequestError, match="A guest with Windows") as refusal:
        agent.check_password(password, is_windows=True)
    assert password not in str(refusal.value).replace("/ or *", "")


def test_letters_digits_and_signs_are_fit_for_windows() -> None:
    agent.check_password("aZ09!#$()+,-.:;=?@[]_{}~", is_windows=True)


# -- answers


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"returncode": "0", "message": "1.39"}', Answer("0", "1.39")),
        ('{"returncode": 500, "message": "bad"}', Answer("500", "bad")),
        ('{"returncode": "0", "message": "1.39\\r\\n"}', Answer("0", "1.39")),
        ('{"returncode": "0", "message": "1.39\\\\r\\\\n"}', Answer("0", "1.39")),
        ('{"returncode": "0", "message": null}', Answer("0", "")),
        ('{"returncode": "D0"}', Answer("D0", "")),
    ],
)
def test_answers_come_in_several_spellings(text: str, answer: Answer) -> None:
    assert agent.read(text) == answer


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", "3", "{}", '{"returncode": null}', '{"returncode": {}}', "[" * 9999]
)
def test_what_is_no_answer_is_an_error_and_not_a_crash(text: str) -> None:
    with pytest.raises(AgentError, match="something that is no answer"):
        agent.read(text)


@settings(max_examples=30)
@given(st.text())
def test_whatever_a_guest_writes_can_be_read_or_is_refused(text: str) -> None:
    try:
        agent.read(text)
    except AgentError:
        return


@pytest.mark.parametrize(
    "text",
    ["", "0", "1", "-5", "2.5", "0x10", "٣٤", str(SimpleDH.prime), str(SimpleDH.prime - 1), "9" * 34, "1" * 5000],
)
def test_a_key_that_gives_the_secret_away_is_refused(text: str) -> None:
    with pytest.raises(AgentError, match="no key"):
        agent.read_public(Answer("D0", text))


def test_a_key_is_a_number_between() -> None:
    assert agent.read_public(Answer("D0", "2")) == 2
    assert agent.read_public(Answer("D0", str(SimpleDH.prime - 2))) == SimpleDH.prime - 2


def test_features_are_names_between_commas() -> None:
    assert agent.read_features(Answer("0", "version, injectfile,,keyinit")) == frozenset(
        {"version", "injectfile", "keyinit"}
    )
    assert agent.read_features(Answer("0", "")) == frozenset()
    assert agent.read_features(Answer("404", "unknown")) is None


def test_what_a_guest_says_cannot_disturb_a_terminal() -> None:
    assert agent.shown(Answer("1", "\x1b[2J" + "x" * 999)) == "1: [2J" + "x" * 196
