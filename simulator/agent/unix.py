"""The older agent of Unix guests (dom0-and-guest.md 6.1, 6.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from simulator.agent.agent import DONE, Agent, Refused, Reply, WrongPassword, path_and_content

_NO_SUCH_COMMAND = "404"


class UnixAgent(Agent):
    """Takes one request at a time, and survives what is wrong."""

    version: ClassVar[str] = "1.39.1"
    features: ClassVar[Sequence[str]] = (
        "version", "features", "keyinit", "password", "resetnetwork", "injectfile", "agentupdate", "kmsactivate",
    )  # fmt: skip
    takes_one: ClassVar[bool] = True

    def more_commands(self) -> dict[str, Callable[[Any], Reply]]:
        """Return what nova-agent has no longer."""
        return {"agentupdate": self._update, "kmsactivate": self._activate}

    def on_malformed(self, why: str) -> Reply:
        """Answer it, under the request's name."""
        return Reply(self.failure, why)

    def on_unknown(self, name: str) -> Reply:
        """Say so."""
        return Reply(_NO_SUCH_COMMAND, f"no such command: {name}")

    def on_vanished(self) -> None:
        """Look at the next one."""

    def exchange_keys(self, value: Any) -> Reply:
        """Answer a public number."""
        try:
            return self.answer_keys(int(value))
        except (ValueError, TypeError):
            raise Refused("keyinit: the value is no number") from None

    def set_password(self, value: Any) -> Reply:
        """Set root's password, whatever bytes it has."""
        text = self.unpadded(value).strip(b"\n")
        if b"\n" in text:
            raise WrongPassword("a line break in the password")
        return self.keep_password(text.decode("utf-8", "surrogateescape"))

    def inject_file(self, value: Any) -> Reply:
        """Write a file, whatever bytes it has."""
        try:
            path, content = path_and_content(value)
        except ValueError as error:
            raise Refused(str(error)) from None
        self.inside.write_file(path, content, "0644")
        return DONE

    def reset_network(self, value: Any) -> Reply:
        """Configure the interfaces. On FreeBSD it has done so, too, when it answers a failure."""
        del value
        self.inside.network_resets += 1
        self.set_hostname()
        for mac, document in self.documents():
            if not isinstance(document, dict) or "label" not in document:
                raise Refused(f"no usable document of {mac}")
            self.configure(mac, document)
        if self.habits.agent_system == "freebsd":
            raise Refused("")
        return DONE

    def _update(self, value: Any) -> Reply:
        """Take `url,md5`, or an object with both."""
        if isinstance(value, dict):
            value = ",".join(str(value.get(key, "")) for key in ("url", "md5" if "md5" in value else "md5sum"))
        url, _, md5 = str(value).partition(",")
        if not url or not md5:
            raise Refused("agentupdate: url,md5")
        return self.install(url, md5)

    def _activate(self, value: Any) -> Reply:
        """Take what a licence is activated with."""
        if not isinstance(value, dict):
            raise Refused("kmsactivate: an object with activation_key, profile and domains")
        self.inside.activations.append(value)
        return DONE
