"""Ways in which a running Redis refuses commands: each is a context in which it does, and after which it does not."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError, ResponseError

Refusing = Callable[[Redis], AbstractContextManager[None]]


@contextmanager
def full(redis: Redis) -> Iterator[None]:
    """Nothing that needs memory: LPUSH, SET, SADD, ZADD, HSET. Taking, deleting and PUBLISH go on."""
    redis.config_set("maxmemory", "1")
    try:
        yield
    finally:
        redis.config_set("maxmemory", "0")


@contextmanager
def read_only(redis: Redis) -> Iterator[None]:
    """A replica whose primary is away: no writes, and its data stay."""
    redis.replicaof("127.0.0.1", "1")
    try:
        yield
    finally:
        redis.replicaof("no", "one")


@contextmanager
def not_permitted(redis: Redis) -> Iterator[None]:
    """An operator took the rights away: no writes, no PUBLISH, no SUBSCRIBE."""
    redis.execute_command("ACL", "SETUSER", "default", "-@write", "-@pubsub")
    try:
        yield
    finally:
        redis.execute_command("ACL", "SETUSER", "default", "+@all")


@contextmanager
def without_replicas(redis: Redis) -> Iterator[None]:
    """A primary that must not write alone."""
    redis.config_set("min-replicas-to-write", "1")
    try:
        yield
    finally:
        redis.config_set("min-replicas-to-write", "0")


@contextmanager
def unable_to_save(redis: Redis) -> Iterator[None]:
    """MISCONF: its folder is gone, so a snapshot failed. It refuses writes and PING."""
    folder = Path(redis.config_get("dir")["dir"])
    redis.config_set("save", "3600 1")
    shutil.rmtree(folder)
    redis.bgsave()
    while redis.info("persistence")["rdb_last_bgsave_status"] == "ok":
        pass
    try:
        yield
    finally:
        folder.mkdir()
        redis.config_set("save", "")


@contextmanager
def busy(redis: Redis) -> Iterator[None]:
    """A script of somebody else runs on and on: every command is refused."""
    redis.config_set("busy-reply-threshold", "10")
    where = redis.get_connection_kwargs()
    with Redis(host=where["host"], port=where["port"], password=where.get("password"), socket_timeout=None) as other:

        def run() -> None:
            with suppress(RedisError):
                other.eval("while true do end", 0)

        running = threading.Thread(target=run)
        running.start()
        while True:
            with suppress(ResponseError):
                redis.ping()
                continue
            break
        try:
            yield
        finally:
            redis.script_kill()
            running.join()


#: Each way, and whether messages are taken nevertheless.
WAYS: dict[str, tuple[Refusing, bool]] = {
    "full": (full, True),
    "read-only": (read_only, False),
    "not permitted": (not_permitted, False),
    "without replicas": (without_replicas, False),
    "unable to save": (unable_to_save, False),
    "busy": (busy, False),
}
