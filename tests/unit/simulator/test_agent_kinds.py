"""The agents of the field, each request by itself: what they answer, what they do, what kills them."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from simulator.agent import habits as agent_habits
from simulator.agent.agent import Agent, Died
from simulator.agent.exchange import BASE, PRIME, Exchange
from simulator.agent.habits import Accident
from simulator.agent.nova import NovaAgent
from simulator.agent.unix import UnixAgent
from simulator.agent.windows import WindowsAgent
from tests.support.agent_peer import encrypted
from tests.unit.simulator.agent_support import X, Y, ask, exchanged, file_of, made

SHARED = 15662844816734432090894226621930
KINDS: list[type[Agent]] = [NovaAgent, UnixAgent, WindowsAgent]


# -- keys and cipher: the vectors of dom0-and-guest.md 6.5


def test_the_key_exchange_gives_the_known_numbers() -> None:
    assert Exchange(pow(BASE, X, PRIME), Y).public == 62926949355534456960433115680151
    assert Exchange(pow(BASE, Y, PRIME), X).public == 87026283966945425842820102345650


@pytest.mark.parametrize(
    ("text", "cipher"),
    [
        ("", "zg9B7JUUilStvF772txkWA=="),
        ("secret\n", "xOIjRoClXD7TutSw0+dPdw=="),
        ("0123456789abcdef", "ySwo1K+vgymHvWqEwXQcUXgUAfmOiyth1rFXPLRBoLQ="),
        ("pässwörd\n", "tP5zRYEEU5QO8yIFFjfOIA=="),
        ("a" * 31 + "\n", "CZ09W9P/q4w94DrZt/CtIPeljROoHUT43IOd1kN6/WaxZAS/z3FR8zx+KAC886mZ"),
    ],
)
def test_known_texts_are_decrypted(text: str, cipher: str) -> None:
    padded = Exchange(pow(BASE, X, PRIME), Y).decrypt(base64.b64decode(cipher))
    assert padded[: -padded[-1]].decode() == text
    assert encrypted(SHARED, text.encode()) == cipher


@pytest.mark.parametrize("kind", KINDS)
def test_two_exchanges_have_different_keys(kind: type[Agent]) -> None:
    agent = made(kind)
    assert exchanged(agent) != exchanged(agent)
    assert agent.inside.key_exchanges == 2


# -- envelopes


def test_a_number_is_only_in_nova_agents_password_errors() -> None:
    """Every other code of every agent is a text."""
    for kind in KINDS:
        agent = made(kind)
        codes = [ask(agent, name)[0] for name in ("version", "features", "nonsense", "resetnetwork")]
        assert all(isinstance(code, str) for code in codes)
    assert ask(made(NovaAgent), "password", "AAAA")[0] == 500
    assert ask(made(UnixAgent), "password", "AAAA")[0] == "500"
    assert ask(made(WindowsAgent), "password", "AAAA")[0] == "1"


@pytest.mark.parametrize(("kind", "code"), [(NovaAgent, "0"), (UnixAgent, "404"), (WindowsAgent, "1")])
def test_an_unknown_name_is_met_as_the_field_does(kind: type[Agent], code: str) -> None:
    assert ask(made(kind), "no-such-command")[0] == code


MALFORMED = [
    "",
    "{",
    "[]",
    '"version"',
    '{"name": "version"}',
    '{"value": ""}',
    '{"name": 5, "value": ""}',
    '{"a": "q"q"}',
    '{"name": "version", "value": "\udcff"}',
]


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_request_kills_nova_agent_only(text: str) -> None:
    with pytest.raises(Died):
        made(NovaAgent).handle(text)
    reply = made(UnixAgent).handle(text)
    assert reply is not None
    assert reply.returncode == "500"
    assert made(WindowsAgent).handle(text) is None


def test_messages_of_windows_end_with_four_characters() -> None:
    agent = made(WindowsAgent)
    assert ask(agent, "version", "agent") == ("0", "1.3.1.0\\r\\n")
    assert ask(agent, "keyinit", "5")[1].endswith("\\r\\n")
    assert ask(agent, "ready") == ("0", "")


def test_each_kind_says_its_version() -> None:
    assert ask(made(NovaAgent), "version", "agent") == ("0", "2.1.22")
    assert ask(made(NovaAgent, agent_version="2.1.9"), "version", "agent") == ("0", "2.1.9")
    windows = made(WindowsAgent)
    assert len({ask(windows, "version", part)[1] for part in ("agent", "xentools", "updater")}) == 3


def test_each_kind_says_its_features() -> None:
    nova = "kmsactivate,resetnetwork,version,keyinit,features,password,injectfile"
    assert ask(made(NovaAgent), "features") == ("0", nova)
    assert "agentupdate" in ask(made(UnixAgent), "features")[1].split(",")
    windows = ask(made(WindowsAgent), "features")[1].removesuffix("\\r\\n").split(",")
    assert "features" not in windows
    assert {"sethostname", "unrescue", "updaterupdate"} <= set(windows)


@pytest.mark.parametrize(("kind", "code"), [(NovaAgent, "0"), (UnixAgent, "404"), (WindowsAgent, "1")])
def test_an_older_agent_neither_knows_nor_names_what_it_lacks(kind: type[Agent], code: str) -> None:
    agent = made(kind, agent_lacks=["injectfile"])
    assert "injectfile" not in ask(agent, "features")[1]
    assert ask(agent, "injectfile", file_of(b"/x", b"y"))[0] == code
    assert agent.inside.files == {}
    assert ask(made(kind, agent_lacks=["features"]), "features")[0] == code


# -- passwords


@pytest.mark.parametrize(("kind", "user"), [(NovaAgent, "root"), (UnixAgent, "root"), (WindowsAgent, "Administrator")])
def test_a_password_is_set(kind: type[Agent], user: str) -> None:
    agent = made(kind)
    assert ask(agent, "password", encrypted(exchanged(agent), b"s3cr-et.\n")) == ("0", "")
    assert agent.inside.passwords == {user: "s3cr-et."}


def test_nova_agent_takes_any_text_in_a_password() -> None:
    agent = made(NovaAgent)
    text = "pä ss\"'\\$wörd"
    assert ask(agent, "password", encrypted(exchanged(agent), f"{text}\n".encode()))[0] == "0"
    assert agent.inside.passwords == {"root": text}


@pytest.mark.parametrize("kind", [NovaAgent, WindowsAgent])
def test_a_key_serves_one_password(kind: type[Agent]) -> None:
    agent = made(kind)
    text = encrypted(exchanged(agent), b"one\n")
    assert ask(agent, "password", text)[0] == "0"
    assert str(ask(agent, "password", text)[0]) in ("500", "1")


def test_nova_agent_keeps_the_key_after_a_failure() -> None:
    agent = made(NovaAgent)
    shared = exchanged(agent)
    assert ask(agent, "password", base64.b64encode(b"odd").decode())[0] == 500
    assert ask(agent, "password", encrypted(shared, b"one\n"))[0] == "0"


def test_what_another_key_derivation_does_to_nova_agent() -> None:
    """By what the last byte happens to be: mostly 500, sometimes death, seldom an empty password."""
    agent = made(NovaAgent)
    shared = exchanged(agent)
    assert ask(agent, "password", encrypted(shared, b"x" * 15 + b"\x11", padded=False)) == (
        500,
        "Invalid password data received",
    )
    with pytest.raises(Died):
        ask(agent, "password", encrypted(shared, b"\xff" * 15 + b"\x01", padded=False))
    assert ask(agent, "password", encrypted(shared, b"x" * 15 + b"\x00", padded=False))[0] == "0"
    assert agent.inside.passwords == {"root": ""}


def test_a_password_without_line_break_gets_its_padding_on_windows() -> None:
    """Padding of ten bytes would be line breaks, and end the password by luck."""
    agent = made(WindowsAgent)
    assert ask(agent, "password", encrypted(exchanged(agent), b"secrets"))[0] == "1"  # nine tabulators behind it
    assert ask(agent, "password", encrypted(exchanged(agent), b"secret"))[0] == "0"
    assert ask(agent, "password", encrypted(exchanged(agent), b"a-secure"))[0] == "0"
    assert agent.inside.passwords == {"Administrator": "a-secure" + "\x08" * 8}


@pytest.mark.parametrize("text", ["two words", 'quo"te', "a&b", "100%"])
def test_windows_cannot_set_a_password_that_is_no_word(text: str) -> None:
    agent = made(WindowsAgent)
    assert ask(agent, "password", encrypted(exchanged(agent), f"{text}\n".encode()))[0] == "1"
    assert agent.inside.passwords == {}


def test_windows_sets_something_else_for_a_password_that_is_not_ascii() -> None:
    agent = made(WindowsAgent)
    assert ask(agent, "password", encrypted(exchanged(agent), "wört\n".encode()))[0] == "0"
    assert agent.inside.passwords == {"Administrator": "w??rt"}


# -- keyinit


@pytest.mark.parametrize("value", ["", "abc", "0x5", None, {"pub": "5"}])
def test_what_is_no_number_kills_nova_agent(value: Any) -> None:
    with pytest.raises(Died):
        ask(made(NovaAgent), "keyinit", value)
    assert ask(made(UnixAgent), "keyinit", value)[0] == "500"


def test_a_json_number_kills_the_windows_agent() -> None:
    with pytest.raises(Died):
        ask(made(WindowsAgent), "keyinit", 5)
    assert ask(made(NovaAgent), "keyinit", 5)[0] == "D0"


# -- files


@pytest.mark.parametrize(("kind", "mode"), [(NovaAgent, "0600"), (UnixAgent, "0644"), (WindowsAgent, "")])
def test_a_file_is_written_and_an_old_one_kept(kind: type[Agent], mode: str) -> None:
    agent = made(kind)
    assert ask(agent, "injectfile", file_of(b"/etc/motd", b"a,b\n")) == ("0", "")
    assert agent.inside.files == {"/etc/motd": {"content": "a,b\n", "mode": mode, "backups": []}}
    assert ask(agent, "injectfile", file_of(b"/etc/motd", b"c")) == ("0", "")
    assert agent.inside.files == {"/etc/motd": {"content": "c", "mode": mode, "backups": ["a,b\n"]}}


@pytest.mark.parametrize("value", [base64.b64encode(b"no comma").decode(), file_of(b"/x", b"\xff")])
def test_what_is_no_text_file_kills_nova_agent(value: str) -> None:
    with pytest.raises(Died):
        ask(made(NovaAgent), "injectfile", value)


@pytest.mark.parametrize(("kind", "code"), [(NovaAgent, "500"), (UnixAgent, "500"), (WindowsAgent, "1")])
def test_a_file_that_is_no_base64_is_refused(kind: type[Agent], code: str) -> None:
    assert ask(made(kind), "injectfile", "a")[0] == code
    assert ask(made(kind), "injectfile", {"b64_path": "", "b64_file": ""})[0] == code


# -- updates


@pytest.mark.parametrize("kind", [UnixAgent, WindowsAgent])
def test_an_update_changes_the_version_and_forgets_the_key(kind: type[Agent]) -> None:
    agent = made(kind)
    exchanged(agent)
    assert ask(agent, "agentupdate", "http://x/agent-9.1.2.zip,0123abcd") == ("0", "")
    assert ask(agent, "version", "agent")[1].startswith("9.1.2")
    assert agent.inside.updates == [{"url": "http://x/agent-9.1.2.zip", "md5": "0123abcd"}]
    assert agent.exchange is None
    assert ask(agent, "agentupdate", "no md5")[0] in ("500", "1")


def test_only_the_unix_agent_takes_an_update_as_an_object() -> None:
    agent = made(UnixAgent)
    assert ask(agent, "agentupdate", {"url": "http://x/a", "md5sum": "01"}) == ("0", "")
    assert agent.inside.updates == [{"url": "http://x/a", "md5": "01"}]


def test_nova_agent_calls_an_update_a_success_and_does_nothing() -> None:
    agent = made(NovaAgent)
    assert ask(agent, "agentupdate", "http://x/agent-9.1.2.zip,01") == ("0", "")
    assert ask(agent, "kmsactivate", {"activation_key": "k", "profile": "p", "domains": []}) == ("0", "")
    assert (agent.inside.updates, agent.inside.activations) == ([], [])


# -- habits


@pytest.mark.parametrize(
    "wish",
    [
        {"guest_agent": "linux"},
        {"agent_system": "plan9"},
        {"agent_poll_s": -1},
        {"agent_work_s": "1"},
        {"agent_lacks": "features"},
        {"agent_accidents": {"effect": "die"}},
        {"agent_accidents": [{"command": "version"}]},
        {"agent_accidents": [{"effect": "explode"}]},
        {"agent_accidents": [{"effect": "die", "when": "never"}]},
        {"agent_accidents": [{"effect": "die", "why": "so"}]},
    ],
)
def test_a_wish_that_cannot_be_fulfilled_is_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wish)) + "|effect|when"):
        agent_habits.check(wish)


def test_an_accident_acts_on_some_of_the_requests_it_matches() -> None:
    second = Accident("die", command="key*", nth=2, count=1)
    assert second.matches("keyinit")
    assert not second.matches("password")
    assert [second.acts_on(number) for number in (1, 2, 3)] == [False, True, False]
    assert Accident("die", nth=3).acts_on(10)
