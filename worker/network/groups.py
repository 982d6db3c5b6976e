"""What security groups of a pool are: rules, members from elsewhere, the provider's list; and what hosts have of it.

All of it lies in the journal's Redis, below `<prefix>:firewall:<pool>`:

    groups       rules:GROUP, members:GROUP, provider -> {"version", "by", "value"}
    generation   numbers the looks at what shall be: hosts take no document that is older than theirs
    host:<name>  object -> generation and hash, of what the host has said that it has (its name: uuid and boot)
    changes      how often `expected` became less, or a host was told of what somebody saw before the latest look
    expected     VM's uuid -> the interfaces of one that is on its way, until it has arrived
    verified:<name>, capabilities:<uuid>, token   what the poller and the choice of a back end remember for a while

Each write is one script, so that of two writers one comes after the other, and one that is repeated changes nothing.
Before a host is called, what the call changes is noted as not known: a caller that dies leaves no wrong belief.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis

from worker.network.rules import Compact

#: KEYS: groups. ARGV: field, value (JSON), the writer's name, version or ''. Returns the version that is there then,
#: and 1 if it is this writer's. The last writers are known: one that comes again does not overtake its successors.
_WRITE = """
local known = redis.call('HGET', KEYS[1], ARGV[1])
local entry = known and cjson.decode(known) or {version = 0, by = {}}
for place, writer in ipairs(entry.by) do
    if writer == ARGV[3] then return {entry.version, place == #entry.by and 1 or 0} end
end
local version = tonumber(ARGV[4]) or entry.version + 1
if version <= entry.version then return {entry.version, 0} end
table.insert(entry.by, ARGV[3])
if #entry.by > 32 then table.remove(entry.by, 1) end
local head = cjson.encode({version = version, by = entry.by})
redis.call('HSET', KEYS[1], ARGV[1], string.sub(head, 1, -2) .. ',"value":' .. ARGV[2] .. '}')
return {version, 1}
"""
#: KEYS: generation. Milliseconds at least: hosts do not take those of a Redis that was wiped for older ones.
_NEXT = """
local now = redis.call('TIME')
local number = math.max((tonumber(redis.call('GET', KEYS[1])) or 0) + 1, now[1] * 1000 + math.floor(now[2] / 1000))
local text = string.format('%.0f', number)
redis.call('SET', KEYS[1], text)
return text
"""
#: KEYS: host. ARGV: generation, and object and hash of each. What a later look has noted stays.
_NOTE = """
for place = 2, #ARGV, 2 do
    local known = redis.call('HGET', KEYS[1], ARGV[place])
    if not known or tonumber(string.match(known, '^%d+')) <= tonumber(ARGV[1]) then
        redis.call('HSET', KEYS[1], ARGV[place], ARGV[1] .. ' ' .. ARGV[place + 1])
    end
end
redis.call('HSET', KEYS[1], '-', '0 -')
redis.call('EXPIRE', KEYS[1], 604800)
"""
#: As _NOTE, of everything that the host has: the rest is forgotten, but for what is on its way.
_NOTE_ALL = """
local known = redis.call('HGETALL', KEYS[1])
for place = 1, #known, 2 do
    local generation, digest = string.match(known[place + 1], '^(%d+) (.*)$')
    if digest ~= '' and tonumber(generation) <= tonumber(ARGV[1]) then redis.call('HDEL', KEYS[1], known[place]) end
end
for place = 2, #ARGV, 2 do redis.call('HSETNX', KEYS[1], ARGV[place], ARGV[1] .. ' ' .. ARGV[place + 1]) end
redis.call('HSET', KEYS[1], '-', '0 -')
redis.call('EXPIRE', KEYS[1], 604800)
"""
_UNKNOWN, _GONE = "", "-"


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

    def write(self, name: str, value: object, by: str, version: int | None = None) -> tuple[int, bool]:
        """Set `rules:GROUP`, `members:GROUP` or `provider`, once for each writer `by`.

        Return the version there is, and whether it is the writer's: a `version` that is not newer than the one there is
        changes nothing, nor does a writer that comes again after others.
        """
        text = json.dumps(value, separators=(",", ":"))
        answer = self.redis.eval(_WRITE, 1, self._key("groups"), name, text, by, "" if version is None else version)
        return int(answer[0]), bool(answer[1])

    def read(self) -> Known:
        """Return what there is."""
        found = cast("dict[bytes, bytes]", self.redis.hgetall(self._key("groups")))
        values = {name.decode(): json.loads(text)["value"] for name, text in found.items()}
        return Known(
            {name[6:]: value for name, value in values.items() if name.startswith("rules:")},
            {name[8:]: value for name, value in values.items() if name.startswith("members:")},
            values.get("provider"),
        )

    def expect(self, vm_uuid: str, vifs: list[dict[str, Any]], for_s: float) -> None:
        """Note that a VM is on its way, with interfaces that the pool does not know yet; for so long at most."""
        entry = {"until": self.redis.time()[0] + for_s, "vifs": vifs}
        self.redis.hset(self._key("expected"), vm_uuid, json.dumps(entry))

    def expect_no_more(self, vm_uuid: str) -> None:
        """Note that a VM has arrived, or does not come."""
        self.redis.hdel(self._key("expected"), vm_uuid)
        self._change()

    def expected(self) -> dict[str, list[dict[str, Any]]]:
        """Return the VMs that are on their way, by uuid, with the interfaces that were noted."""
        found = cast("dict[bytes, bytes]", self.redis.hgetall(self._key("expected")))
        entries = {vm_uuid.decode(): json.loads(text) for vm_uuid, text in found.items()}
        now = self.redis.time()[0] if entries else 0
        return {vm_uuid: entry["vifs"] for vm_uuid, entry in entries.items() if entry["until"] > now}

    def is_used(self) -> bool:
        """Tell whether anybody has ever given this pool a group or a list of the provider."""
        return bool(self.redis.exists(self._key("groups")))

    def next_generation(self) -> int:
        """Return a number that is higher than all before: take it before looking at what shall be."""
        return int(self.redis.eval(_NEXT, 1, self._key("generation")))

    def changes(self) -> int:
        """Return the number of changes that a look at the pool may have missed: read it before the look."""
        return self._number("changes")

    def _change(self) -> None:
        self.redis.incr(self._key("changes"))

    def _number(self, name: str) -> int:
        return int(cast("bytes | None", self.redis.get(self._key(name))) or 0)

    # -- hosts

    def had(self, host: str) -> dict[str, str] | None:
        """Return the hashes of what a host has, "" for what is on its way; None when nothing is known of it."""
        found = cast("dict[bytes, bytes]", self.redis.hgetall(self._key(f"host:{host}")))
        pairs = [(key.decode(), entry.decode().partition(" ")[2]) for key, entry in found.items()]
        return {key: digest for key, digest in pairs if digest != _GONE} if found else None

    def begin(self, host: str, generation: int, objects: Iterable[str]) -> None:
        """Note that a host is about to be told of objects: what it has of them is not known until `note` says it."""
        self._note(_NOTE, host, generation, dict.fromkeys(objects, _UNKNOWN))
        if self._number("generation") > generation:  # that look may have seen what was here before
            self._change()

    def note(self, host: str, generation: int, digests: Mapping[str, str], gone: Iterable[str] = ()) -> None:
        """Add to what a host has, unless it has been told of something later."""
        self._note(_NOTE, host, generation, {**digests, **dict.fromkeys(gone, _GONE)})

    def note_all(self, host: str, generation: int, digests: Mapping[str, str], valid_s: float) -> None:
        """Set what a host has, as it has just said; it need not be asked again for `valid_s`."""
        self._note(_NOTE_ALL, host, generation, digests)
        self.redis.set(self._key(f"verified:{host}"), "", px=int(valid_s * 1000))

    def _note(self, script: str, host: str, generation: int, entries: Mapping[str, str]) -> None:
        flat = [text for pair in entries.items() for text in pair]
        self.redis.eval(script, 1, self._key(f"host:{host}"), generation, *flat)

    def is_verified(self, host: str) -> bool:
        """Tell whether the host has been asked not long ago."""
        return bool(self.redis.exists(self._key(f"verified:{host}")))

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
