"""A Redis transport that takes a message and records who has it in one step.

kombu's own transport waits with BRPOP and records the message as unacknowledged afterwards. Between the two the message
exists only in the worker's socket: a worker that is killed or frozen there takes one message with it (celery.md 3.2).
This transport waits without taking:

    claim   one script moves the next message into `unacked`, or answers that there is none
    look    none: EXISTS on the same lists, with CLIENT TRACKING on, so that the server remembers that we looked
    watch   nothing runs until the server tells us that one of the lists has changed; then claim again

So every list wakes the worker at once, whatever its place, and an idle worker sends nothing but its look every
`RECHECK_S`. Records and keys are kombu's: its workers, producers and tools may share the broker.

Overrides private parts of kombu 5.7 (pinned in pyproject.toml, watched by tests/integration/test_broker_kombu.py).
"""
# ruff: noqa: SLF001 - what is overridden here is private in kombu
# kombu's classes have no types.
# mypy: disable-error-code="misc, no-untyped-call"

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from enum import Enum, auto
from functools import cached_property
from queue import Empty
from time import monotonic
from typing import Any, Final

from celery.exceptions import ImproperlyConfigured
from celery.utils.log import get_logger
from celery.worker import state
from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.json import loads
from redis import ConnectionPool
from redis.exceptions import NoScriptError, ResponseError

logger = get_logger(__name__)

#: Pause between two looks while nothing happens: bounds the harm of a notice that never came.
RECHECK_S: Final = 5.0
#: Pause after the server refused a claim (memory full, disk full, read-only replica).
REFUSED_PAUSE_S: Final = 1.0
#: Messages that one sweep gives back; the next one is a second later.
SWEEP_LIMIT: Final = 500
#: No reply is due and none has arrived.
NOTHING: Final = object()

#: KEYS: unacked_index, unacked, lists in the order to look at them. ARGV: for each list its queue, or "" when its
#: messages are not acknowledged. Answers {place of the list from 0, message}, or 0.
#: The record routes by the anonymous exchange, straight back to the queue that the message came from. It is written
#: before the list gives the message up: a write that the server refuses leaves everything as it was.
CLAIM: Final = """
for place = 1, #KEYS - 2 do
    local message = redis.call('LINDEX', KEYS[place + 2], -1)
    if message then
        if ARGV[place] ~= '' then
            local is_ours, tag = pcall(function() return cjson.decode(message).properties.delivery_tag end)
            if is_ours and type(tag) == 'string' then
                local now = redis.call('TIME')
                local record = '[' .. message .. ', "", ' .. cjson.encode(ARGV[place]) .. ']'
                redis.call('HSET', KEYS[2], tag, record)
                redis.call('ZADD', KEYS[1], now[1] + now[2] / 1000000, tag)
            end
        end
        redis.call('RPOP', KEYS[place + 2])
        return {place - 1, message}
    end
end
return 0
"""
CLAIM_SHA: Final = hashlib.sha1(CLAIM.encode(), usedforsecurity=False).hexdigest()

#: KEYS: unacked_index. ARGV: visibility timeout, limit. Answers the overdue tags and gives each a new lease: no two
#: sweepers restore the same message, and what a sweeper that dies leaves behind is overdue again later.
SWEEP: Final = """
local now = redis.call('TIME')
now = now[1] + now[2] / 1000000
local overdue = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[1], 'LIMIT', 0, ARGV[2])
for _, tag in ipairs(overdue) do
    redis.call('ZADD', KEYS[1], now, tag)
end
return overdue
"""

#: KEYS: unacked_index. ARGV: tags. Acknowledged ones stay away (XX).
RENEW: Final = """
local now = redis.call('TIME')
for _, tag in ipairs(ARGV) do
    redis.call('ZADD', KEYS[1], 'XX', now[1] + now[2] / 1000000, tag)
end
"""


def running_tags() -> set[str]:
    """Return the delivery tags of the tasks that run in this worker, also those that came by an earlier connection."""
    while True:
        with contextlib.suppress(RuntimeError):  # the event loop's thread changed the set meanwhile
            return {request.message.delivery_tag for request in state.active_requests}


def held_tags(qos: Any) -> set[str]:
    """Return the delivery tags of the messages that this worker has and has not acknowledged."""
    # Each copied in one go: the event loop's thread changes them meanwhile.
    return (set(qos._delivered) - set(qos._dirty)) | running_tags()


def is_stopping() -> bool:
    """Tell whether this worker was asked to end."""
    # Celery's flags hold an exit status, and 0 means stop.
    return any(flag is not None and flag is not False for flag in (state.should_stop, state.should_terminate))


class Phase(Enum):
    """What the channel's connection is doing while kombu believes it in BRPOP (`_in_poll`)."""

    CLAIM = auto()
    LOOK = auto()
    WATCH = auto()


class ClaimQoS(stock.QoS):
    """Unacknowledged messages whose leases run by the server's clock, so that workers' clocks may differ."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._earlier = running_tags()

    def can_consume(self) -> bool:
        """Tell whether there is room for a message; tasks that run since an earlier connection take room too."""
        if not super().can_consume():
            return False
        if self._earlier and self.prefetch_count:
            self._earlier &= running_tags()
            return len(self._delivered) - len(self._dirty) + len(self._earlier) < self.prefetch_count
        return True

    def append(self, message: Any, delivery_tag: str) -> None:
        """Take the message over; a claimed one has its record already."""
        if delivery_tag == self.channel.claimed_tag:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def renew(self, tags: Iterable[str]) -> None:
        """Begin the leases of `tags` anew, those that still exist."""
        with self.channel.conn_or_acquire() as client:
            self._renew(keys=[self.unacked_index_key], args=list(tags), client=client)

    def restore_unacked(self, client: Any = None) -> None:
        """Put the messages back that nobody works on, as the channel is closed.

        After a lost connection tasks go on: their messages stay ours, their leases are kept over the next connection,
        and their end acknowledges them. kombu gives them to others at once, or ends the worker when it cannot.
        """
        kept = set() if is_stopping() else running_tags()
        try:
            with self.channel.conn_or_acquire(client) as connected:
                for tag in held_tags(self) - kept:
                    self.restore_by_tag(tag, connected)
        except self.channel.connection_errors as error:
            logger.warning("Unacknowledged messages return when their leases have run out: %s", error)
        self._delivered.clear()

    def restore_visible(self, start: int = 0, num: int | None = None, interval: int = 1) -> None:
        """Do nothing: kombu would sweep as soon as it is connected, before the other workers are (`LeaseKeeper`)."""

    def restore_overdue(self) -> None:
        """Put messages whose lease has run out back into their queues, but for those that this worker holds itself.

        Takes no lock, unlike kombu's, whose lock stops all recovery for minutes when its holder dies (celery.md 3.3).
        """
        with self.channel.conn_or_acquire() as client:
            overdue = self._sweep(
                keys=[self.unacked_index_key], args=[self.visibility_timeout, SWEEP_LIMIT], client=client
            )
            for tag in {raw.decode() for raw in overdue} - held_tags(self):
                self.restore_by_tag(tag, client)

    @cached_property
    def _renew(self) -> Any:
        return self.channel._create_client().register_script(RENEW)

    @cached_property
    def _sweep(self) -> Any:
        return self.channel._create_client().register_script(SWEEP)


class ClaimChannel(stock.Channel):
    """kombu's channel with BRPOP replaced by claim, look and watch."""

    QoS = ClaimQoS

    #: The tag that is being delivered; its record exists.
    claimed_tag: str | None = None
    _in_poll: Any
    _brpop_sent_at: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._phase = Phase.CLAIM
        self._was_woken = False
        self._is_script_unknown = False
        self._tracking_sock: Any = None
        self._watches_since = 0.0
        self._refused_at = float("-inf")
        self._lists: list[tuple[str, str]] = []
        self._unacknowledged_queues: set[str] = set()
        super().__init__(*args, **kwargs)
        self._parameters = self._connparams()

    def close(self) -> None:
        """Close, also when the connection is gone; kombu's close gives up midway then."""
        if self._in_poll:
            self._closing = True
            with contextlib.suppress(Empty, *self.connection_errors):
                self._brpop_read()
            self._in_poll = None
        super().close()

    def _get_pool(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's own
        """Return a pool of connections, also after the channel was closed: tasks that go on acknowledge through it."""
        if self.connection is not None and self.connection.client is not None:
            return super()._get_pool(asynchronous)
        return ConnectionPool(**self._parameters)

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:  # noqa: FBT001 - kombu's own
        """Consume; messages of a `no_ack` queue get no record, because nobody would ever remove it."""
        if no_ack:
            self._unacknowledged_queues.add(queue)
        else:
            self._unacknowledged_queues.discard(queue)
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def leave_old_watch(self) -> None:
        """End a watch that has lasted `RECHECK_S`, so that the poller claims again."""
        if self._in_poll and self._phase is Phase.WATCH and monotonic() - self._watches_since >= RECHECK_S:
            self._in_poll = None

    def _update_queue_cycle(self) -> None:
        super()._update_queue_cycle()
        self._watches_since = float("-inf")  # the watch covers the queues of before

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Send a claim."""
        del timeout
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues or monotonic() - self._refused_at < REFUSED_PAUSE_S:
            return
        connection = self.client.connection
        self._track(connection)
        self._lists = [
            (queue, self.global_keyprefix + self._q_for_pri(queue, priority))
            for priority in self.priority_steps
            for queue in queues
        ]
        keys = [self.global_keyprefix + key for key in (self.unacked_index_key, self.unacked_key)]
        keys += [key for _, key in self._lists]
        names = ["" if queue in self._unacknowledged_queues else queue for queue, _ in self._lists]
        script = ("EVAL", CLAIM) if self._is_script_unknown else ("EVALSHA", CLAIM_SHA)
        connection.send_command(*script, len(keys), *keys, *names, check_health=False)
        self._is_script_unknown = self._was_woken = False
        self._phase = Phase.CLAIM
        self._brpop_sent_at = monotonic()
        self._in_poll = connection

    def _brpop_read(self, **options: Any) -> bool:
        """Read until a message was delivered, or nothing more is to come at once. Raises Empty in the latter case."""
        del options
        while (reply := self._next_reply()) is not NOTHING:
            if self._take(reply):
                return True
        raise Empty

    def _next_reply(self) -> Any:
        """Return the next reply or notice (None), or NOTHING."""
        connection = self.client.connection
        is_due = self._in_poll and self._phase is not Phase.WATCH
        try:
            if is_due or connection.can_read(timeout=0):
                return connection.read_response(push_request=True)
        except NoScriptError:
            self._is_script_unknown = True
            self._in_poll = None
        except ResponseError as error:
            logger.error("The broker refused to hand out messages, trying again in a moment: %s", error)  # noqa: TRY400
            self._refused_at = monotonic()
            connection.disconnect()  # the name may lead to a writable server by now
        except self.connection_errors:
            connection.disconnect()
            raise
        return NOTHING

    def _take(self, reply: Any) -> bool:
        """Act on a reply or notice; tell whether it was a message that could be delivered."""
        if self._in_poll and self._phase is Phase.CLAIM and isinstance(reply, list) and isinstance(reply[0], int):
            self._in_poll = None
            return self._deliver(self._lists[reply[0]][0], reply[1])
        if not isinstance(reply, int):  # a notice: one of the lists has changed
            self._was_woken = True
            if self._phase is Phase.WATCH:
                self._in_poll = None
        elif reply or self._was_woken or self._closing:
            self._in_poll = None
        elif self._phase is Phase.CLAIM:
            self.client.connection.send_command("EXISTS", *(key for _, key in self._lists), check_health=False)
            self._phase = Phase.LOOK
        else:
            self._phase = Phase.WATCH
            self._watches_since = monotonic()
            self._brpop_sent_at = None  # no reply is due, so none can be late
        return False

    def _deliver(self, queue: str, raw: bytes) -> bool:
        self._queue_cycle.rotate(queue)
        try:
            message = loads(raw.decode())
            tag = message["properties"]["delivery_tag"]
        except (ValueError, KeyError, TypeError):
            tag = None
        if not isinstance(tag, str):
            logger.critical("Dropped %d bytes from queue %s that are no Celery message", len(raw), queue)
            return False
        self.claimed_tag = None if queue in self._unacknowledged_queues else tag
        try:
            self.connection._deliver(message, queue)
        finally:
            self.claimed_tag = None
        return True

    def _track(self, connection: Any) -> None:
        """Ask the server, once for each socket, to tell us when lists change that we have looked at."""
        if connection._sock is not None and connection._sock is self._tracking_sock:
            return
        connection.send_command("CLIENT", "TRACKING", "ON", "NOLOOP", check_health=False)
        try:
            connection.read_response()
        except ResponseError as error:
            raise ImproperlyConfigured(
                f"The broker refuses CLIENT TRACKING ({error}): allow it, use Redis 6 or later without a proxy in "
                "between, or set VMOPS_ATOMIC_CLAIM=false."
            ) from error
        self._tracking_sock = connection._sock


class ClaimPoller(stock.MultiChannelPoller):
    """kombu's poller for connections that may be read at any time: what arrives was recorded before it was sent."""

    def on_poll_start(self) -> None:
        """Renew old watches, then do as kombu does."""
        for channel in self._channels:
            channel.leave_old_watch()
        super().on_poll_start()

    def on_readable(self, fileno: int) -> Any:
        """Read; kombu's would leave a reply in the socket, or hang up, when the worker has enough messages."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind != "BRPOP":
            return super().on_readable(fileno)
        return channel._brpop_read()

    def _pause_brpop(self, channel: Any, fileno: int) -> None:
        pass


class ClaimTransport(stock.Transport):
    """kombu's Redis transport with channels that claim."""

    Channel = ClaimChannel
    cycle: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = ClaimPoller()
