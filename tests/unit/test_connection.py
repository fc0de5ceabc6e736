"""Where the broker and the store are looked for, and that no password is ever shown."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from producers.wire.connection import Connection, home, masked, with_password
from producers.wire.errors import ConfigurationError
from producers.wire.publisher import connect
from workers.consumer.app import create_app

BROKER = "redis://localhost:6379/0"
STORE = "sqlite:////tmp/store.db"


def write_fleet(folder: Path, pid: int, **more: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fleet = {"pid": pid, "broker_url": BROKER, "store_url": STORE, "flower_url": "http://localhost", "started_at": 1.0}
    (folder / "fleet.json").write_text(json.dumps(fleet | more))


def a_dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


def test_arguments_win_over_the_environment() -> None:
    """What the caller writes is what is meant."""
    environment = {"ARGOSY_BROKER_URL": "redis://elsewhere", "ARGOSY_STORE_URL": "sqlite:///elsewhere.db"}
    found = Connection(BROKER, STORE, environment)
    assert (found.broker_url, found.store_url) == (BROKER, STORE)


def test_the_environment_wins_over_the_local_fleet(tmp_path: Path) -> None:
    """A laptop with a fleet of its own can still submit to the big one."""
    write_fleet(tmp_path, os.getpid())
    environment = {
        "ARGOSY_HOME": str(tmp_path),
        "ARGOSY_BROKER_URL": "rediss://big/0",
        "ARGOSY_STORE_URL": "postgresql://big/argosy",
    }
    found = Connection(environment=environment)
    assert (found.broker_url, found.store_url) == ("rediss://big/0", "postgresql://big/argosy")


def test_a_running_local_fleet_needs_no_settings(tmp_path: Path) -> None:
    """`argosy up` in one terminal, `argosy submit` in another."""
    write_fleet(tmp_path, os.getpid())
    found = Connection(environment={"ARGOSY_HOME": str(tmp_path)})
    assert (found.broker_url, found.store_url) == (BROKER, STORE)


def test_a_stopped_local_fleet_can_be_read_but_not_submitted_to(tmp_path: Path) -> None:
    """Results outlive the fleet; work sent to it would wait for nobody."""
    write_fleet(tmp_path, a_dead_pid())
    found = Connection(environment={"ARGOSY_HOME": str(tmp_path)})
    assert found.store_url == STORE
    with pytest.raises(ConfigurationError, match="has stopped; start it again with `argosy up`"):
        _ = found.broker_url


def test_one_address_set_and_the_other_not_is_refused(tmp_path: Path) -> None:
    """A broker paired with another fleet's store would take work whose results nobody finds."""
    write_fleet(tmp_path, os.getpid())
    environment = {"ARGOSY_HOME": str(tmp_path), "ARGOSY_STORE_URL": "postgresql://big/argosy"}
    with pytest.raises(ConfigurationError, match="ARGOSY_BROKER_URL: not set, though the store is"):
        _ = Connection(environment=environment).broker_url


def test_nothing_set_says_what_to_do(tmp_path: Path) -> None:
    """The first error that most newcomers meet."""
    with pytest.raises(ConfigurationError, match="start one with `argosy up`, or set ARGOSY_STORE_URL"):
        _ = Connection(environment={"ARGOSY_HOME": str(tmp_path)}).store_url


def test_a_damaged_fleet_file_is_named(tmp_path: Path) -> None:
    """The file is ours, but disks and editors happen."""
    (tmp_path / "fleet.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"fleet\.json: cannot be read"):
        _ = Connection(environment={"ARGOSY_HOME": str(tmp_path)}).store_url


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "amqp://me:pa@ss:w/rd@host", ""])
def test_a_url_of_the_wrong_kind_is_refused_without_its_password(url: str) -> None:
    """The message goes to logs and screens."""
    with pytest.raises(ConfigurationError) as caught:
        _ = Connection(url).broker_url
    assert str(caught.value).startswith("broker_url: must look like redis://")
    assert "pa@ss" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "url"),
    [
        ("broker", "argosy:S3cret@redis:6379/0"),
        ("broker", "redis:/:S3cret@host"),
        ("broker", "sentinel://me:S3cret/0?master_name=main"),
        ("store", "postgres//me:S3cret@db/x"),
        ("store", "host=db user=a password=S3cret dbname=x"),
        ("store", "jdbc:postgresql://me:S3cret@db/x"),
    ],
)
def test_a_mistyped_url_is_refused_without_its_password(part: str, url: str) -> None:
    """A URL with a mistake in its scheme has its password in a place of its own."""
    connection = Connection(environment={f"ARGOSY_{part.upper()}_URL": url})
    with pytest.raises(ConfigurationError) as caught:
        getattr(connection, f"{part}_url")
    assert str(caught.value).startswith(f"ARGOSY_{part.upper()}_URL: ")
    assert "S3cret" not in str(caught.value)


def test_a_broker_url_without_its_host_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigurationError, match="is not a Redis URL") as caught:
        connect("redis://me:S3cret/0")
    assert "S3cret" not in str(caught.value)


def test_passwords_come_from_files(tmp_path: Path) -> None:
    """Secrets are mounted as files; whatever is in them is quoted, and a last line end is not part of it."""
    secret = tmp_path / "password"
    secret.write_text("p@ss/w#rd\n")
    environment = {
        "ARGOSY_BROKER_URL": BROKER,
        "ARGOSY_BROKER_PASSWORD_FILE": str(secret),
        "ARGOSY_STORE_URL": "postgresql://argosy:old@db:5432/argosy?sslmode=require",
        "ARGOSY_STORE_PASSWORD_FILE": str(secret),
    }
    found = Connection(environment=environment)
    assert found.broker_url == "redis://:p%40ss%2Fw%23rd@localhost:6379/0"
    assert found.store_url == "postgresql://argosy:p%40ss%2Fw%23rd@db:5432/argosy?sslmode=require"
    assert "p%40ss" not in repr(found)


def test_a_missing_password_file_is_named() -> None:
    """A secret that was not mounted is a common mistake; an empty password would only fail later."""
    environment = {"ARGOSY_BROKER_URL": BROKER, "ARGOSY_BROKER_PASSWORD_FILE": "/nowhere/password"}
    with pytest.raises(ConfigurationError, match="ARGOSY_BROKER_PASSWORD_FILE: /nowhere/password cannot be read"):
        _ = Connection(environment=environment).broker_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
        ("postgresql://me:se@cr:et/x@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=secret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("postgresql+psycopg://me:secret@db/x", "postgresql+psycopg://me:***@db/x"),
        ("redis:///:secret@host", "redis://:***@host"),
        ("redis://me:secret/0", "redis://me:***"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("sqlite:////var/a@b/store.db", "sqlite:////var/a@b/store.db"),
        ("sentinel://a:1;sentinel://b:2/0?master_name=main", "sentinel://a:1;sentinel://b:2/0?master_name=main"),
        ("argosy:secret@redis:6379/0", "***"),
        ("redis:/:secret@host", "***"),
        ("redis:/me:secret", "***"),
        ("postgres//me:secret@db/x", "***"),
        ("host=db user=a password=secret dbname=x", "***"),
        ("jdbc:postgresql://me:secret@db/x", "***"),
        ("localhost:6379/0", "localhost:6379/0"),
        ("/var/lib/store.db", "/var/lib/store.db"),
        (STORE, STORE),
        (BROKER, BROKER),
    ],
)
def test_urls_are_shown_without_passwords(url: str, shown: str) -> None:
    """Hiding too much is a nuisance, hiding too little an incident."""
    assert masked(url) == shown


def test_a_password_goes_into_a_url_with_and_without_a_user() -> None:
    """Redis often has a password and no user; PostgreSQL always has both."""
    assert with_password("redis://host/0", "x") == "redis://:x@host/0"
    assert with_password("redis://me@[::1]:6379/0", "x") == "redis://me:x@[::1]:6379/0"


def test_the_home_folder_follows_the_conventions() -> None:
    """ARGOSY_HOME, else the user's data folder."""
    assert home({"ARGOSY_HOME": "/srv/argosy"}) == Path("/srv/argosy")
    assert home({"XDG_DATA_HOME": "/data"}) == Path("/data/argosy")
    assert home({}) == Path.home() / ".local/share/argosy"
    assert home({"ARGOSY_HOME": "~/fleet"}) == Path.home() / "fleet"


def test_a_user_without_a_folder_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(ConfigurationError, match="set ARGOSY_HOME"):
        home({})


def test_white_space_around_an_address_is_none_of_it() -> None:
    """A secret that is mounted as a file ends with a line feed."""
    found = Connection(environment={"ARGOSY_BROKER_URL": f" {BROKER}\n", "ARGOSY_STORE_URL": f"{STORE}\n"})
    assert (found.broker_url, found.store_url) == (BROKER, STORE)
    assert Connection(f"{BROKER}\n", f"{STORE} ").store_url == STORE
    with pytest.raises(ConfigurationError, match="broker_url: must be text, not bytes"):
        _ = Connection(BROKER.encode(), STORE).broker_url  # type: ignore[arg-type]


def test_the_fleets_own_tasks_are_known(tmp_path: Path) -> None:
    """A client beside a fleet.toml can submit what that fleet adds."""
    fleet = tmp_path / "fleet.toml"
    fleet.write_text('[models.mine.tasks]\nmood = "text-classification"\n')
    assert Connection(environment={"ARGOSY_FLEET": str(fleet)}).catalogue.task("mood").model == "mine"
    assert "mood" not in Connection(environment={"ARGOSY_HOME": str(tmp_path)}).catalogue.tasks
    write_fleet(tmp_path, os.getpid(), config=str(fleet))
    assert "mood" in Connection(environment={"ARGOSY_HOME": str(tmp_path)}).catalogue.tasks
    assert "mood" not in Connection(BROKER, STORE, {"ARGOSY_HOME": str(tmp_path)}).catalogue.tasks


def test_the_fleets_own_limits_are_known(tmp_path: Path) -> None:
    """What its workers take, the client beside its file sends."""
    fleet = tmp_path / "fleet.toml"
    fleet.write_text('[limits]\nmax_input_bytes = 200_000_000\nallowed_roots = ["/srv"]\n')
    limits = Connection(environment={"ARGOSY_FLEET": str(fleet)}).catalogue.limits
    assert (limits.max_input_bytes, limits.max_text_chars) == (200_000_000, 100_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = 3", "models: Expected `object`"),
        ("[models]\ntext = 3", "models.text: Expected `object`"),
        ('[models.text]\ntasks = ["mood"]', "models.text.tasks: Expected `object`"),
        ('[limits]\nmax_text_chars = "many"', "limits.max_text_chars: Expected `int`"),
        ('blobs = "file:///srv"', "blobs: Expected `object`"),
        ('[blobs]\nuri = "file:///srv"', "blobs.uri: no such setting; did you mean 'url'"),
        ("[admission]\nmax_queued_s = 3", "admission.max_queued_s: Expected `object`"),
        ("[models", "not valid TOML"),
        ('[limit]\nredact = ["email"]', "limit: no such table; did you mean 'limits'"),
        ('[Limits]\nredact = ["email"]', "Limits: no such table; did you mean 'limits'"),
        ("[admissions]\nmax_queued_s = { bulk = 1 }", "admissions: no such table; did you mean 'admission'"),
    ],
)
def test_a_mistake_in_the_fleets_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    """A client reads some of the tables, and tells of them as the workers do."""
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(text)
    found = Connection(environment={"ARGOSY_FLEET": str(fleet)})
    with pytest.raises(ConfigurationError, match=f"fleet.toml: {message}"):
        _ = found.catalogue, found.admission, found.blobs


@pytest.mark.parametrize("url", ["redis://host/main", "redis://host/1/", "redis://host?db=1", "redis://host/?db=1"])
def test_clients_and_workers_read_the_same_database(url: str) -> None:
    """Of these, clients take 0 or 1, and workers none."""
    with pytest.raises(ConfigurationError, match="write the number of Redis' database as the path"):
        _ = Connection(url, STORE, {}).broker_url
    for right in ("redis://host", "redis://host/", "redis://host/2", "rediss://host/2?ssl_ca_certs=/ca.pem"):
        assert Connection(right, STORE, {}).broker_url == right


SENTINELS = "sentinel://user:pa%2Fss@one:26379;sentinel://two/3?master_name=main&sentinel_password=own"


def test_sentinels_are_written_as_for_celery() -> None:
    """The login and the database are the master's; those of the sentinels are options."""
    redis = connect(Connection(SENTINELS, STORE, {}).broker_url)
    settings = redis.get_connection_kwargs()
    assert (settings["db"], settings["username"], settings["password"]) == (3, "user", "pa/ss")
    pool: Any = redis.connection_pool
    assert pool.service_name == "main"
    known = [one.get_connection_kwargs() for one in pool.sentinel_manager.sentinels]
    assert [(one["host"], one["port"], one["password"]) for one in known] == [
        ("one", 26379, "own"),
        ("two", 26379, "own"),
    ]
    app = create_app(SENTINELS, [], concurrency=1)
    assert app.conf.broker_url == "sentinel://user:pa%2Fss@one:26379/3;sentinel://user:pa%2Fss@two:26379/3"
    assert app.conf.broker_transport_options["master_name"] == "main"


def test_a_password_file_is_for_the_master_behind_sentinels(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("se;cret@")
    url = "sentinel://one:1;sentinel://two:2/0?master_name=main"
    found = Connection(environment={"ARGOSY_BROKER_URL": url, "ARGOSY_BROKER_PASSWORD_FILE": str(file)}).broker_url
    assert connect(found).get_connection_kwargs()["password"] == "se;cret@"
    assert "cret" not in masked(found)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sentinel://one:1;two:2/0?master_name=main", "write it like sentinel://"),
        ("sentinel://one:1/0;sentinel://two:2/1?master_name=main", "the same login and database"),
        ("sentinel://:a@one:1;sentinel://:b@two:2/0?master_name=main", "the same login and database"),
        ("sentinel://one:1/0", "add the name of the group"),
        ("sentinel://one:1/main?master_name=main", "invalid literal|database"),
        ("sentinel://one:1/0?master_name=main&socket_timeout=1", "'socket_timeout' is not one of master_name"),
        ("redis+socket:///run/redis.sock?db=1", "write it like redis.socket:///run"),
        ("redis+socket://host/run/redis.sock", "write it like redis.socket:///run"),
        ("unix:///run/redis.sock", "must look like"),
    ],
)
def test_a_mistake_in_another_form_of_the_url_is_named(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        _ = Connection(url, STORE, {}).broker_url


def test_a_unix_socket_is_written_as_for_celery() -> None:
    redis = connect(Connection("redis+socket:///run/redis.sock?virtual_host=2", STORE, {}).broker_url)
    settings = redis.get_connection_kwargs()
    assert (settings["path"], settings["db"]) == ("/run/redis.sock", 2)
    create_app("redis+socket:///run/redis.sock?virtual_host=2", [], concurrency=1)


def test_an_option_that_redis_does_not_know_is_named_before_it_connects() -> None:
    with pytest.raises(ConfigurationError, match=r"'redis://host\?nope=1' is not a Redis URL"):
        connect("redis://host?nope=1")
    with pytest.raises(ConfigurationError, match="the option 'socket_timeout', which workers do not know"):
        create_app("redis://host?socket_timeout=5", [], concurrency=1)


@pytest.mark.parametrize("sign", ["#", "/", "?", "["])
@pytest.mark.parametrize("url", ["redis://:pa{}ss@host:6379/0", "redis://user:12{}ss@host:6379/0"])
def test_a_password_that_ends_early_is_refused_and_nothing_of_it_is_shown(url: str, sign: str) -> None:
    """Its beginning would be taken for a host or a port."""
    with pytest.raises(ConfigurationError) as caught:
        connect(Connection(url.format(sign), STORE, {}).broker_url)
    assert "%23" in str(caught.value)
    assert not re.search(r"pa|ss@|12", str(caught.value).replace("password", "").replace("pass", ""))


@pytest.mark.parametrize("sign", ["@", "%", ":", "%23", "%2F", "ü"])
def test_other_signs_of_a_password_are_fine(sign: str) -> None:
    redis = connect(Connection(f"redis://user:pa{sign}ss@host:6379/0", STORE, {}).broker_url)
    settings = redis.get_connection_kwargs()
    assert (settings["host"], settings["port"], settings["password"]) == ("host", 6379, f"pa{unquote(sign)}ss")


def test_the_shorter_name_of_postgresql_is_a_store() -> None:
    assert Connection(BROKER, "postgres://user@host/argosy", {}).store_url.startswith("postgres://")
