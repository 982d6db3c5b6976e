"""The agent of Windows guests (dom0-and-guest.md 6.1, 6.2, 6.5)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from simulator.agent.agent import DONE, Agent, Died, Refused, Reply, WrongPassword, path_and_content

#: What ends a word, or begins something else, on a command line.
_NOT_IN_A_WORD = re.compile(r"""[\s"'&|<>^%]""")
#: Four characters that it writes behind messages.
_ENDING = "\\r\\n"
_TOOLS_VERSION, _UPDATER_VERSION = "9.4.0", "1.3.0"
_UNREMARKABLE = ("ready", "unrescue", "ensureminagentupdater", "updaterupdate", "xentoolsupdate")


class WindowsAgent(Agent):
    """Answers first and removes the request then; leaves what it cannot read where it is."""

    version: ClassVar[str] = "1.3.1.0"
    features: ClassVar[Sequence[str]] = (
        "version", "keyinit", "password", "resetnetwork", "injectfile", "agentupdate", "kmsactivate", "sethostname",
        *_UNREMARKABLE,
    )  # fmt: skip
    answers_first: ClassVar[bool] = True
    failure: ClassVar[str] = "1"
    key_failure: ClassVar[str | int] = "1"
    user: ClassVar[str] = "Administrator"

    def handle(self, text: str) -> Reply | None:
        """Carry out a request; messages end with what looks like a line break."""
        reply = super().handle(text)
        return reply._replace(message=reply.message + _ENDING) if reply is not None and reply.message else reply

    def more_commands(self) -> dict[str, Callable[[Any], Reply]]:
        """Return what only this one has."""
        return {
            "agentupdate": self._update,
            "kmsactivate": self._activate,
            "sethostname": self._rename,
            **dict.fromkeys(_UNREMARKABLE, self._succeed),
        }

    def on_malformed(self, why: str) -> None:
        """Leave it."""

    def on_unknown(self, name: str) -> Reply:
        """Say so."""
        return Reply(self.failure, f"unknown command {name}")

    def on_vanished(self) -> None:
        """Look at the next one."""

    def tell_version(self, value: Any) -> Reply:
        """Answer the version of the part asked for."""
        others = {"xentools": _TOOLS_VERSION, "updater": _UPDATER_VERSION}
        return Reply("0", others[value]) if str(value) in others else super().tell_version(value)

    def exchange_keys(self, value: Any) -> Reply:
        """Answer a public number, which comes as text; die of one that is a JSON number (operations.md 5.6)."""
        if not isinstance(value, str):
            raise Died("keyinit: the value is no text")
        if not value.isdecimal():
            raise Refused("keyinit: the value is no decimal number")
        return self.answer_keys(int(value))

    def set_password(self, value: Any) -> Reply:
        """Set the administrator's password by a command line, on which it is one unquoted word.

        Padding stays, so that only a line break ends the text; what is no ASCII becomes question marks.
        """
        text = self.decrypted(value).decode("ascii", "replace").replace("\ufffd", "?")
        password = re.split(r"[\r\n]", text, maxsplit=1)[0]
        if not password or _NOT_IN_A_WORD.search(password):
            raise WrongPassword("net user: the syntax of this command is not that")
        self.exchange = None
        return self.keep_password(password)

    def inject_file(self, value: Any) -> Reply:
        """Write a file, whatever bytes it has."""
        try:
            path, content = path_and_content(value)
        except ValueError as error:
            raise Refused(str(error)) from None
        self.inside.write_file(path, content, "")
        return DONE

    def reset_network(self, value: Any) -> Reply:
        """Configure the interfaces; `nohostname` leaves the guest its name."""
        self.inside.network_resets += 1
        if not str(value).startswith("nohostname"):
            self.set_hostname()
        for mac, document in self.documents():
            if not isinstance(document, dict) or not document.get("mac") or not document.get("label"):
                raise Refused(f"no usable document of {mac}")
            self.configure(mac, document)
        return DONE

    def _update(self, value: Any) -> Reply:
        url, _, md5 = str(value).partition(",")
        if not url or not md5:
            raise Refused("agentupdate: url,md5")
        return self.install(url, md5)

    def _activate(self, value: Any) -> Reply:
        self.inside.activations.append(value)
        return DONE

    def _rename(self, value: Any) -> Reply:
        self.inside.hostname = str(value)
        return DONE

    def _succeed(self, value: Any) -> Reply:
        del value
        return DONE
