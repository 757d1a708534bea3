"""
What the stack uses of other libraries without their promise to keep it.

A test that fails here after an upgrade names what the new version no longer has, and where the stack
uses it: keep the upper bound in ../requirements.in until the stack is upgraded, too.
"""

import re
from typing import Any

import kombu.transport
import pytest
from billiard.pool import ApplyResult
from celery import Celery
from celery.app import base, task, trace
from celery.backends.redis import RedisBackend
from celery.bin import base as cli
from celery.loaders.base import BaseLoader
from celery.worker import request, state
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from django.core.cache import caches
from django.db.backends.postgresql.base import DatabaseWrapper
from gunicorn.arbiter import Arbiter
from kombu import common
from kombu.transport import redis, zookeeper
from redis._parsers import _RESP3Parser
from uvicorn import Config, Server
from uvicorn_worker import UvicornWorker

from stack.checks import PROJECT

TRANSPORT = "stack/brokers/redis_transport.py"
CHANNEL = [
    "_brpop_start",
    "_brpop_read",
    "_in_poll",
    "_brpop_sent_at",
    "_basic_cancel",
    "_connparams",
    "_restore",
    "_lookup",
    "_get_message_priority",
    "_flush_brpop_reauth",
    "do_restore",
]
POLLER = ["_register_BRPOP", "_register_LISTEN"]
QOS = ["append", "ack", "restore_unacked", "restore_unacked_once", "restore_visible", "_flush"]
django_cache: Any = caches["default"]

USED = [
    (RedisBackend, "_get_result_meta", "stack/celery/results.py"),
    (RedisBackend, "_store_result", "stack/celery/results.py"),
    (BaseLoader, "override_backends", "stack/celery/__init__.py"),
    (Celery, "task_cls", "stack/celery/__init__.py"),
    (Celery, "prepare_config", "stack/celery/__init__.py"),
    (cli, "CLIContext", "stack/__main__.py"),
    (Celery, "user_options", "stack/__main__.py"),
    (base, "calculate_routing_key", "stack/brokers/rabbitmq.py"),
    (task, "get_actual_ignore_result", "stack/celery/results.py"),
    (Consumer, "on_connection_error_after_connected", "stack/celery/consumer.py"),
    (Consumer, "_flush_events", "stack/celery/consumer.py"),
    (Consumer, "on_send_event_buffered", "stack/celery/consumer.py"),
    (Consumer, "on_unknown_task", "stack/celery/consumer.py"),
    (Consumer, "on_invalid_task", "stack/celery/consumer.py"),
    (Consumer, "create_task_handler", "stack/celery/consumer.py"),
    (Consumer, "on_close", "stack/celery/consumer.py"),
    (ApplyResult, "_write_to", "stack/celery/consumer.py"),
    (Request, "on_timeout", "stack/celery/request.py"),
    (Request, "on_retry", "stack/celery/request.py"),
    (Request, "reject", "stack/celery/request.py"),
    (Request, "_success_was_stored", "stack/celery/request.py"),
    (task.Task, "Request", "stack/celery/__init__.py"),
    (Request, "on_failure", "stack/celery/request.py"),
    (Request, "on_success", "stack/celery/request.py"),
    (Request, "acknowledge", "stack/celery/request.py"),
    (request, "create_request_cls", "stack/celery/request.py"),
    (trace, "fast_trace_task", "stack/celery/results.py"),
    (state, "active_requests", "stack/activity.py"),
    (state, "requests", "stack/activity.py"),
    (request, "task_accepted", "stack/celery/request.py"),
    (redis.Channel, "_q_for_pri", "stack/brokers/redis.py"),
    (redis.Channel, "conn_or_acquire", "stack/brokers/redis.py"),
    (redis.Channel, "priority_steps", "stack/brokers/redis.py"),
    (redis.Channel, "keyprefix_queue", "stack/brokers/redis.py"),
    (redis.Channel, "sep", "stack/brokers/redis.py"),
    (common.QoS, "increment_eventually", "stack/celery/consumer.py"),
    (common.QoS, "decrement_eventually", "stack/celery/consumer.py"),
    *[(redis.Channel, name, TRANSPORT) for name in CHANNEL],
    *[(redis.MultiChannelPoller, name, TRANSPORT) for name in POLLER],
    *[(redis.QoS, name, TRANSPORT) for name in QOS],
    (kombu.transport, "TRANSPORT_ALIASES", "stack/brokers/redis.py"),
    (kombu.transport, "TRANSPORT_ALIASES", "stack/brokers/rabbitmq.py"),
    (zookeeper.Channel, "_open", "stack/brokers/zookeeper_transport.py"),
    (zookeeper.Channel, "_client", "stack/brokers/zookeeper_transport.py"),
    (_RESP3Parser, "set_invalidation_push_handler", TRANSPORT),
    (DatabaseWrapper, "pool", "stack/database.py"),
    (DatabaseWrapper, "commit", "stack/middleware.py"),
    (DatabaseWrapper, "run_and_clear_commit_hooks", "stack/middleware.py"),
    (DatabaseWrapper, "on_commit", "stack/middleware.py"),
    (django_cache._cache, "_serializer", "stack/settings.py"),
    (Arbiter, "murder_workers", "gunicorn.conf.py"),
    (UvicornWorker, "CONFIG_KWARGS", "gunicorn.conf.py"),
    (UvicornWorker, "init_signals", "gunicorn.conf.py"),
    (Server, "capture_signals", "stack/dashboard/live.py"),
]


@pytest.mark.parametrize(("owner", "name", "where"), USED)
def test_a_private_api_is_still_there(owner: object, name: str, where: str) -> None:
    assert hasattr(owner, name), f"{where} uses it"


def test_the_readme_lists_them_all() -> None:
    readme = (PROJECT / "stack/README.md").read_text(encoding="utf-8")
    assert {name for _, name, _ in USED if not re.search(rf"[`.]{name}`", readme)} == set()


def test_a_running_uvicorn_knows_its_servers() -> None:
    # dashboard/live.py finds the server in its signal handler, and asks these whether they listen.
    server = Server(Config("none"))
    server.servers = []
    with server.capture_signals():
        import signal

        assert getattr(signal.getsignal(signal.SIGTERM), "__self__", None) is server
