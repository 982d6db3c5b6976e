"""What is said to a guest's agent, and what it may say (dom0-and-guest.md 6).

Agents in the field die of malformed requests, and die again at each start while the request is there: so a request is
checked completely before it is written. They answer "0" to names that they do not know: so they are asked first what
they can do. What they answer is anybody's text: the guest may write what it likes.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Collection
from dataclasses import dataclass

from worker.errors import AgentError, RequestError, TooLarge
from worker.guest.dh import SimpleDH
from worker.guest.xenstore import HOME_BYTES, MESSAGE_BYTES

_ID_BYTES = 36
#: What a request may hold, next to its path.
REQUEST_BYTES = MESSAGE_BYTES - HOME_BYTES - len("data/host/") - _ID_BYTES - 1
_LONGEST_SHOWN = 200
_LONGEST_NUMBER = 33
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_FOR_WINDOWS = re.compile(r"(?![/*])[A-Za-z0-9!#$()*+,\-./:;=?@\[\\\]_`{}~]+")
_ABSOLUTE = re.compile(r"/|[A-Za-z]:[\\/]")
_URL = re.compile(r"(https?|ftp)://[!-+\--~]+")  # printable ASCII without the comma
_MD5 = re.compile(r"[0-9a-f]{32}")

SUCCESS = frozenset({"0"})
FILE_FEATURES = ("file_inject", "injectfile")


@dataclass(frozen=True, slots=True)
class Question:
    """One request: its name, its value, and the codes that mean success."""

    name: str
    value: str | dict[str, str] = ""
    success: frozenset[str] = SUCCESS
    is_secret: bool = False
    """What the agent says to it is not shown: it may repeat what it was told."""

    def payload(self) -> str:
        """Return it as it is written, in ASCII. Raises TooLarge when it does not fit into XenStore."""
        text = json.dumps({"name": self.name, "value": self.value})
        if len(text) > REQUEST_BYTES:
            raise TooLarge(
                f"What is to be sent to the agent ({self.name}) takes {len(text)} bytes, and its messages have "
                f"{REQUEST_BYTES}: a file of about 2900 bytes fits, its path included. Larger ones travel on a config "
                "drive."
            )
        return text


@dataclass(frozen=True, slots=True)
class Answer:
    """What an agent answered."""

    code: str
    message: str


def read(text: str) -> Answer:
    """Read an answer; the code may be a number, the message may end in a line break or the letters of one.

    Raises AgentError for what is no answer.
    """
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    code = said.get("returncode") if isinstance(said, dict) else None
    if not isinstance(said, dict) or not isinstance(code, str | int):
        raise AgentError("The guest's agent answered with something that is no answer: look at its log in the guest.")
    message = said.get("message")
    return Answer(str(code), _tidy(message if isinstance(message, str) else ""))


def _tidy(message: str) -> str:
    return message.strip().removesuffix("\\r\\n").strip()


def shown(answer: Answer) -> str:
    """Return an answer for people."""
    message = printable(answer.message)
    return f"{printable(answer.code)}: {message}" if message else printable(answer.code)


def printable(text: str) -> str:
    """Return a guest's text as it may be shown: short, and nothing that a terminal would obey."""
    return _UNPRINTABLE.sub(" ", text)[:_LONGEST_SHOWN].strip()


# -- questions


def version() -> Question:
    """Ask for the version; the value matters to agents for Windows."""
    return Question("version", "agent")


def features() -> Question:
    """Ask what the agent can do."""
    return Question("features")


def key_init(dh: SimpleDH) -> Question:
    """Begin a key exchange. The number goes as text: agents for Windows die of a number."""
    return Question("keyinit", str(dh.get_public()), frozenset({"D0"}))


def password(dh: SimpleDH, new_password: str) -> Question:
    """Set the administrator's password, encrypted; agents for Windows need the line feed behind it."""
    return Question("password", dh.encrypt(f"{new_password}\n"), is_secret=True)


def reset_network() -> Question:
    """Set the network up as vm-data/networking says. Old agents of FreeBSD and Gentoo answer 500 when they did."""
    return Question("resetnetwork", success=frozenset({"0", "500"}))


def update(url: str, md5sum: str) -> Question:
    """Let the agent replace itself."""
    return Question("agentupdate", f"{check_url(url)},{check_md5(md5sum)}")


def inject_file(path: str, contents: bytes, offered: Collection[str] | None) -> Question:
    """Write a file, in the form that the agent knows: the new one if it offers that, else the old one.

    Raises RequestError for what an agent of the old form dies of.
    """
    if offered is not None and FILE_FEATURES[0] in offered:
        return Question(FILE_FEATURES[0], {"b64_path": _base64(path.encode()), "b64_file": _base64(contents)})
    if "," in path:
        raise RequestError(f"The guest's agent cannot write {path!r}: it takes no path with a comma.")
    try:
        contents.decode()
    except UnicodeDecodeError:
        raise RequestError(
            f"The guest's agent cannot write {path!r}: it takes text in UTF-8 only, and the contents are none."
        ) from None
    return Question(FILE_FEATURES[1], _base64(path.encode() + b"," + contents))


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")


# -- checks; they raise ValueError, for the request's model


def check_file_path(path: str) -> str:
    """Return an absolute path, of Unix or Windows, without control characters."""
    if not _ABSOLUTE.match(path) or _CONTROL.search(path):
        raise ValueError("a path in the guest is absolute (/etc/motd, or C:\\motd.txt) and free of control characters")
    return path


def check_file_size(path: str, contents: bytes) -> None:
    """Refuse a file that fits into no agent's message."""
    try:
        Question(FILE_FEATURES[1], _base64(path.encode() + b"," + contents)).payload()
    except TooLarge as error:
        raise ValueError(str(error)) from None


def check_url(url: str) -> str:
    """Return a URL as the agents take one: http, https or ftp, ASCII, no blank and no comma."""
    if not _URL.fullmatch(url):
        raise ValueError("url must begin with http://, https:// or ftp://, and hold no blanks, commas or accents")
    return url


def check_md5(md5sum: str) -> str:
    """Return an MD5 digest in the agents' spelling."""
    lower = md5sum.lower()
    if not _MD5.fullmatch(lower):
        raise ValueError("md5sum must be 32 hex digits")
    return lower


def check_password(new_password: str, *, is_windows: bool) -> None:
    """Refuse a password that the guest cannot set, without naming it. Raises RequestError.

    Line breaks end it everywhere; in Windows it stands unquoted on a command line (dom0-and-guest.md 6.5).
    """
    if not new_password:
        raise RequestError("The password is empty: give one.")
    if _CONTROL.search(new_password):
        raise RequestError("The password holds a line break or another control character: leave it out.")
    if is_windows and not _FOR_WINDOWS.fullmatch(new_password):
        raise RequestError(
            "A guest with Windows takes a password of ASCII letters, digits and signs only, without blanks, quotes and "
            "any of & | < > ^ %, that does not begin with / or *: choose another one."
        )


def read_public(answer: Answer) -> int:
    """Return the public key in an agent's answer to `keyinit`. Raises AgentError for what is none."""
    text = answer.message
    is_number = text.isascii() and text.isdecimal() and len(text) <= _LONGEST_NUMBER
    if not is_number or not 1 < int(text) < SimpleDH.prime - 1:
        raise AgentError("The guest's agent answered a key exchange with something that is no key: try again.")
    return int(text)


def read_features(answer: Answer) -> frozenset[str] | None:
    """Return what an agent offers; None for an old one that refuses the question, as it refuses all it cannot do."""
    if answer.code != "0":
        return None
    return frozenset(name.strip() for name in answer.message.split(",") if name.strip())
