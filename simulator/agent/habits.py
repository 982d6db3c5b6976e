"""How a guest's agent behaves, as the control plane says it."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

#: The agents of the field: nova-agent 2.1.22, the older Unix agent, the Windows agent.
KINDS = ("nova-agent", "unix", "windows")
#: What a guest's network is configured with; `netplan` and `redhat` are for nova-agent, `freebsd` is for unix.
SYSTEMS = ("debian", "netplan", "redhat", "freebsd")
EFFECTS = ("silent", "mute", "die", "reboot", "answer")
_MOMENTS = ("before", "after")


@dataclass(frozen=True, slots=True)
class Accident:
    """Something that happens to an agent when it meets a request."""

    effect: str
    """`silent`: it never looks at the request. `mute`: it takes the request and never answers. `die`: its process ends.

    `reboot`: the guest boots again. `answer`: it answers what `answer` says.
    """
    command: str = "*"
    """The command's name, or a pattern."""
    nth: int = 1
    """From the how-manieth such command on."""
    count: int | None = None
    """How often; None: always."""
    when: str = "before"
    """Whether the command is carried out (`after`) or not."""
    answer: str = ""

    def matches(self, command: str) -> bool:
        """Tell whether it is about such a command."""
        return fnmatch.fnmatchcase(command, self.command)

    def acts_on(self, number: int) -> bool:
        """Tell whether it happens to the how-manieth command that matches."""
        return number >= self.nth and (self.count is None or number < self.nth + self.count)


@dataclass(frozen=True, slots=True)
class AgentHabits:
    """How one guest's agent behaves."""

    guest_agent: str | None = None
    """Which agent runs (`KINDS`); None: none. Saying it again starts the agent again."""
    agent_version: str | None = None
    """What it calls its version; None: what its kind does."""
    agent_lacks: Sequence[str] = ()
    """Commands of its kind that it does not know: an older agent."""
    agent_system: str = "debian"
    """What it finds to configure the network with (`SYSTEMS`)."""
    agent_poll_s: float = 0.1
    """How often it looks for requests. In the field: 10, 1 and 6 seconds."""
    agent_work_s: float = 0.0
    """How long each command takes."""
    agent_needs_provider: bool = True
    """Whether nova-agent leaves when vm-data/provider_data/provider is not `rackspace`, as it does in the field."""
    agent_accidents: Sequence[Mapping[str, Any]] = ()
    """What happens to it (`Accident`)."""

    def accidents(self) -> list[Accident]:
        """Return what happens to it."""
        return [Accident(**one) for one in self.agent_accidents]


#: Habits that another process of the agent has to be started for.
STARTS_ANEW = frozenset({"guest_agent"})


def check(wish: Mapping[str, Any]) -> None:
    """Raise ValueError, with a sentence, unless a wish for an agent's habits can be fulfilled."""
    _assert_one_of("guest_agent", wish.get("guest_agent"), (None, *KINDS))
    _assert_one_of("agent_system", wish.get("agent_system", SYSTEMS[0]), SYSTEMS)
    for name in ("agent_poll_s", "agent_work_s"):
        value = wish.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise ValueError(f"{name} is a number of seconds")
    lacks = wish.get("agent_lacks", [])
    if not isinstance(lacks, list) or not all(isinstance(one, str) for one in lacks):
        raise ValueError("agent_lacks is a list of names of commands")
    accidents = wish.get("agent_accidents", [])
    if not isinstance(accidents, list) or not all(isinstance(one, dict) for one in accidents):
        raise ValueError("agent_accidents is a list of objects")
    for one in accidents:
        _check_accident(one)


def _check_accident(wish: Mapping[str, Any]) -> None:
    known = {one.name for one in fields(Accident)}
    if set(wish) - known or "effect" not in wish:
        raise ValueError(f"an accident has an effect; known keys: {', '.join(sorted(known))}")
    _assert_one_of("effect", wish["effect"], EFFECTS)
    _assert_one_of("when", wish.get("when", "before"), _MOMENTS)


def _assert_one_of(name: str, value: Any, known: Sequence[str | None]) -> None:
    if value not in known:
        raise ValueError(f"{name} is one of {', '.join('null' if one is None else one for one in known)}")
