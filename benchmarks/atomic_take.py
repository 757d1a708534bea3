"""
A proposal, which the template does not have: kombu's Redis transport, with a take in one step.

kombu pops a message off its queue and then notes in a second command that it has it; SIGKILL of the
worker or of Redis in between loses the message. Here one script does both. It cannot wait for a
message as BRPOP does, so that an idle worker waits for a second list to which senders add a word.
Queues, priorities and the fair order among queues are kombu's. Written for kombu 5.7; it leans on
methods that are not public there. `benchmarks/faults.py --settings atomic` uses it.
"""

import time
from typing import Any

from kombu.transport import redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

WORDS = 100  # that wait for idle workers at most; each wakes one of them, others look every second

# What cannot be read is popped without a note, and kombu does with it what it always did.
TAKE = """
for number = 3, #KEYS do
  local raw = redis.call('RPOP', KEYS[number])
  if raw then
    local readable, message = pcall(cjson.decode, raw)
    if readable then
      local at = message.properties.delivery_info
      local note = {raw, cjson.encode(at.exchange), cjson.encode(at.routing_key)}
      local tag = message.properties.delivery_tag
      redis.call('ZADD', KEYS[2], ARGV[1], tag)
      redis.call('HSET', KEYS[1], tag, '[' .. table.concat(note, ',') .. ']')
    end
    return {KEYS[number], raw, readable and 1 or 0}
  end
end
"""


class QoS(redis.QoS):
    """kombu's, which notes only what was not noted when it was taken."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Keep the message in mind, in Redis too if it is not there."""
        if delivery_tag == self.channel.noted:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)


class Channel(redis.Channel):
    """kombu's, with another way to take a message."""

    QoS = QoS
    noted: str | None = None  # the delivery tag of the message that the script has just noted
    asked = "take"  # what the answer that is awaited belongs to, "take" or "wait"
    without_acks = False

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Consume; what needs no acknowledgement, as replies to remote control, is never noted."""
        self.without_acks = self.without_acks or no_ack
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def _word(self, queue: str) -> str:
        return f"{queue}{self.sep}word"

    def _ask(self, what: str, *command: object) -> None:
        self.asked = what
        self._in_poll = self.client.connection
        self._brpop_sent_at = time.monotonic()
        self.client.connection.send_command(*command)

    def _brpop_start(self, timeout: float | None = None) -> None:
        if self.without_acks:
            super()._brpop_start(timeout)
        elif queues := self._queue_cycle.consume(len(self.active_queues)):
            keys = [
                self._q_for_pri(queue, step) for step in self.priority_steps for queue in queues
            ]
            keys = [self.unacked_key, self.unacked_index_key, *keys]
            self._ask("take", "EVAL", TAKE, len(keys), *keys, time.time())

    def _brpop_read(self, **options: Any) -> bool:
        if self.without_acks:
            return super()._brpop_read(**options)
        waits = False
        try:
            connection = self.client.connection
            try:
                answer = self.client.parse_response(connection, "EVAL", **options)
            except self.connection_errors:
                connection.disconnect()  # the next turn connects again
                raise
            if self.asked == "wait" or not answer:
                waits = self.asked == "take" and self.active_queues and not self._closing
                if waits:
                    words = [self._word(queue) for queue in self.active_queues]
                    self._ask("wait", "BRPOP", *words, self.brpop_timeout or 0)
                raise redis.Empty
            key, raw, readable = answer
            message = loads(bytes_to_str(raw))
            queue = bytes_to_str(key).rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            self.noted = message["properties"]["delivery_tag"] if readable else None
            self.connection._deliver(message, queue)
            return True
        finally:
            self.noted = None
            if not waits:
                self._in_poll = None
                self._flush_brpop_reauth()

    def _put(self, queue: str, message: dict, **kwargs: Any) -> None:
        words = ("lpush", self._word(queue), 1), ("ltrim", self._word(queue), 0, WORDS - 1)
        if (batch := kwargs.get("_publish_batch")) is not None:
            super()._put(queue, message, **kwargs)
            for command in words:
                batch.add(*command)
            return
        if queue in (self._expires or ()):  # of short life, as those for replies
            return super()._put(queue, message, **kwargs)
        key = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            pipe.lpush(key, dumps(message))
            for name, *arguments in words:
                getattr(pipe, name)(*arguments)
            pipe.execute()


class Transport(redis.Transport):
    """For CELERY_BROKER_TRANSPORT = "config.atomic_take:Transport"."""

    Channel = Channel
