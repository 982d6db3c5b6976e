"""What security groups of a pool are: rules, members from elsewhere, the provider's list; and what hosts have of it.

All of it lies in the journal's Redis, below `<prefix>:firewall:<pool>`:

    groups       rules:GROUP, members:GROUP, provider -> {"version", "by", "value"}
    generation   counts the looks at what shall be: hosts take no document that is older than theirs
    host:<uuid>  object -> hash, of what the host has said that it has
    verified:<uuid>, capabilities:<uuid>, token   what the poller and the choice of a back end remember for a while

Each write is one script, so that of two writers one comes after the other, and one that is repeated changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis

from worker.network.rules import Compact

#: KEYS: groups. ARGV: field, value (JSON), the writer's name, version or ''. Returns the version that is there then.
_WRITE = """
local known = redis.call('HGET', KEYS[1], ARGV[1])
local entry = known and cjson.decode(known) or {version = 0, by = ''}
if entry.by == ARGV[3] then return entry.version end
local version = tonumber(ARGV[4]) or entry.version + 1
if version <= entry.version then return entry.version end
local head = cjson.encode({version = version, by = ARGV[3]})
redis.call('HSET', KEYS[1], ARGV[1], string.sub(head, 1, -2) .. ',"value":' .. ARGV[2] .. '}')
return version
"""


@dataclass(frozen=True)
class Known:
    """What the store has, read at one moment."""

    rules: Mapping[str, list[Compact]]
    """By group."""
    members: Mapping[str, list[str]]
    """Addresses of members that are not in this pool, by group."""
    provider: list[Compact] | None
    """None when nobody has said."""


@dataclass(frozen=True)
class Groups:
    """The groups of one pool."""

    redis: Redis
    prefix: str
    pool: str

    def _key(self, name: str) -> str:
        return f"{self.prefix}:firewall:{self.pool}:{name}"

    def write(self, name: str, value: object, by: str, version: int | None = None) -> int:
        """Set `rules:GROUP`, `members:GROUP` or `provider`, once for each writer `by`; return the version there is.

        A `version` that is not newer than the one there is changes nothing: somebody has overtaken the caller.
        """
        text = json.dumps(value, separators=(",", ":"))
        answer = self.redis.eval(_WRITE, 1, self._key("groups"), name, text, by, "" if version is None else version)
        return int(answer)

    def read(self) -> Known:
        """Return what there is."""
        found = cast("dict[bytes, bytes]", self.redis.hgetall(self._key("groups")))
        values = {name.decode(): json.loads(text)["value"] for name, text in found.items()}
        return Known(
            {name[6:]: value for name, value in values.items() if name.startswith("rules:")},
            {name[8:]: value for name, value in values.items() if name.startswith("members:")},
            values.get("provider"),
        )

    def is_used(self) -> bool:
        """Tell whether anybody has ever given this pool a group or a list of the provider."""
        return bool(self.redis.exists(self._key("groups")))

    def next_generation(self) -> int:
        """Return a number that is higher than all before: take it before looking at what shall be."""
        return int(self.redis.incr(self._key("generation")))

    # -- hosts

    def had(self, host_uuid: str) -> dict[str, str] | None:
        """Return the hashes of what a host has said that it has; None when that is not known."""
        found = cast("dict[bytes, bytes]", self.redis.hgetall(self._key(f"host:{host_uuid}")))
        return {key.decode(): digest.decode() for key, digest in found.items() if key != b"-"} if found else None

    def note(self, host_uuid: str, digests: Mapping[str, str], gone: Sequence[str] = ()) -> None:
        """Add to what a host has."""
        with self.redis.pipeline() as pipe:
            pipe.hset(self._key(f"host:{host_uuid}"), mapping=_marked(digests))
            if gone:
                pipe.hdel(self._key(f"host:{host_uuid}"), *gone)
            pipe.execute()

    def note_all(self, host_uuid: str, digests: Mapping[str, str], valid_s: float) -> None:
        """Set what a host has, as it has just said; it need not be asked again for `valid_s`."""
        with self.redis.pipeline() as pipe:
            pipe.delete(self._key(f"host:{host_uuid}"))
            pipe.hset(self._key(f"host:{host_uuid}"), mapping=_marked(digests))
            pipe.set(self._key(f"verified:{host_uuid}"), "", px=int(valid_s * 1000))
            pipe.execute()

    def is_verified(self, host_uuid: str) -> bool:
        """Tell whether the host has been asked not long ago."""
        return bool(self.redis.exists(self._key(f"verified:{host_uuid}")))

    def kept(self, name: str) -> Any:
        """Return a value kept by `keep`, None when there is none."""
        text = cast("bytes | None", self.redis.get(self._key(name)))
        return None if text is None else json.loads(text)

    def keep(self, name: str, value: object, for_s: float) -> None:
        """Keep a value for a while."""
        self.redis.set(self._key(name), json.dumps(value), px=int(for_s * 1000))

    def drop(self, name: str) -> None:
        """Forget a value kept by `keep`."""
        self.redis.delete(self._key(name))


def _marked(digests: Mapping[str, str]) -> dict[Any, Any]:
    """Return a hash that is there although it may have nothing in it."""
    return {"-": "", **digests}
