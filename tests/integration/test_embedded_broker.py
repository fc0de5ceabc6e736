"""The embedded Valkey and its files: damaged ones are moved aside, sound ones are never."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from producers import ConfigurationError
from workers.fleet import embedded_broker
from workers.fleet.embedded_broker import EmbeddedValkey


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a server that was given a list and was stopped."""
    folder = tmp_path / "valkey"
    server = EmbeddedValkey(folder)
    server.start()
    with Redis.from_url(server.url) as redis:
        for number in range(1000):
            redis.lpush("list", f"entry {number}")
    server.stop()
    return folder


@pytest.fixture
def again(folder: Path) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(folder)
    yield server
    server.stop()


def length(server: EmbeddedValkey) -> int:
    with Redis.from_url(server.url) as redis:
        return int(redis.llen("list"))  # type: ignore[arg-type]


def appended(folder: Path) -> Path:
    (path,) = (folder / "appendonlydir").glob("*.incr.aof")
    return path


def framing_byte(folder: Path) -> None:
    data = bytearray(appended(folder).read_bytes())
    data[data.index(b"*3\r\n", len(data) // 2)] = ord("?")
    appended(folder).write_bytes(data)


def base_file(folder: Path) -> None:
    (path,) = (folder / "appendonlydir").glob("*.base.rdb")
    path.write_bytes(b"no snapshot at all")


def manifest(folder: Path) -> None:
    (path,) = (folder / "appendonlydir").glob("*.manifest")
    path.write_bytes(path.read_bytes()[:-9] + b"\xff\xff\n")


def missing_file(folder: Path) -> None:
    appended(folder).unlink()


@pytest.mark.parametrize("damage", [framing_byte, base_file, manifest, missing_file])
def test_data_that_it_cannot_read_are_moved_aside(
    folder: Path, again: EmbeddedValkey, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """It starts empty, says where they are, and starts with its new data the next time."""
    damage(folder)
    again.start()
    assert length(again) == 0
    (aside,) = folder.parent.glob("valkey.unreadable-*")
    assert str(aside) in caplog.text
    with Redis.from_url(again.url) as redis:
        redis.lpush("list", "new")
    again.stop()
    again.start()
    assert length(again) == 1


def test_a_truncated_file_is_read_as_far_as_it_goes(folder: Path, again: EmbeddedValkey) -> None:
    """So a power cut leaves it: Valkey drops the last command, and nothing is moved."""
    data = appended(folder).read_bytes()
    appended(folder).write_bytes(data[:-5])
    again.start()
    assert length(again) == 999
    assert not list(folder.parent.glob("valkey.unreadable-*"))


def test_sound_data_stay_if_something_else_is_wrong(folder: Path) -> None:
    """A port that is taken is no reason to start empty: once it is free, everything is there."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server = EmbeddedValkey(folder, port=other.getsockname()[1])
        with pytest.raises(ConfigurationError, match="did not start"):
            server.start()
    assert not list(folder.parent.glob("valkey.unreadable-*"))
    server.start()
    try:
        assert length(server) == 1000
    finally:
        server.stop()


def test_it_gets_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes its title over its environment, so a script in its place notes the environment and becomes it."""
    noting = tmp_path / "valkey-server"
    noting.write_text(f'#!/bin/sh\nenv > {tmp_path}/environment\nexec {embedded_broker._binary()} "$@"\n')
    noting.chmod(0o755)
    monkeypatch.setattr(embedded_broker, "_binary", lambda: noting)
    monkeypatch.setenv("PGPASSWORD", "swordfish")
    server = EmbeddedValkey(tmp_path / "valkey")
    server.start()
    server.stop()
    noted = (tmp_path / "environment").read_text()
    assert "PATH=" in noted
    assert "swordfish" not in noted
