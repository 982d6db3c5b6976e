"""What all agents of the field have in common; how they differ is in their modules (dom0-and-guest.md 6.1, 6.2)."""

from __future__ import annotations

import base64
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from simulator.agent.exchange import BLOCK, Exchange
from simulator.agent.habits import AgentHabits
from simulator.agent.inside import Inside

#: In the name of a package: the version of the agent that it brings.
_VERSION = re.compile(r"\d+(?:\.\d+){2,3}")
NETWORKING = "vm-data/networking"


class Died(Exception):
    """The agent's process ends, as it stands; the text says of what."""


class Refused(Exception):
    """A command fails; the text is the answer's message."""


class WrongPassword(Refused):
    """A password could not be read or set."""


class Reply(NamedTuple):
    """What a command answers."""

    returncode: str | int
    message: str = ""

    def text(self) -> str:
        """Return the value of the answer's node."""
        return json.dumps({"returncode": self.returncode, "message": self.message})


DONE = Reply("0")


class Guest(Protocol):
    """What an agent sees of the guest that it runs in."""

    def read(self, path: str) -> str | None:
        """Return a value of the guest's own XenStore tree."""

    def names(self, path: str) -> list[str]:
        """Return the names below a node there."""

    def interfaces(self) -> list[str]:
        """Return the interfaces' MACs: upper case, no colons."""


class Agent(ABC):
    """One process of an agent. Without a password's key at first."""

    version: ClassVar[str]
    features: ClassVar[Sequence[str]]
    """What it says that it can do."""
    answers_first: ClassVar[bool] = False
    """Whether it writes the answer before it removes the request."""
    takes_one: ClassVar[bool] = False
    """Whether it looks at one request each time, not at all there are."""
    failure: ClassVar[str] = "500"
    key_failure: ClassVar[str | int] = "500"
    """What it answers when a password cannot be read or set."""
    user: ClassVar[str] = "root"
    private_bits: ClassVar[int] = 128

    def __init__(self, habits: AgentHabits, guest: Guest, inside: Inside) -> None:
        self.habits = habits
        self.guest = guest
        self.inside = inside
        self.exchange: Exchange | None = None
        self._commands: dict[str, Callable[[Any], Reply]] = {
            "version": self.tell_version,
            "features": self.tell_features,
            "keyinit": self.exchange_keys,
            "password": self.set_password,
            "resetnetwork": self.reset_network,
            "injectfile": self.inject_file,
            **self.more_commands(),
        }

    # -- a request

    def handle(self, text: str) -> Reply | None:
        """Carry out a request; None: it stays where it is. Raises Died."""
        try:
            name, value = parsed(text)
        except ValueError as error:
            return self.on_malformed(str(error))
        command = self._commands.get(name)
        if command is None or name in self.habits.agent_lacks:
            return self.on_unknown(name)
        try:
            return command(value)
        except WrongPassword as wrong:
            return Reply(self.key_failure, str(wrong))
        except Refused as refused:
            return Reply(self.failure, str(refused))

    def reason_to_leave(self) -> str:
        """Return why the agent does not stay when it starts; nothing: it stays."""
        return ""

    def more_commands(self) -> dict[str, Callable[[Any], Reply]]:
        """Return the commands that not every agent has."""
        return {}

    @abstractmethod
    def on_malformed(self, why: str) -> Reply | None:
        """Meet a request that is no JSON object with a name and a value."""

    @abstractmethod
    def on_unknown(self, name: str) -> Reply:
        """Meet a command that the agent does not have."""

    @abstractmethod
    def on_vanished(self) -> None:
        """Meet a request that was removed after it was listed."""

    # -- commands that all have

    def tell_version(self, value: Any) -> Reply:
        """Answer the agent's version."""
        del value
        return Reply("0", self.inside.version or self.habits.agent_version or self.version)

    def tell_features(self, value: Any) -> Reply:
        """Answer the names of commands."""
        del value
        return Reply("0", ",".join(one for one in self.features if one not in self.habits.agent_lacks))

    @abstractmethod
    def exchange_keys(self, value: Any) -> Reply:
        """Answer a public number; keep the key."""

    @abstractmethod
    def set_password(self, value: Any) -> Reply:
        """Set the administrator's password."""

    @abstractmethod
    def inject_file(self, value: Any) -> Reply:
        """Write a file."""

    @abstractmethod
    def reset_network(self, value: Any) -> Reply:
        """Set the name of the guest, configure its interfaces."""

    # -- parts of them

    def answer_keys(self, theirs: int) -> Reply:
        """Make a key pair and answer its public number."""
        self.exchange = Exchange.fresh(theirs, self.private_bits)
        self.inside.key_exchanges += 1
        return Reply("D0", str(self.exchange.public))

    def decrypted(self, value: Any) -> bytes:
        """Return the password's text with its padding. Raises WrongPassword."""
        try:
            data = base64.b64decode(value)
        except (ValueError, TypeError):
            raise WrongPassword("the password is not base64") from None
        if self.exchange is None:
            raise WrongPassword("no keys were exchanged")
        try:
            text = self.exchange.decrypt(data)
        except ValueError as error:
            raise WrongPassword(str(error)) from None
        if not text:
            raise WrongPassword("Invalid password data received")
        return text

    def unpadded(self, value: Any) -> bytes:
        """Return the password's text. The last byte is taken for the padding's length, and no more is looked at."""
        text = self.decrypted(value)
        if text[-1] > BLOCK:
            raise WrongPassword("Invalid password data received")
        return text[: -text[-1]]  # nothing at all when that byte is 0

    def keep_password(self, password: str) -> Reply:
        """Set the administrator's password."""
        self.inside.passwords[self.user] = password
        return DONE

    def set_hostname(self) -> None:
        """Take the name of the guest from XenStore, if there is one."""
        self.inside.hostname = self.guest.read("vm-data/hostname") or self.inside.hostname

    def documents(self) -> list[tuple[str, Any]]:
        """Return the documents of the interfaces that the guest has, by MAC as the agent spells it: upper case."""
        names = self.guest.names(NETWORKING)
        found = [(mac, self.guest.read(f"{NETWORKING}/{mac}")) for mac in self.guest.interfaces() if mac in names]
        return [(mac, _document(text or "")) for mac, text in found]

    def configure(self, mac: str, document: dict[str, Any]) -> None:
        """Configure one interface."""
        self.inside.networks[mac] = document

    def install(self, url: str, md5: str) -> Reply:
        """Install another agent, of the version that the package's name tells, and start it: keys are forgotten."""
        self.inside.updates.append({"url": url, "md5": md5})
        found = _VERSION.findall(url.rpartition("/")[2])
        self.inside.version = found[-1] if found else self.inside.version
        self.exchange = None
        return DONE


def parsed(text: str) -> tuple[str, Any]:
    """Return a request's name and value. Raises ValueError, also for bytes that are not UTF-8."""
    request = json.loads(text.encode())
    if not isinstance(request, dict) or not isinstance(request.get("name"), str) or "value" not in request:
        raise ValueError("a request is an object with a name and a value")
    return request["name"], request["value"]


def path_and_content(value: Any) -> tuple[str, bytes]:
    """Return what `injectfile` carries. Raises Refused for what is no base64, ValueError for a text that is no file."""
    try:
        path, comma, content = base64.b64decode(value).partition(b",")
    except (ValueError, TypeError):
        raise Refused("the file is not base64") from None
    if not comma:
        raise ValueError("the file has no comma behind its path")
    return path.decode(), content


def _document(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
