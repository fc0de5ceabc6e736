"""What the gateway keeps in the store, on each database: keys, files in parts, batches under a lease."""

from __future__ import annotations

from dataclasses import replace

from results_store.gateway.api_keys import ApiKey
from results_store.gateway.gateway_batches import FileBatch
from results_store.gateway.gateway_files import StoredFile
from results_store.store import Store

KEY = ApiKey(id="k1", name="laptop", tenant="ours", operator=False, secret_hash="ab", created_at=1.0)
FILE = StoredFile(id="f1", tenant="ours", name="in.jsonl", purpose="batch", created_at=1.0)
BATCH = FileBatch(id="b1", tenant="ours", status="validating", detail={"n": 1}, created_at=1.0)


def test_a_keys_name_is_taken_once(store: Store) -> None:
    """Adding says whether it did; what was removed is gone, and its name free."""
    assert store.keys.add(KEY)
    assert not store.keys.add(replace(KEY, id="k2"))
    assert store.keys.all() == [KEY]
    assert store.keys.find("k1") == KEY
    assert store.keys.remove("laptop")
    assert not store.keys.remove("laptop")
    assert store.keys.find("k1") is None
    assert store.keys.add(replace(KEY, id="k2", operator=True, expires_at=9.5, rate_per_s=0.5))
    assert store.keys.all() == [replace(KEY, id="k2", operator=True, expires_at=9.5, rate_per_s=0.5)]


def test_a_file_is_there_once_it_is_whole_and_for_its_owner(store: Store) -> None:
    """Before that it is nobody's, and after a day it is rubbish."""
    for number in range(3):
        store.files.begin(replace(FILE, id=f"f{number}", created_at=float(number)))
        store.files.append(f"f{number}", 0, b"one\x00")
        store.files.append(f"f{number}", 1, b"two")
    store.files.finish("f1", size=7, at=5.0)
    whole = replace(FILE, bytes=7, stored_at=5.0)

    assert store.files.find("f0", tenant="ours") is None
    assert store.files.find("f1", tenant="ours") == store.files.find("f1", tenant=None) == whole
    assert store.files.find("f1", tenant="theirs") is None
    assert [store.files.part("f1", number) for number in range(3)] == [b"one\x00", b"two", None]
    assert store.files.remove_unfinished(begun_before=1.5) == 1
    assert store.files.part("f0", 0) is None
    assert store.files.part("f2", 0) is not None
    store.files.remove("f1")
    assert store.files.part("f1", 0) is None


def test_files_page_by_page(store: Store) -> None:
    """In either order, of one purpose, of one tenant."""
    for number in range(5):
        purpose = "batch" if number % 2 else "batch_output"
        store.files.begin(replace(FILE, id=f"f{number}", purpose=purpose, tenant="ours" if number < 4 else "theirs"))
        store.files.finish(f"f{number}", size=0, at=1.0)

    def ids(**filters: object) -> list[str]:
        chosen = {"tenant": "ours", "purpose": None, "after": None, "limit": 10, **filters}
        return [file.id for file in store.files.page(**chosen)]  # type: ignore[arg-type]

    assert ids() == ["f3", "f2", "f1", "f0"]
    assert ids(tenant=None, limit=2) == ["f4", "f3"]
    assert ids(after="f2") == ["f1", "f0"]
    assert ids(after="f1", newest_first=False) == ["f2", "f3"]
    assert ids(purpose="batch") == ["f3", "f1"]


def test_one_worker_at_a_time_has_a_batch(store: Store) -> None:
    """Another takes it when the lease has run out, and then the first cannot write any more."""
    store.file_batches.add(BATCH)
    store.file_batches.add(replace(BATCH, id="b2"))
    assert store.file_batches.take("one", now=10, leased_until=20, limit=1) == [BATCH]
    assert [one.id for one in store.file_batches.take("two", now=10, leased_until=20, limit=9)] == ["b2"]
    assert store.file_batches.take("two", now=20, leased_until=30, limit=9) == []

    assert [one.id for one in store.file_batches.take("two", now=21, leased_until=30, limit=1)] == ["b1"]
    assert store.file_batches.renew("b1", "one", leased_until=99) is None
    assert not store.file_batches.record(replace(BATCH, status="in_progress"), "one")
    assert store.file_batches.record(replace(BATCH, status="in_progress"), "two")
    assert store.file_batches.renew("b1", "two", leased_until=None) == replace(BATCH, status="in_progress")

    done = replace(BATCH, status="completed", finished_at=50.0, detail={"counts": [1, 2]})
    assert store.file_batches.record(done, "two")
    assert store.file_batches.find("b1", tenant="ours") == done
    assert store.file_batches.find("b1", tenant="theirs") is None
    assert [one.id for one in store.file_batches.take("three", now=99, leased_until=100, limit=9)] == ["b2"]
    assert [one.id for one in store.file_batches.page(tenant="ours", after=None, limit=9)] == ["b2", "b1"]
    assert [one.id for one in store.file_batches.page(tenant=None, after="b2", limit=9)] == ["b1"]


def test_a_cancelled_batch_is_not_recorded_as_going_on(store: Store) -> None:
    """Whoever works on it finds out with the next thing it wants to store, at the latest."""
    store.file_batches.add(BATCH)
    store.file_batches.take("one", now=10, leased_until=20, limit=1)
    store.file_batches.cancel("b1", 12.0)

    assert not store.file_batches.record(replace(BATCH, status="finalizing"), "one")
    assert store.file_batches.record(replace(BATCH, status="cancelling", detail={"n": 2}), "one")
    found = store.file_batches.find("b1", tenant=None)
    assert found == replace(BATCH, status="cancelling", detail={"n": 2}, cancelled_at=12.0)
    assert store.file_batches.record(replace(BATCH, status="cancelled", finished_at=13.0), "one")
    store.file_batches.cancel("b1", 14.0)
    found = store.file_batches.find("b1", tenant=None)
    assert found == replace(BATCH, status="cancelled", finished_at=13.0, cancelled_at=12.0)
