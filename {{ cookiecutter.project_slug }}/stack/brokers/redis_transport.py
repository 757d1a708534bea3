"""
kombu's transport for Redis without its gaps; the keys in Redis are kombu's, and both can work at once.

kombu pops a message and records in a second command that it holds it; SIGKILL of either side in between
loses the message. It waits for each acknowledgement, and it redelivers what was not acknowledged within a
fixed time, which must therefore exceed the longest task. Here

- one script acknowledges and counts what is done and stores the results, takes as many messages as there is room
  for, and records them,
- where tasks are short some are taken ahead, and given back when they wait,
- an idle worker waits for Redis to report a change of its queues, which needs nothing of the sender:
  https://redis.io/docs/latest/develop/reference/client-side-caching/
- a worker renews what it holds, so that a message returns soon after its worker has died, however long
  tasks may run; at once when a worker of the same name starts.

`unacked_owner` and `metrics` are the only new keys: which process holds a message, and how tasks ended.
kombu's workers do not write the first, so theirs return after its own `visibility_timeout`.
"""

import hashlib
import json
import logging
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any
from weakref import WeakValueDictionary

from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from redis import Redis
from redis.exceptions import NoScriptError, ResponseError

from . import Outcome, Result

logger = logging.getLogger(__name__)
redis: Any = kombu_redis  # its type stubs do not know what is not public

# Seconds. What its worker has not renewed is watched, and redelivered when that stays so: 60 in all.
TEND = 5  # between two looks
RENEW = 10  # age at which a worker renews
LEASE = 25  # age at which others begin to watch
WATCH = 25  # by the watching worker's own clock, so that a clock that is set redelivers nothing
AHEAD = 0.05  # of work that is taken ahead
AHEAD_LIMIT = 16  # messages
GIVE_BACK = 0.2  # after which what was taken ahead, and could not be begun, is given back
BATCH = 100  # messages that are taken at once by a consumer without a prefetch count
# Options of a connection that must keep nobody waiting.
QUICK = {"socket_timeout": 1, "socket_connect_timeout": 1}
CHUNK = 1000  # tags that one command names; Lua has a limit

# allow-oom: Redis at its limit of memory must still let go of what is done.
# https://redis.io/docs/latest/develop/programmability/eval-intro/#eval-flags
SETTLE = """#!lua flags=allow-oom
local start = 4 + 2 * ARGV[3]
local count = tonumber(ARGV[start])
local held = {}
if count > 0 then
  local done = {unpack(ARGV, start + 1, start + count)}
  -- Only what is held is counted: not a second time, if the answer to this script is lost.
  held = redis.call('ZMSCORE', KEYS[2], unpack(done))
  local sums = {}
  for number, tag in ipairs(done) do
    local at = start + count + 4 * number - 3
    if held[number] or string.sub(tag, 1, 1) == '+' then
      for more = 0, 1 do sums[ARGV[at + more]] = (sums[ARGV[at + more]] or 0) + 1 end
      sums[ARGV[at + 2]] = (sums[ARGV[at + 2]] or 0) + ARGV[at + 3]
    end
  end
  sums[''] = nil
  for name, sum in pairs(sums) do
    redis.call('HINCRBY', KEYS[4], name, string.format('%.0f', sum))
  end
  redis.call('ZREM', KEYS[2], unpack(done))
  redis.call('HDEL', KEYS[1], unpack(done))
  redis.call('HDEL', KEYS[3], unpack(done))
end
local room, queues = tonumber(ARGV[2]), tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local taken = {}
local first = 5
while first <= #KEYS and #taken < room do -- one priority after the other
  local some = false
  for number = 0, queues - 1 do -- and one message of each queue after the other
    local raw = #taken < room and redis.call('RPOP', KEYS[first + number])
    if raw then
      some = true
      local readable, message = pcall(cjson.decode, raw)
      local properties = readable and type(message) == 'table' and message.properties
      local tag = type(properties) == 'table' and properties.delivery_tag
      if type(tag) ~= 'string' then
        tag = redis.sha1hex(now .. ' ' .. #taken .. raw)
      end
      local queue, recorded = ARGV[4 + 2 * number], ARGV[5 + 2 * number]
      if recorded == '1' then
        redis.call('ZADD', KEYS[2], string.format('%.6f', now), tag)
        redis.call('HSET', KEYS[1], tag, '[' .. raw .. ', "", ' .. cjson.encode(queue) .. ']')
        redis.call('HSET', KEYS[3], tag, ARGV[1])
      end
      taken[#taken + 1] = {queue, tag, raw}
    end
  end
  if not some then first = first + queues end
end
if #taken < room then -- Redis reports when one of these changes
  for key = 5, #KEYS do redis.call('EXISTS', KEYS[key]) end
end
for at = start + 5 * count + 1, #ARGV, 5 do -- results of what is done, in a database of their own
  if held[tonumber(ARGV[at])] then
    redis.call('SELECT', ARGV[at + 1])
    redis.call('SET', ARGV[at + 2], ARGV[at + 4], 'EX', ARGV[at + 3])
    redis.call('PUBLISH', ARGV[at + 2], ARGV[at + 4])
  end
end
return taken
"""

RENEWAL = """#!lua flags=allow-oom
local clock = redis.call('TIME')
local now = string.format('%.6f', clock[1] + clock[2] / 1000000)
for number = 2, #ARGV do
  if redis.call('HGET', KEYS[2], ARGV[number]) == ARGV[1] then
    redis.call('ZADD', KEYS[1], 'XX', now, ARGV[number])
  end
end
"""

# Of messages with a time that is too old, or in the future because a clock was set: tag, time, owner.
OVERDUE = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local found = {}
local old, future = {'-inf', now - ARGV[1]}, {now + ARGV[1], '+inf'}
for _, range in ipairs({old, future}) do
  local tags = redis.call('ZRANGE', KEYS[1], range[1], range[2], 'BYSCORE', 'WITHSCORES')
  for number = 1, #tags, 2 do
    local owner = redis.call('HGET', KEYS[2], tags[number]) or ''
    found[#found + 1] = {tags[number], tags[number + 1], owner}
  end
end
return found
"""

# Only if it is as it was when the caller decided.
RESTORE = """#!lua flags=allow-oom
local tag, value, owner, side, message = unpack(ARGV)
if redis.call('HGET', KEYS[1], tag) ~= value or (redis.call('HGET', KEYS[3], tag) or '') ~= owner then
  return 0
end
for number = 4, #KEYS do redis.call(side, KEYS[number], message) end
redis.call('ZREM', KEYS[2], tag)
redis.call('HDEL', KEYS[1], tag)
redis.call('HDEL', KEYS[3], tag)
return 1
"""

SETTLE_SHA = hashlib.sha1(SETTLE.encode(), usedforsecurity=False).hexdigest()
DEAD_LETTERS = "dead.letters"  # what is no message; for RabbitMQ the name of the queue for such
KEPT = 10_000
UNCOUNTED: Outcome = ("", "", "", 0)

incarnation = ""


def forget() -> None:
    """Make the next call of `this_incarnation` return another one; a child process holds nothing."""
    global incarnation
    incarnation = ""
    books.clear()


def this_incarnation() -> str:
    """Return what distinguishes this process from every other with the same node name."""
    global incarnation
    incarnation = incarnation or uuid.uuid4().hex
    return incarnation


os.register_at_fork(after_in_child=forget)


def settlement(
    tags: Sequence[str], outcomes: Mapping[str, Outcome], results: Mapping[str, Result]
) -> list[str | int]:
    """Return what the script gets for messages that are done: count, tags, outcomes, numbered results."""
    counted: Any = (outcomes.get(tag, UNCOUNTED) for tag in tags)
    stored: Any = ((at, *results[tag]) for at, tag in enumerate(tags, start=1) if tag in results)
    return [len(tags), *tags, *chain(*counted), *chain(*stored)]


class Book:
    """What this process holds of one broker; it outlives a connection, as the tasks that run do."""

    def __init__(self) -> None:
        """Begin with nothing."""
        # By their tags, with the time of the last renewal. What nobody refers to any more will not be
        # acknowledged: Celery forgets what it has not begun when a connection is lost.
        self.held: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self.done: dict[str, None] = {}  # acknowledged, which Redis has not confirmed
        self.results: dict[str, Result] = {}  # of some of these
        self.counted: dict[str, Outcome] = {}  # the same: how they ended
        self.watched: dict[str, tuple[bytes, float]] = {}

    def settlement(self) -> tuple[tuple[str, ...], list[str | int]]:
        """Return what to acknowledge next, and what the script gets for it."""
        tags = tuple(self.done)[:CHUNK]
        return tags, settlement(tags, self.counted, self.results)

    def confirm(self, tags: Iterable[str]) -> None:
        """Forget what Redis has acknowledged."""
        for tag in tags:
            self.done.pop(tag, None)
            self.results.pop(tag, None)
            self.counted.pop(tag, None)


books: dict[tuple[object, ...], Book] = {}


class QoS(redis.QoS):
    """kombu's, whose acknowledgements are sent with the next message that is taken."""

    channel: Channel

    def append(self, message: Any, delivery_tag: str) -> None:
        """Hold a message; record that in Redis, if it was not taken by the script."""
        if delivery_tag not in self.channel.taken:
            info = message.delivery_info
            value = dumps([message._raw, info["exchange"], info["routing_key"]])
            held, index, owners = self.channel.keys()
            with self.channel.plain.pipeline() as pipe:
                pipe.zadd(index, {delivery_tag: time.time()})
                pipe.hset(held, delivery_tag, value)
                pipe.hset(owners, delivery_tag, self.channel.owner)
                pipe.execute()
        message.since = message.renewed = time.monotonic()
        self.channel.book.held[delivery_tag] = message
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message with the event loop's next turn, or at once when none runs."""
        if message := self.channel.book.held.pop(delivery_tag, None):
            self.channel.measure(time.monotonic() - message.since)
        self.channel.book.done[delivery_tag] = None
        virtual.QoS.ack(self, delivery_tag)
        self.channel.settle_soon()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Return a message to its queue, where it is the last one, or drop it."""
        if not requeue:
            self.ack(delivery_tag)
            return
        # If Redis does not answer, it is redelivered as that of a lost connection is.
        self.channel.book.held.pop(delivery_tag, None)
        virtual.QoS.ack(self, delivery_tag)
        self.channel.restore({delivery_tag: self.channel.owner}, "LPUSH")

    def restore_unacked(self) -> list:
        """Return everything that this channel holds to its queues; what it cannot, and why."""
        self._flush()
        messages = dict(self._delivered)
        self._delivered.clear()
        for tag in messages:
            self.channel.book.held.pop(tag, None)
        try:
            self.channel.restore(dict.fromkeys(messages, self.channel.owner))
        except self.channel.connection_errors as error:
            return [(error, message) for message in messages.values()]
        return []

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Do that at the end; after a lost connection Celery's consumer holds what still runs."""
        super().restore_unacked_once(stderr)
        self._delivered.clear()

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Renew what this process holds, and redeliver what nobody renews; kombu calls this often."""
        self.channel.tend()


class Channel(redis.Channel):
    """kombu's, with another way to take a message."""

    QoS = QoS
    owner_key = "unacked_owner"
    counts_key = "metrics"
    node_name = ""
    from_transport_options = (*redis.Channel.from_transport_options, "node_name")
    connection: Any
    client: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Open a channel, as kombu does."""
        self.unrecorded: set[str] = set()  # queues whose messages need no acknowledgement
        self.taken: set[str] = set()  # tags that the script has just recorded
        self.sent: tuple[str, ...] = ()  # acknowledgements in the request that is on its way
        self.settlement: list[str | int] = []  # the same, as arguments of the script
        self.room = 0  # messages that it asks for
        # Taken at some time, and not yet delivered.
        self.ahead: deque[tuple[float, list[bytes]]] = deque()
        self.duration: float | None = None  # of recent messages from delivery to acknowledgement
        self.empty = False  # the queues were; Redis reports when that changes
        self.looked = 0.0
        self.refused = -float("inf")  # when Redis refused the last request
        self.tended = 0.0
        self.tracking: Any = None  # the socket on which it reports
        self.claimed = False
        super().__init__(*args, **kwargs)
        parameters = self.pool.connection_kwargs
        place = [parameters.get(name) for name in ("host", "port", "path", "db")]
        self.book = books.setdefault((*place, self.global_keyprefix), Book())
        # Without kombu's prefixing, which knows no scripts.
        self.plain = Redis(connection_pool=self.pool)

    @property
    def dead_letters(self) -> str:
        """The list for what is no message."""
        return self.global_keyprefix + DEAD_LETTERS

    @property
    def owner(self) -> str:
        """Who holds what is taken here; the name of its connection to Redis, too."""
        node = (self.node_name or socket.gethostname()).replace(" ", "_")
        return f"{node}/{this_incarnation()}"

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        parameters = super()._connparams(asynchronous)
        if asynchronous:
            parameters["client_name"] = self.owner
        return parameters

    def _prefixed(self, *keys: str) -> list[str]:
        return [self.global_keyprefix + key for key in keys]

    def keys(self) -> list[str]:
        """Return the names of what is held: the messages, their times, their owners."""
        return self._prefixed(self.unacked_key, self.unacked_index_key, self.owner_key)

    def settlement_keys(self) -> list[str]:
        """Return the names that the script needs to acknowledge: these, and what is counted."""
        return [*self.keys(), *self._prefixed(self.counts_key)]

    # Take and acknowledge ----------------------------------------------------------------------------

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Consume; what needs no acknowledgement, as replies to remote control, is not recorded."""
        if no_ack:
            self.unrecorded.add(queue)
        self.empty = False
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def _basic_cancel(self, consumer_tag: str) -> Any:
        result = super()._basic_cancel(consumer_tag)
        if not self.active_queues:
            self.finish_request()
        return result

    def wants_to_send(self) -> bool:
        """Return whether there is something to ask Redis for."""
        now = time.monotonic()
        if self._in_poll or now < self.refused + self.brpop_timeout:
            return False
        if self.book.done or not self.claimed:
            return True
        look = not self.empty or now >= self.looked + self.brpop_timeout
        return look and not self.ahead and bool(self.qos.can_consume())

    def _brpop_start(self, timeout: float | None = None) -> None:
        connection = self.client.connection
        if self.tracking is not connection._sock:
            self._track(connection)
        if not self.claimed:
            self.claim()
        self.sent, self.settlement = self.book.settlement()
        self.room = self._room()
        self._send("EVALSHA", SETTLE_SHA)

    def _room(self) -> int:
        """Return how many messages to ask for."""
        room = self.qos.can_consume_max_estimate()
        if not self.connection.has_event_loop:  # kombu's drain_events() delivers one
            return 1 if room is None else min(room, 1)
        if room is None:
            return BATCH
        if self.duration:
            ahead = min(AHEAD_LIMIT, int(AHEAD / self.duration * self.qos.prefetch_count))
            room += max(0, ahead - len(self.ahead))
        return room

    def measure(self, seconds: float) -> None:
        """Take into account how long a message was held; a long one counts at once."""
        before = seconds if self.duration is None else self.duration
        self.duration = max(0.001, seconds, 0.9 * before + 0.1 * seconds)

    def deliver_ahead(self) -> None:
        """Deliver what was taken ahead as far as there is room now; give it back after some time."""
        while self.ahead and self.qos.can_consume():
            _, found = self.ahead.popleft()
            self._deliver(*found)
        if self.ahead and time.monotonic() > self.ahead[0][0] + GIVE_BACK:
            self.duration = None
            self.give_back()

    def give_back(self) -> None:
        """Return what was taken ahead to its queues; it was not begun, so it is not redelivered."""
        tags = {bytes_to_str(tag): self.owner for _, (_, tag, _) in reversed(self.ahead)}
        self.ahead.clear()
        self.restore(tags, begun=False)

    def _send(self, command: str, script: str) -> None:
        queues = self._queue_cycle.consume(len(self.active_queues))
        lists = [self._q_for_pri(queue, step) for step in self.priority_steps for queue in queues]
        keys = [*self.settlement_keys(), *self._prefixed(*lists)]
        recorded = [(queue, int(queue not in self.unrecorded)) for queue in queues]
        arguments = [self.owner, self.room, len(queues), *chain(*recorded), *self.settlement]
        self._in_poll = self.client.connection
        self._brpop_sent_at = self.looked = time.monotonic()
        self._in_poll.send_command(command, script, len(keys), *keys, *arguments)

    def _track(self, connection: Any) -> None:
        """Make Redis report when a list changes that the script has found empty."""
        connection._parser.set_invalidation_push_handler(self._on_change)
        connection.send_command("CLIENT", "TRACKING", "ON")
        try:
            connection.read_response()
        except ResponseError as error:
            logger.warning("Redis does not report changes, so a task may wait a second: %s", error)
        self.tracking = connection._sock
        self.empty = False

    def _on_change(self, message: object) -> None:
        self.empty = False

    def _brpop_read(self, **options: Any) -> bool:
        connection = self.client.connection
        found: list[list[bytes]] = []
        try:
            if self._in_poll:
                found = self._read_reply(connection)
                self._take(found)
            else:
                connection.read_response(push_request=True)  # a report, or the end
            # What came with it is in the parser's buffer, where the event loop does not see it.
            while not self._in_poll and connection.can_read(0):
                connection.read_response(push_request=True)
        except self.connection_errors:
            connection.disconnect()  # the next turn connects again
            raise
        if not found:
            raise redis.Empty
        return True

    def _read_reply(self, connection: Any) -> list:
        """Return what the request that is on its way has taken: queue, tag and message of each."""
        try:
            found = self.client.parse_response(connection, "EVALSHA")
        except NoScriptError:  # Redis was restarted
            self._send("EVAL", SETTLE)
            return []
        except BaseException as error:
            self._in_poll = None
            if isinstance(error, ResponseError):  # as when it cannot write to its disk
                self.refused = time.monotonic()
            raise
        self._in_poll = None
        self._flush_brpop_reauth()
        self.book.confirm(self.sent)
        self.empty = len(found) < self.room
        return found

    def _take(self, found: Iterable[list[bytes]]) -> None:
        """Deliver messages; those that there is no room for wait here."""
        now = time.monotonic()
        for name, tag, raw in found:
            if bytes_to_str(name) in self.unrecorded:
                self._deliver(name, tag, raw)
            else:
                self.ahead.append((now, [name, tag, raw]))
        self.deliver_ahead()
        if self.ahead:
            self.connection.call_later(GIVE_BACK, self.deliver_ahead)

    def _deliver(self, name: bytes, delivery_tag: bytes, raw: bytes) -> None:
        queue, tag = bytes_to_str(name), bytes_to_str(delivery_tag)
        self._queue_cycle.rotate(queue)
        try:
            message = loads(bytes_to_str(raw))
            properties = message["properties"]
            properties["delivery_tag"] = tag
            properties.setdefault("delivery_info", {})
            self.decode_body(message.get("body"), properties.get("body_encoding"))
        except Exception as error:  # whatever somebody has put into the list
            self._set_aside(queue, tag, raw, error)
            return
        self.taken.add(tag)
        try:
            self.connection._deliver(message, queue)
        finally:
            self.taken.discard(tag)

    def _set_aside(self, queue: str, tag: str, raw: bytes, error: Exception) -> None:
        """Keep what is no message in a list of its own, which redis_dead_letters.py reads."""
        logger.error("In %s was no message (%r); it is kept in %s.", queue, error, DEAD_LETTERS)
        body = raw.decode(errors="backslashreplace")
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = {"queue": queue, "at": at, "error": repr(error), "body": body}
        with self.plain.pipeline() as pipe:
            pipe.lpush(self.dead_letters, json.dumps(entry))
            pipe.ltrim(self.dead_letters, 0, KEPT - 1)
            for name, command in zip(self.keys(), (pipe.hdel, pipe.zrem, pipe.hdel), strict=True):
                command(name, tag)
            pipe.execute()

    def settle_with(self, tag: str, result: Result) -> None:
        """Store a result when the message is acknowledged."""
        self.book.results[tag] = result

    def count_with(self, tag: str, outcome: Outcome, acknowledged: bool) -> None:
        """Count how a task ended when its message is acknowledged, or now if it has been."""
        if acknowledged:
            tag = f"+{uuid.uuid4().hex}"  # of no message
        # First: where tasks run in threads, another one may settle what is done.
        self.book.counted[tag] = outcome
        if acknowledged:
            self.book.done[tag] = None
            self.settle_soon()

    def counts(self) -> Any:
        """Return what was counted, by its names."""
        return self.plain.hgetall(self.settlement_keys()[-1])

    def settle_soon(self) -> None:
        """Acknowledge what is done: at the event loop's next turn, or now when there is none."""
        if self.closed and not self.do_restore:
            return  # its connection was lost: that comes with the next one
        if self.closed or not (self.active_queues and self.connection.has_event_loop):
            self.settle()

    def settle(self) -> None:
        """Acknowledge what is done, and wait for the answer; a later turn tries again without one."""
        while self.book.done:
            tags, settled = self.book.settlement()
            try:
                script = self.plain.register_script(SETTLE)
                script(self.settlement_keys(), [self.owner, 0, 0, *settled])
            except self.connection_errors as error:
                logger.warning("Redis did not confirm yet that tasks are done: %r", error)
                return
            self.book.confirm(tags)

    def finish_request(self) -> None:
        """Return what was taken and not delivered, also by the request that is on its way."""
        try:
            self.give_back()
            if not self._in_poll:
                return
            found = self._read_reply(self.client.connection)
            if self._in_poll:  # the script was not there: it is on its way again
                found = self._read_reply(self.client.connection)
            self.restore({bytes_to_str(tag): self.owner for _, tag, _ in found}, begun=False)
        except self.connection_errors:
            self._in_poll = None

    def close(self) -> None:
        """Acknowledge what is done, and close."""
        if not self.closed:
            if self.do_restore:
                self.finish_request()
                self.settle()
            self._in_poll = None
        super().close()

    # Redeliver ---------------------------------------------------------------------------------------

    def restore(self, tags: dict[str, str], side: str = "RPUSH", begun: bool = True) -> int:
        """
        Return messages to their queues, unless somebody else holds them now; return how many.

        `tags`: the owner that each had; `side`: LPUSH makes a message the last one of its queue;
        `begun`: a message may have been, and is marked as redelivered.
        """
        held, index, owners = self.keys()
        script = self.plain.register_script(RESTORE)
        count = 0
        for start in range(0, len(tags), CHUNK):
            some = list(tags)[start : start + CHUNK]
            with self.plain.pipeline(transaction=False) as pipe:
                values: Any = self.plain.hmget(held, some)
                for tag, value in zip(some, values, strict=True):
                    if value is None:  # acknowledged meanwhile
                        self.plain.zrem(index, tag)
                        self.plain.hdel(owners, tag)
                    elif (found := self._returned(value, begun)) is None:
                        logger.error("The queue of %s is unknown; it is kept in %s.", tag, held)
                    else:
                        lists, message = found
                        arguments = [tag, value, tags[tag], side, message]
                        script([held, index, owners, *lists], arguments, client=pipe)
                count += sum(pipe.execute())
        return count

    def _returned(self, value: bytes, begun: bool) -> tuple[list[str], str] | None:
        """Return the lists that a message goes back to, and the message; None for an unknown queue."""
        payload, exchange, routing_key = loads(bytes_to_str(value))
        if begun:
            payload["headers"] = (payload.get("headers") or {}) | {"redelivered": True}
            payload["properties"].setdefault("delivery_info", {})["redelivered"] = True
        queues = self._lookup(exchange, routing_key)
        priority = self._get_message_priority(payload, reverse=False)
        lists = self._prefixed(*(self._q_for_pri(queue, priority) for queue in queues))
        return (lists, dumps(payload)) if lists else None

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        self.restore({message.delivery_tag: self.owner}, "LPUSH" if leftmost else "RPUSH")

    def claim(self) -> None:
        """Redeliver what a dead process of this name held, and what this one has forgotten."""
        self.claimed = True
        node = self.owner.partition("/")[0]
        owners = self.plain.hgetall(self.keys()[2])
        claims = {
            bytes_to_str(tag): bytes_to_str(owner)
            for tag, owner in owners.items()
            if bytes_to_str(owner).partition("/")[0] == node
        }
        if not claims:
            return
        alive = self.connected() - {self.owner}
        lost = {
            tag: owner
            for tag, owner in claims.items()
            if owner not in alive and not self._holds(tag)
        }
        if returned := self.restore(lost):
            logger.warning("Redelivered %d tasks that a worker of this name had held.", returned)

    def _holds(self, tag: str) -> bool:
        return tag in self.book.held or tag in self.book.done

    def connected(self) -> set[str]:
        """Return the owners that have a connection to Redis; none when it does not list them."""
        try:
            return {client["name"] for client in self.plain.client_list()}
        except ResponseError:  # some that are managed by others
            return set()

    def tend(self) -> None:
        """Renew what this process holds; redeliver what nobody renews. At most every five seconds."""
        now = time.monotonic()
        if now < self.tended + TEND:
            return
        self.tended = now
        _, index, owners = self.keys()
        held = [tag for tag, message in self.book.held.items() if now > message.renewed + RENEW]
        for start in range(0, len(held), CHUNK):
            some = held[start : start + CHUNK]
            self.plain.register_script(RENEWAL)([index, owners], [self.owner, *some])
            for tag in some:
                if message := self.book.held.get(tag):
                    message.renewed = now
        overdue = self.plain.register_script(OVERDUE)([index, owners], [LEASE])
        self._redeliver(overdue, now)

    def _redeliver(self, overdue: list[list[bytes]], now: float) -> None:
        """Redeliver those whose worker is gone, once they were seen unchanged for long enough."""
        before, self.book.watched = self.book.watched, {}
        alive = self.connected() if overdue else set()
        lost: dict[str, str] = {}
        for raw_tag, score, raw_owner in overdue:
            tag, owner = bytes_to_str(raw_tag), bytes_to_str(raw_owner)
            if self._holds(tag):
                continue
            # It may be paused, or a worker of kombu's.
            perhaps_held = owner != self.owner and (owner in alive or not owner)
            patience = self.visibility_timeout if perhaps_held else WATCH
            same, since = before.get(tag, (score, now))
            if same != score or now < since + patience:
                self.book.watched[tag] = score, since if same == score else now
            else:
                lost[tag] = owner
        if returned := self.restore(lost):
            logger.warning("Redelivered %d tasks that their worker no longer renews.", returned)


class Poller(redis.MultiChannelPoller):
    """kombu's, for channels that decide themselves when they have something to send."""

    def on_poll_start(self) -> None:
        """Send what is to be sent; called before each wait of the event loop."""
        for channel in self._channels:
            if channel.ahead:
                channel.deliver_ahead()
            if channel.active_queues and channel.wants_to_send():
                self._register_BRPOP(channel)
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)

    def on_readable(self, fileno: int) -> None:
        """Read what came."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if channel is not None:
            channel.handlers[kind]()

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """Wait for a message at most a second, without an event loop; raise Empty then."""
        return super().get(callback, 1 if timeout is None else min(timeout, 1))


class Transport(redis.Transport):
    """What stack/brokers/redis.py puts in the place of kombu's."""

    Channel = Channel
    has_event_loop = False
    call_later: Callable[[float, Callable[[], object]], object]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create it as kombu does."""
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Register the connection with a worker's event loop."""
        super().register_with_event_loop(connection, loop)
        self.has_event_loop = True
        self.call_later = loop.call_later
