"""The store's parts that need no database: URLs, errors, values."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import exc

import producers
from producers.wire import errors as wire_errors
from producers.wire.errors import BrokerUnavailable
from results_store.errors import ArgosyError, InvalidRow, SchemaMismatch, StoreError, StoreUnavailable
from results_store.sql.columns import json_text, pack_vector, text, unpack_vector
from results_store.sql.database import parse_url, translate
from results_store.store import Store


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("sqlite:////data/argosy.db", "sqlite+pysqlite"),
        ("postgresql://u@host/argosy", "postgresql+psycopg"),
        ("postgres://u@host/argosy", "postgresql+psycopg"),
        ("postgresql+psycopg://u@host/argosy", "postgresql+psycopg"),
    ],
)
def test_the_usual_urls_find_their_driver(url: str, driver: str) -> None:
    """Users write what their database's manual says; the driver is our business."""
    assert parse_url(url).drivername == driver


@pytest.mark.parametrize("url", ["mysql://u:hunter2@host/db", "sqlite://", "sqlite:///:memory:", "hunter2", ""])
def test_other_urls_are_refused_with_what_to_write(url: str) -> None:
    """The message shows the right form, and never the URL, which may hold a password."""
    with pytest.raises(StoreError, match="write sqlite:///path") as refused:
        Store(url)

    assert "hunter2" not in str(refused.value)


def test_an_at_sign_in_a_password_is_told_by_its_sign_alone() -> None:
    """The rest of the password would be taken for the host, and shown."""
    with pytest.raises(StoreError, match="write an @ in the user or the password as %40") as refused:
        Store("postgresql://argosy:hun@ter2@127.0.0.1:1/argosy")
    assert "ter2" not in str(refused.value)


def test_a_password_is_never_shown() -> None:
    """Logs and tracebacks are read by more people than passwords are meant for."""
    store = Store("postgresql://argosy:hunter2@127.0.0.1:1/argosy", timeout_s=2)

    with pytest.raises(StoreUnavailable, match="is up and ARGOSY_STORE_URL names it") as refused:
        store.open()

    assert "hunter2" not in repr(store) + str(refused.value)


def test_every_public_error_has_one_root() -> None:
    """`except ArgosyError` catches the store's errors too, under each name that the root has."""
    public = [getattr(producers, name) for name in producers.__all__]
    errors = [kind for kind in public if isinstance(kind, type) and issubclass(kind, Exception)]

    assert {StoreUnavailable, BrokerUnavailable} < set(errors)
    assert all(issubclass(kind, ArgosyError) for kind in errors)
    assert producers.ArgosyError is wire_errors.ArgosyError is ArgosyError


def test_a_closed_store_says_how_to_open_it() -> None:
    """Not an AttributeError from the depths."""
    with pytest.raises(StoreError, match=r"call open\(\) first"):
        Store("sqlite:////nowhere/argosy.db").jobs()


@pytest.mark.parametrize(
    ("sqlstate", "name", "message", "expected"),
    [
        (None, "OperationalError", "database is locked", StoreUnavailable),
        (None, "OperationalError", "database or disk is full", StoreUnavailable),
        (None, "OperationalError", "connection failed: refused", StoreUnavailable),
        ("57P01", "AdminShutdown", "terminating connection", StoreUnavailable),
        ("40P01", "DeadlockDetected", "deadlock detected", StoreUnavailable),
        ("53100", "DiskFull", "could not extend file", StoreUnavailable),
        ("25006", "ReadOnlySqlTransaction", "cannot execute INSERT", StoreUnavailable),
        ("42P01", "UndefinedTable", 'relation "jobs" does not exist', SchemaMismatch),
        (None, "OperationalError", "no such table: jobs", SchemaMismatch),
        ("22P02", "InvalidTextRepresentation", "invalid input syntax", StoreError),
        ("23505", "UniqueViolation", "duplicate key", StoreError),
        (None, "DatabaseError", "database disk image is malformed", StoreError),
    ],
)
def test_a_drivers_error_becomes_ours(
    sqlstate: str | None, name: str, message: str, expected: type[StoreError]
) -> None:
    """What passes by itself is retried; what does not is not. The writer depends on the difference."""
    driver = type(name, (Exception,), {"sqlstate": sqlstate})(message)

    error = translate(exc.DBAPIError("INSERT", {}, driver), "Store")

    assert type(error) is expected
    assert message in str(error)


@given(st.text())
def test_text_that_can_be_stored_is_stored_unchanged(value: str) -> None:
    """Only NUL is replaced in ordinary text; st.text() has no surrogates."""
    assert text(value) == value.replace("\0", "\ufffd")


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text()
        | st.text(alphabet="\0\ud800\udc00a\\u0"),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_can_be_stored_by_either_database(value: Any) -> None:
    """Whatever a model puts out: encodable as UTF-8, no NUL, no lone surrogate."""
    encoded = json_text(value, "output")

    assert encoded is None or "\0" not in encoded.encode().decode()


@pytest.mark.parametrize("value", [math.nan, [math.inf], {"a": object()}, {1: {2}}])
def test_what_is_not_json_is_refused(value: Any) -> None:
    """With the field named, so that the row can be found."""
    with pytest.raises(InvalidRow, match=r"^output: not a JSON value"):
        json_text(value, "output")


@given(st.lists(st.floats(width=32, allow_nan=False)))
def test_vectors_of_float32_are_exact(numbers: list[float]) -> None:
    """Packing and unpacking lose nothing that float32 has."""
    assert unpack_vector(pack_vector(numbers)) == numbers
    assert len(pack_vector(numbers)) == 4 * len(numbers)


def test_records_and_errors_load_no_database_code() -> None:
    """The client imports them at start, where every tenth of a second is felt."""
    code = "import sys, results_store.records, results_store.errors; print('sqlalchemy' in sys.modules)"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "False"
