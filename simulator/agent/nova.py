"""nova-agent 2.1.22, the current agent of Unix guests, with what it breaks of (dom0-and-guest.md 6.1 to 6.8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

from simulator.agent.agent import DONE, Agent, Died, Reply, path_and_content

_PROVIDER = "rackspace"


class NovaAgent(Agent):
    """Takes all requests in the order listed. What it does not expect ends its process."""

    version: ClassVar[str] = "2.1.22"
    features: ClassVar[Sequence[str]] = (
        "kmsactivate", "resetnetwork", "version", "keyinit", "features", "password", "injectfile",
    )  # fmt: skip
    key_failure: ClassVar[str | int] = 500
    private_bits: ClassVar[int] = 600

    def reason_to_leave(self) -> str:
        """Return why it does not stay: it works for one provider only."""
        provider = self.guest.read("vm-data/provider_data/provider") or ""
        if not self.habits.agent_needs_provider or provider.lower() == _PROVIDER:
            return ""
        return f"vm-data/provider_data/provider is {provider!r}, not {_PROVIDER!r}"

    def on_malformed(self, why: str) -> NoReturn:
        """Die of it; the request stays, and the next process dies of it, too."""
        raise Died(why)

    def on_unknown(self, name: str) -> Reply:
        """Do nothing, and call that a success. `kmsactivate` is among them on Debian, whatever it says it can do."""
        del name
        return DONE

    def on_vanished(self) -> NoReturn:
        """Die of it."""
        raise Died("a request vanished between its listing and its reading")

    def exchange_keys(self, value: Any) -> Reply:
        """Answer a public number; die of anything but a whole number."""
        try:
            theirs = int(value)
        except (ValueError, TypeError):
            raise Died("keyinit: the value is no decimal number") from None
        return self.answer_keys(theirs)

    def set_password(self, value: Any) -> Reply:
        """Set root's password; die of one that is not UTF-8. A failure leaves the key for another try."""
        try:
            text = self.unpadded(value).decode()
        except UnicodeDecodeError:
            raise Died("password: the text is not UTF-8") from None
        self.exchange = None
        return self.keep_password(text.strip("\n"))

    def inject_file(self, value: Any) -> Reply:
        """Write a text file; die of what is no text, or no file."""
        try:
            path, content = path_and_content(value)
            content.decode()
        except ValueError as error:
            raise Died(f"injectfile: {error}") from None
        self.inside.write_file(path, content, "0600")
        return DONE

    def reset_network(self, value: Any) -> Reply:
        """Configure the interfaces one after the other; die of a document that the system's tools cannot use.

        An interface whose MAC is not listed in upper case is passed over without a word.
        """
        del value
        self.inside.network_resets += 1
        self.set_hostname()
        for mac, document in self.documents():
            self._assert_usable(document)
            self.configure(mac, document)
        return DONE

    def _assert_usable(self, document: Any) -> None:
        if not isinstance(document, dict):
            raise Died("resetnetwork: an interface's document is no JSON object")
        system = self.habits.agent_system
        if system != "netplan" and "label" not in document:
            raise Died("resetnetwork: a document without label")
        if system == "redhat" and document.get("ip6s") and "gateway_v6" not in document:
            raise Died("resetnetwork: ip6s without gateway_v6")
        if system == "netplan" and any(":" in str(one) for one in _routes(document)):
            raise Died("resetnetwork: an IPv6 route")


def _routes(document: dict[str, Any]) -> list[Any]:
    """Return addresses and netmasks of the routes."""
    return [part for one in document.get("routes") or [] for part in (one.get("route"), one.get("netmask"))]
