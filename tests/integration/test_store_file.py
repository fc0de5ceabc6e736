"""The file of an SQLite store: deleted, replaced, or not writable for a while, with any name."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from results_store.errors import SchemaMismatch, StoreError, StoreUnavailable
from results_store.sql.database import Database, Weight
from results_store.store import Store
from tests.integration.rows import new_envelope, new_job, submit

#: A file's name, and how it stands in a URL.
NAMES = [
    ("a#b.db", "a#b.db"),
    ("a b.db", "a b.db"),
    ("a%20b?mode=ro.db", quote("a%20b?mode=ro.db")),
    ("a b?.db", "a b?.db"),
    ("?.db", "?.db"),
    ("ä&mode=ro;a=b.db", "ä&mode=ro;a=b.db"),
]


@pytest.fixture
def path(migrated_sqlite: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(migrated_sqlite, tmp_path / "argosy.db"))


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store(f"sqlite:///{path}", timeout_s=2) as store:
        submit(store)
        yield store


def accepted(store: Store, envelope: str) -> None:
    store.add_envelopes([new_envelope(envelope)])


def test_nothing_is_accepted_into_a_deleted_file(store: Store, path: Path) -> None:
    """Nor is an empty file made in its place."""
    for file in path.parent.glob("argosy.db*"):
        file.unlink()
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="check that the folder exists"):
            accepted(store, "e9")
    assert not path.exists()


def test_a_replaced_file_is_the_store_from_then_on(store: Store, path: Path, migrated_sqlite: Path) -> None:
    """As when a copy is put back: what is submitted lies in the file that has the path."""
    for file in path.parent.glob("argosy.db*"):
        file.unlink()
    shutil.copy(migrated_sqlite, path)
    assert store.jobs() == []
    store.create_job(new_job())
    accepted(store, "e9")
    with Store(f"sqlite:///{path}") as other:
        assert other.job("job").items == 1


def test_an_empty_file_in_its_place_lacks_the_schema(store: Store, path: Path) -> None:
    for file in path.parent.glob("argosy.db*"):
        file.unlink()
    path.touch()
    with pytest.raises(SchemaMismatch):
        store.jobs()


@contextmanager
def not_writable(path: Path) -> Iterator[None]:
    """The file cannot be written: by its mode, or for root, whom no mode stops, by the file system's own flag."""
    if os.geteuid():
        path.chmod(0o400)
        yield
        path.chmod(0o600)
        return
    if (
        not shutil.which("chattr")
        or subprocess.run(["chattr", "+i", path], check=False, capture_output=True).returncode
    ):
        pytest.skip("runs as root, on a file system without an immutable flag")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


def test_a_store_that_was_opened_while_it_could_not_be_written_works_once_it_can(path: Path) -> None:
    """SQLite then falls back to a read-only handle, without a word, which must not stay in the pool."""
    store = Store(f"sqlite:///{path}", timeout_s=2)
    with not_writable(path):
        store.open()
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="readonly"):
                submit(store)
        assert store.jobs() == []
    submit(store)
    assert len(store.jobs()) == 1
    store.close()


@pytest.mark.parametrize(("name", "in_url"), NAMES)
@pytest.mark.parametrize("relative", [False, True])
def test_any_file_name_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, in_url: str, relative: bool
) -> None:
    """SQLite is given a URI, in which some signs have meanings. A relative path is the one of when it was opened."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{in_url if relative else tmp_path / in_url}"
    Store(url).migrate()
    with Store(url) as store:
        monkeypatch.chdir(tmp_path / "elsewhere")
        submit(store)
        assert len(store.jobs()) == 1
    assert (tmp_path / name).stat().st_size
    assert not list((tmp_path / "elsewhere").iterdir())


def test_parameters_in_the_url_win(path: Path) -> None:
    """A user may open the file otherwise, or wait longer for a lock."""
    for query, pragma, value in (("mode=ro&uri=true", "query_only", 0), ("timeout=7", "busy_timeout", 7000)):
        database = Database(f"sqlite:///{'file:' if 'uri' in query else ''}{path}?{query}", timeout_s=2)
        database.open()
        with database.cursor() as cursor:
            assert cursor.execute(f"PRAGMA {pragma}").fetchone() == (value,)
        if "ro" in query:
            with pytest.raises(StoreUnavailable, match="readonly"), database.write(Weight.NOTE) as connection:
                connection.exec_driver_sql("DELETE FROM jobs")
        database.close()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("prepare_threshold=0", "the parameter 'prepare_threshold', which SQLite does not know"),
        ("timeout=soon", "soon"),
    ],
)
def test_a_wrong_option_in_the_url_is_a_sentence(sqlite_url: str, query: str, said: str) -> None:
    """As that of another database, or without its unit."""
    with pytest.raises(StoreError, match=said), Store(f"{sqlite_url}?{query}"):
        pass
