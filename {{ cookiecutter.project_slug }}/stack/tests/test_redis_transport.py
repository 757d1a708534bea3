"""The transport for Redis, against a real one and beside kombu's own."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from celery import current_app
from kombu import Connection, Queue
from kombu.exceptions import OperationalError
from kombu.transport import redis as kombus
from redis import Redis, RedisError

from stack.brokers import redis as current_redis
from stack.brokers import redis_child, redis_transport
from stack.brokers.redis_child import Child
from stack.brokers.redis_transport import DEAD_LETTERS
from stack.testing import wait_for

HELD = ("unacked", "unacked_index", "unacked_owner")


class Consumer:
    """A consumer without an event loop, which keeps what it takes."""

    def __init__(self, connection: Connection, *queues: str, prefetch: int = 0) -> None:
        """Consume `queues` by a connection, and hold at most `prefetch` messages, 0 for no limit."""
        self.connection = connection
        self.channel: Any = connection.channel()
        self.messages: list[Any] = []
        declared = [Queue(name)(self.channel) for name in queues]
        self.consumer = connection.Consumer(
            declared, channel=self.channel, callbacks=[lambda _, message: self.keep(message)]
        )
        if prefetch:
            self.consumer.qos(prefetch_count=prefetch)
        self.consumer.consume()

    def keep(self, message: Any) -> None:
        """Keep a message, unacknowledged."""
        self.messages.append(message)

    def look(self, seconds: float = 0.3) -> None:
        """Wait for messages for some time."""
        with suppress(TimeoutError):
            self.connection.drain_events(timeout=seconds)

    def keep_looking(self, seconds: float) -> None:
        """Wait for messages again and again, for so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look(0.1)

    def wait_for(self, count: int) -> list[Any]:
        """Wait until it has so many messages; return their bodies."""

        def found() -> bool:
            self.look()
            return len(self.messages) >= count

        wait_for(found)
        return self.bodies()

    def bodies(self) -> list[Any]:
        """Return the bodies of what it has."""
        return [message.payload for message in self.messages]


@pytest.fixture
def broker() -> Iterator[Any]:
    """The Redis of tests, empty."""
    client = Redis.from_url(current_app.conf.broker_url)
    client.flushdb()
    redis_transport.books.clear()
    yield client
    client.flushdb()
    client.close()


@pytest.fixture
def connect(broker: Any) -> Iterator[Callable[..., Connection]]:
    """A function that connects, with the transport's options; it is kombu's own with kombu=True."""
    connections = ExitStack()

    def connection(kombu: bool = False, **options: Any) -> Connection:
        return connections.enter_context(
            Connection(
                current_app.conf.broker_url,
                transport=kombus.Transport if kombu else redis_transport.Transport,
                transport_options={"node_name": "here"} | options,
            )
        )

    with connections:
        yield connection


@pytest.fixture
def soon(monkeypatch) -> None:
    """Redeliver after moments instead of a minute."""
    for name, seconds in {"TEND": 0.1, "RENEW": 0.2, "LEASE": 0.6, "WATCH": 0.6}.items():
        monkeypatch.setattr(redis_transport, name, seconds)


def send(connection: Connection, queue: str, *bodies: object, **options: Any) -> None:
    """Send messages, as any producer does."""
    with connection.Producer() as producer:
        for body in bodies:
            producer.publish(body, routing_key=queue, declare=[Queue(queue)], **options)


# Takes one message and holds it.
TAKE = """
import json, signal, sys
from kombu import Connection, Queue
from kombu.transport import redis as kombus
from stack.brokers import redis_transport
url, queue, options = sys.argv[1:]
options = json.loads(options)
transport = kombus.Transport if options.pop("kombu", None) else redis_transport.Transport
with Connection(url, transport=transport, transport_options=options) as connection:
    channel = connection.channel()
    channel.basic_qos(0, 1, False)
    taken = []
    with connection.Consumer([Queue(queue)], channel=channel, on_message=taken.append):
        while not taken:
            connection.drain_events()
        print("taken", flush=True)
        signal.pause()
"""


def kill(process: subprocess.Popen) -> None:
    """End a process at once."""
    process.kill()
    process.wait()


@pytest.fixture
def another() -> Iterator[Callable[..., subprocess.Popen]]:
    """A function: another process takes one message of a queue; return the process."""
    processes = ExitStack()

    def take(queue: str, **options: Any) -> subprocess.Popen:
        text = json.dumps({"node_name": "here"} | options)
        command = [sys.executable, "-c", TAKE, current_app.conf.broker_url, queue, text]
        process = processes.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        processes.callback(process.kill)
        assert process.stdout
        assert process.stdout.readline() == b"taken\n"
        return process

    with processes:
        yield take


def test_what_is_taken_is_recorded_and_what_is_done_is_not(broker: Any, connect) -> None:
    send(connect(), "a", 1, 2, 3)
    consumer = Consumer(connect(), "a", prefetch=2)
    assert consumer.wait_for(2) == [1, 2]
    consumer.look()
    assert [broker.type(key) for key in HELD] == [b"hash", b"zset", b"hash"]
    assert broker.llen("a") == 1
    assert set(broker.hkeys("unacked")) == set(broker.zrange("unacked_index", 0, -1))
    owners = broker.hgetall("unacked_owner")
    assert len(owners) == 2
    assert set(owners.values()) == {consumer.channel.owner.encode()}
    for message in consumer.messages:
        message.ack()
    assert consumer.wait_for(3) == [1, 2, 3]
    consumer.messages[-1].ack()
    assert not broker.exists(*HELD)


def test_an_end_is_counted_with_the_acknowledgement_and_once(broker: Any, connect) -> None:
    send(connect(), "a", 1, 2)
    consumer = Consumer(connect(), "a", prefetch=1)
    consumer.wait_for(1)
    channel, (message,) = consumer.channel, consumer.messages
    channel.count_with(message.delivery_tag, ("task", "bucket", "sum", 1500), acknowledged=False)
    assert not channel.counts()
    message.ack()
    consumer.wait_for(2)
    counted = {b"task": b"1", b"bucket": b"1", b"sum": b"1500"}
    assert channel.counts() == counted
    # An answer is lost, and all is sent again.
    channel.book.done[message.delivery_tag] = None
    channel.book.counted[message.delivery_tag] = ("task", "bucket", "sum", 1500)
    channel.settle()
    assert channel.counts() == counted
    # It was acknowledged before, when the task began.
    channel.count_with(message.delivery_tag, ("task", "", "", 0), acknowledged=True)
    consumer.look()
    assert channel.counts() == counted | {b"task": b"2"}
    # One that returns to its queue is not counted.
    consumer.messages[-1].reject(requeue=True)
    consumer.wait_for(3)
    assert channel.counts() == counted | {b"task": b"2"}
    assert not channel.book.counted


def test_an_idle_consumer_does_not_wait_for_its_next_look(connect) -> None:
    consumer = Consumer(connect(polling_interval=1000), "a", "b")
    consumer.look()
    for queue in ("a", "b", "a"):
        send(connect(kombu=True), queue, queue, priority=6)
        assert consumer.wait_for(1) == [queue]
        consumer.messages.pop().ack()


def test_an_idle_consumer_looks_although_redis_reports_nothing(connect, monkeypatch) -> None:
    monkeypatch.setattr(redis_transport.Channel, "_on_change", lambda *args: None)
    consumer = Consumer(connect(), "a")
    consumer.look()
    send(connect(), "a", 1)
    assert consumer.wait_for(1) == [1]


def test_priorities_come_first_and_queues_in_turn(connect) -> None:
    for queue in ("a", "b"):
        send(connect(), queue, f"{queue}1", f"{queue}2")
        send(connect(), queue, f"{queue} first", priority=0)
    send(connect(), "b", "last", priority=9)
    found = Consumer(connect(), "a", "b").wait_for(7)
    # For Redis, 0 is the highest; without one it is 0.
    assert sorted(found[:2]) == ["a1", "b1"]
    assert sorted(found[2:4]) == ["a2", "b2"]
    assert found[-1] == "last"


def test_without_an_event_loop_one_message_is_delivered_at_a_time(broker: Any, connect) -> None:
    send(connect(), "one", 1, 2, 3)
    consumer = Consumer(connect(), "one")
    for taken in ([1], [1, 2], [1, 2, 3]):
        consumer.connection.drain_events(timeout=5)
        assert consumer.bodies() == taken
        assert broker.llen("one") == 3 - len(taken)


@pytest.fixture
def ahead(connect, monkeypatch) -> Consumer:
    """A consumer of one message at a time, with an event loop, after a short message."""
    consumer = Consumer(connect(), "a", prefetch=1)
    transport = consumer.channel.connection
    monkeypatch.setattr(transport, "has_event_loop", True)
    monkeypatch.setattr(transport, "call_later", lambda *_: None, raising=False)
    send(connect(), "a", "short")
    consumer.wait_for(1)
    consumer.messages.pop().ack()
    return consumer


def test_short_messages_are_taken_ahead(broker: Any, connect, ahead: Consumer, monkeypatch) -> None:
    monkeypatch.setattr(redis_transport, "GIVE_BACK", 60)
    send(connect(), "a", *range(5))
    for number in range(5):
        assert ahead.wait_for(1) == [number]
        assert broker.hlen("unacked") == 5 - number
        ahead.messages.pop().ack()
    ahead.look()
    assert not broker.exists(*HELD)


def test_no_long_message_keeps_others_waiting(broker: Any, connect, ahead: Consumer) -> None:
    send(connect(), "a", *range(5))
    ahead.wait_for(1)
    ahead.look()
    ahead.look()
    assert broker.llen("a") == 4
    assert broker.hlen("unacked") == 1
    other = Consumer(connect(), "a")
    assert other.wait_for(4) == [1, 2, 3, 4]
    assert not any(message.delivery_info.get("redelivered") for message in other.messages)
    assert ahead.bodies() == [0]


def test_a_consumer_that_ends_gives_back_what_it_took_ahead(
    broker: Any, connect, ahead: Consumer
) -> None:
    send(connect(), "a", *range(5))
    ahead.wait_for(1)
    ahead.consumer.cancel()
    assert (broker.llen("a"), broker.hlen("unacked")) == (4, 1)


def test_a_restart_of_redis_forgets_the_script(broker: Any, connect) -> None:
    consumer = Consumer(connect(), "a")
    consumer.look()
    broker.script_flush()
    send(connect(), "a", 1)
    assert consumer.wait_for(1) == [1]
    broker.script_flush()
    consumer.messages[0].ack()
    assert not broker.exists(*HELD)


def test_what_is_no_message_is_set_aside(broker: Any, connect) -> None:
    broken = ["no JSON", "[]", '"\\ud800"']
    broker.lpush("a", *broken)
    send(connect(), "a", 1)
    assert current_redis.oldest(connect().default_channel, "a") is None
    consumer = Consumer(connect(), "a")
    assert consumer.wait_for(1) == [1]
    kept = [json.loads(entry) for entry in broker.lrange(DEAD_LETTERS, 0, -1)]
    assert sorted(entry["body"] for entry in kept) == sorted(broken)
    assert {entry["queue"] for entry in kept} == {"a"}
    assert broker.hlen("unacked") == 1


def test_a_rejected_message_waits_again_or_is_gone(broker: Any, connect) -> None:
    send(connect(), "a", 1, 2)
    consumer = Consumer(connect(), "a", prefetch=1)
    consumer.wait_for(1)
    consumer.messages.pop().reject(requeue=True)
    assert broker.llen("a") == 2
    assert consumer.wait_for(1) == [2]
    consumer.messages.pop().reject()
    assert consumer.wait_for(1) == [1]
    assert (broker.llen("a"), broker.hlen("unacked")) == (0, 1)


def test_a_consumer_that_ends_returns_what_it_holds(broker: Any, connect) -> None:
    send(connect(), "a", 1)
    connection = connect()
    consumer = Consumer(connection, "a")
    consumer.wait_for(1)
    consumer.channel.close()
    assert (broker.llen("a"), broker.exists(*HELD)) == (1, 0)
    again = Consumer(connect(), "a")
    again.wait_for(1)
    assert again.messages[0].delivery_info["redelivered"]


def test_a_successor_gets_what_a_dead_worker_of_its_name_held(
    broker: Any, connect, another
) -> None:
    send(connect(), "a", 1)
    kill(another("a"))
    assert broker.hlen("unacked") == 1
    assert Consumer(connect(), "a").wait_for(1) == [1]


def test_a_successor_takes_nothing_from_a_worker_that_lives(connect, another) -> None:
    send(connect(), "a", 1)
    process = another("a")
    process.send_signal(signal.SIGSTOP)  # as a paused container
    consumer = Consumer(connect(), "a")
    consumer.look(1)
    assert consumer.messages == []


def test_others_get_what_a_dead_worker_held_after_some_time(connect, another, soon) -> None:
    send(connect(), "a", 1)
    process = another("a", node_name="there")
    consumer = Consumer(connect(), "a")
    process.send_signal(signal.SIGSTOP)
    consumer.keep_looking(2)  # that it does not renew: but it is connected
    assert consumer.messages == []
    kill(process)
    assert consumer.wait_for(1) == [1]
    assert consumer.messages[0].delivery_info["redelivered"]


def test_what_is_held_is_not_redelivered_however_long_it_takes(connect, soon) -> None:
    send(connect(), "a", 1)
    holder = Consumer(connect(node_name="there"), "a", prefetch=1)
    holder.wait_for(1)
    other = Consumer(connect(visibility_timeout=1), "a")
    other.channel.book = redis_transport.Book()  # as that of another process
    end = time.monotonic() + 2
    while time.monotonic() < end:
        holder.look(0.05)
        other.look(0.05)
    assert other.messages == []


@pytest.mark.parametrize("step", [-7200, 7200])
def test_a_clock_that_is_set_redelivers_nothing_twice_and_delays_nothing(
    broker: Any, connect, another, soon, step: int
) -> None:
    send(connect(), "a", 1, 2)
    consumer = Consumer(connect(), "a", prefetch=1)
    (held,) = consumer.wait_for(1)
    process = another("a", node_name="there")
    for tag, at in broker.zrange("unacked_index", 0, -1, withscores=True):
        broker.zadd("unacked_index", {tag: at + step})
    consumer.consumer.qos(prefetch_count=10)
    consumer.keep_looking(1.5)
    assert consumer.bodies() == [held]
    kill(process)
    assert consumer.wait_for(2) == [1, 2]


def test_who_no_longer_holds_a_message_cannot_return_it(broker: Any, connect, another) -> None:
    send(connect(), "a", 1)
    process = another("a", node_name="there")
    (tag,) = broker.hkeys("unacked")
    owner = broker.hget("unacked_owner", tag).decode()
    channel: Any = connect().channel()
    assert channel.restore({tag.decode(): owner}) == 1
    consumer = Consumer(connect(), "a")
    consumer.wait_for(1)
    assert channel.restore({tag.decode(): owner}) == 0
    assert broker.llen("a") == 0
    kill(process)


def test_what_was_taken_when_the_connection_broke_returns_with_the_next_one(
    broker: Any, connect
) -> None:
    send(connect(), "a", 1)
    consumer = Consumer(connect(), "a", prefetch=1)
    # The script runs, and its answer is lost.
    consumer.channel._in_poll = None
    consumer.channel.connection.cycle.on_poll_start()
    wait_for(lambda: broker.hlen("unacked") == 1)
    consumer.channel.client.connection.disconnect()
    assert Consumer(connect(), "a").wait_for(1) == [1]


def test_what_runs_when_the_connection_breaks_is_not_redelivered(
    broker: Any, connect, soon
) -> None:
    send(connect(), "a", 1, 2)
    consumer = Consumer(connect(), "a", prefetch=2)
    consumer.wait_for(2)
    runs, forgotten = consumer.messages
    consumer.messages.clear()
    consumer.channel.do_restore = False  # as the worker's consumer does
    consumer.connection.close()
    del forgotten
    again = Consumer(connect(), "a")
    assert again.wait_for(1) == [2]
    again.keep_looking(1.5)
    assert again.bodies() == [2]
    runs.ack()
    again.look()
    assert broker.hlen("unacked") == 1


def test_an_acknowledgement_that_redis_did_not_confirm_is_sent_again(broker: Any, connect) -> None:
    consumer = Consumer(connect(socket_timeout=0.2), "a", prefetch=1)
    send(connect(), "a", 1)
    consumer.wait_for(1)
    assert not consumer.channel.qos.can_consume()
    broker.execute_command("CLIENT", "PAUSE", 1000, "ALL")
    consumer.messages[0].ack()
    assert consumer.channel.qos.can_consume()
    wait_for(lambda: broker.ping())
    assert broker.hlen("unacked") == 1
    consumer.look()
    assert broker.hlen("unacked") == 0


def test_a_result_is_stored_in_the_step_that_acknowledges(broker: Any, connect) -> None:
    consumer = Consumer(connect(socket_timeout=0.2), "a", prefetch=1)
    send(connect(), "a", 1)
    consumer.wait_for(1)
    (message,) = consumer.messages
    with Redis.from_url(current_app.conf.result_backend) as results, results.pubsub() as waiting:
        results.delete("result")
        waiting.subscribe("result")
        database = current_redis.result_database()
        consumer.channel.settle_with(message.delivery_tag, (database, "result", 60, "done"))
        broker.execute_command("CLIENT", "PAUSE", 1000, "ALL")
        message.ack()
        wait_for(lambda: broker.ping())
        assert (broker.hlen("unacked"), results.get("result")) == (1, None)
        consumer.look()
        assert (broker.hlen("unacked"), results.get("result")) == (0, b"done")
        assert 0 < results.ttl("result") <= 60
        found = wait_for(lambda: waiting.get_message(ignore_subscribe_messages=True))
        assert found["data"] == b"done"
        results.delete("result")
    assert consumer.channel.book.results == {}


@pytest.fixture
def held(connect: Any) -> Consumer:
    """A consumer that holds one message."""
    consumer = Consumer(connect(socket_timeout=0.2), "a", prefetch=1)
    send(connect(), "a", 1)
    consumer.wait_for(1)
    return consumer


def test_a_child_process_acknowledges_before_the_main_process_does(
    broker: Any, held: Consumer
) -> None:
    (message,) = held.messages
    outcome = ("ended", "bucket", "sum", 7)
    result = (current_redis.result_database() or 0, "result", 60, "done")
    with Redis.from_url(current_app.conf.result_backend) as results:
        assert Child().acknowledge(message.delivery_tag, outcome, result)
        wait_for(lambda: not any(broker.exists(key) for key in HELD))
        counted = {b"ended": b"1", b"bucket": b"1", b"sum": b"7"}
        assert (broker.hgetall("metrics"), results.get("result")) == (counted, b"done")
        # When the main process does so, nothing is counted or stored twice.
        results.delete("result")
        held.channel.settle_with(message.delivery_tag, result)
        held.channel.count_with(message.delivery_tag, outcome, acknowledged=False)
        message.ack()
        held.look()
        assert held.channel.book.done == {}
        assert (broker.hgetall("metrics"), results.get("result")) == (counted, None)


def test_a_child_process_does_not_wait_for_redis(
    broker: Any, held: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_child, "PATIENCE", 0)
    child, outcome = Child(), redis_transport.UNCOUNTED
    assert child.acknowledge("nobody's", outcome, None)
    wait_for(lambda: answered(child))
    broker.execute_command("CLIENT", "PAUSE", 2000, "ALL")
    sent = [child.acknowledge(f"nobody's {number}", outcome, None) for number in range(11)]
    assert sent == [True] * 10 + [False]  # Redis owes too many answers
    assert not child.acknowledge("no connection", outcome, None)
    wait_for(lambda: broker.ping())
    # A Redis that is there again gets what follows, and one that has lost the script.
    for lost in ("", "SCRIPT FLUSH", "CLIENT KILL TYPE normal"):
        if lost:
            broker.execute_command(*lost.split())
        wait_for(lambda: child.acknowledge("nobody's", outcome, None) and answered(child))
    assert child.acknowledge(held.messages[0].delivery_tag, outcome, None)
    wait_for(lambda: not broker.exists("unacked"))


def answered(child: Child) -> bool:
    """Return whether Redis has run all that a child process sent."""
    time.sleep(0.1)
    with suppress(RedisError):
        child.read_answers()
        return child.owed == 0
    child.give_up()
    return False


def test_beside_kombu_both_take_and_each_redelivers_what_the_other_held(
    broker: Any, connect, another, soon
) -> None:
    send(connect(kombu=True), "a", 1)
    send(connect(), "a", 2)
    kombu = another("a", kombu=True)
    ours = another("a")
    assert (broker.hlen("unacked"), broker.hlen("unacked_owner")) == (2, 1)
    consumer = Consumer(connect(visibility_timeout=3), "a")
    kill(ours)
    assert Consumer(connect(), "a", prefetch=1).wait_for(1) == [2]
    # kombu's worker renews nothing, so its own timeout counts.
    consumer.look(1)
    assert consumer.messages == []
    kill(kombu)
    assert consumer.wait_for(1) == [1]


def test_kombu_redelivers_what_ours_held(broker: Any, connect, another) -> None:
    send(connect(), "a", 1)
    kill(another("a", node_name="there"))
    options = {"visibility_timeout": 1, "unacked_restore_throttle": 1}
    consumer = Consumer(connect(kombu=True, **options), "a")
    assert consumer.wait_for(1) == [1]
    consumer.messages[0].ack()
    assert broker.hlen("unacked") == 0


def test_one_channel_may_have_queues_with_and_without_acknowledgement(broker: Any, connect) -> None:
    """As that of a worker with mingle and gossip."""
    consumer = Consumer(connect(), "a", prefetch=2)
    replies: list[Any] = []
    other = consumer.connection.Consumer(
        [Queue("b")(consumer.channel)],
        channel=consumer.channel,
        no_ack=True,
        callbacks=[lambda body, _: replies.append(body)],
    )
    other.consume()
    send(connect(), "a", 1)
    assert consumer.wait_for(1) == [1]
    send(connect(), "b", 2)
    for _ in range(100):
        if not replies:
            consumer.look()
    assert (replies, broker.hlen("unacked")) == ([2], 1)
    consumer.messages.pop().ack()
    assert not broker.exists(*HELD)


def test_what_needs_no_acknowledgement_is_not_recorded(broker: Any, connect) -> None:
    send(connect(), "a", 1, 2)
    found: list[Any] = []
    connection = connect()
    with connection.Consumer(
        [Queue("a")], no_ack=True, callbacks=[lambda body, _: found.append(body)]
    ):
        while len(found) < 2:
            connection.drain_events(timeout=60)
    assert not broker.exists(*HELD)
    send(connect(), "a", 3)
    channel: Any = connect().channel()
    message: Any = Queue("a")(channel).get()
    assert broker.hlen("unacked") == 1
    message.ack()
    assert not broker.exists(*HELD)


def test_a_question_keeps_its_connection_as_long_as_it_works(broker: Any) -> None:
    current_redis.kept.clear()
    current_redis.memory()
    current_redis.memory()
    (connection,) = current_redis.kept
    # As when Redis was restarted: it connects again.
    broker.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    current_redis.memory()
    assert current_redis.kept == [connection]
    # One to a Redis that is silent is not kept.
    broker.execute_command("CLIENT", "PAUSE", 1500, "ALL")
    with pytest.raises(OperationalError):
        current_redis.memory()
    assert current_redis.kept == []
    wait_for(lambda: broker.ping())
