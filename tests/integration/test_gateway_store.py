"""What the gateway keeps in the store, on each database: keys, files in parts, batches."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from results_store.gateway.api_keys import ApiKey
from results_store.gateway.gateway_batches import FileBatch
from results_store.gateway.gateway_files import StoredFile
from results_store.sql.database import Database, Weight
from results_store.store import Store
from tests.integration import batches_before

KEY = ApiKey(id="k1", name="laptop", tenant="ours", role="member", all_tenants=False, secret_hash="ab", created_at=1.0)
FILE = StoredFile(id="f1", tenant="ours", name="in.jsonl", purpose="batch", created_at=1.0)
BATCH = FileBatch(id="b1", tenant="ours", detail={"n": 1}, created_at=1.0)


def test_a_keys_name_is_taken_once(store: Store) -> None:
    """Adding says whether it did; what was removed is gone, and its name free."""
    assert store.keys.add(KEY)
    assert not store.keys.add(replace(KEY, id="k2"))
    assert store.keys.all() == [KEY]
    assert store.keys.find("k1") == KEY
    assert store.keys.remove("laptop")
    assert not store.keys.remove("laptop")
    assert store.keys.find("k1") is None
    assert store.keys.add(replace(KEY, id="k2", role="viewer", all_tenants=True, expires_at=9.5, rate_per_s=0.5))
    assert store.keys.all() == [replace(KEY, id="k2", role="viewer", all_tenants=True, expires_at=9.5, rate_per_s=0.5)]


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


def test_a_batch_ends_once_and_with_its_files(store: Store) -> None:
    """Gateways share batches without leases: whoever comes second with an end changes nothing."""
    store.file_batches.add(BATCH)
    store.file_batches.add(replace(BATCH, id="b2"))
    assert store.file_batches.unfinished() == [BATCH, replace(BATCH, id="b2")]
    assert store.file_batches.note("b1", {"job": "j"}) == replace(BATCH, detail={"n": 1, "job": "j"})

    output = replace(FILE, id="f1", purpose="batch_output", bytes=7, stored_at=5.0)
    done = replace(BATCH, detail={"n": 2, "job": "j"}, finished_at=50.0)
    assert store.file_batches.note("b1", {"n": 2}, finished_at=50.0, files=[output]) == done
    other = replace(output, id="f2")
    assert store.file_batches.note("b1", {"n": 3}, finished_at=51.0, files=[other]) is None
    assert store.file_batches.note("b3", {"n": 3}) is None
    assert store.file_batches.find("b1", tenant="ours") == done
    assert store.file_batches.find("b1", tenant="theirs") is None
    assert store.files.find("f1", tenant="ours") == output
    assert store.files.find("f2", tenant="ours") is None
    assert [one.id for one in store.file_batches.unfinished()] == ["b2"]
    assert [one.id for one in store.file_batches.page(tenant="ours", after=None, limit=9)] == ["b2", "b1"]
    assert [one.id for one in store.file_batches.page(tenant=None, after="b2", limit=9)] == ["b1"]


def test_what_several_note_of_a_batch_at_once_is_all_kept(store: Store) -> None:
    """Its owner cancels it while a gateway notes how far it is: neither note undoes the other."""
    store.file_batches.add(BATCH)
    names = [f"n{number}" for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        noted = list(pool.map(lambda name: store.file_batches.note("b1", {name: name}), names))
    assert None not in noted
    found = store.file_batches.find("b1", tenant=None)
    assert found == replace(BATCH, detail={"n": 1, **{name: name for name in names}})


def test_gateways_of_two_versions_leave_each_others_batches_alone(store: Store, store_url: str) -> None:
    """During an upgrade either version shows and cancels the batches of the other, and works on its own."""
    now = time.time()
    found = Database(store_url, timeout_s=30)
    found.open()
    store.file_batches.add(BATCH)
    with found.write(Weight.ACCEPTED) as connection:
        batches_before.insert_batch(connection, "batch_2", "validating", {"counts": {"total": 0}})
        assert batches_before.take(connection, "older", now=now, leased_until=now + 30) == ["batch_2"]
        batches_before.cancel(connection, "b1", 5.0)
        assert batches_before.seen(connection, "b1") == ("cancelling", 5.0)

    assert store.file_batches.adopt(now=now) == 0
    (mine,) = store.file_batches.unfinished()
    assert (mine.id, mine.detail["cancelling_at"], mine.status) == ("b1", 5.0, "cancelling")
    ended = store.file_batches.note("b1", {"job": "j"}, finished_at=6.0)
    assert ended is not None
    assert ended.status == "cancelled"
    store.file_batches.note("batch_2", {"cancelling_at": 7.0})
    with found.write(Weight.ACCEPTED) as connection:
        assert batches_before.seen(connection, "b1") == ("cancelled", 5.0)
        assert batches_before.seen(connection, "batch_2") == ("cancelling", 7.0)

    assert store.file_batches.adopt(now=now + 31) == 1
    (left,) = store.file_batches.unfinished()
    assert (left.id, left.status) == ("batch_2", "cancelling")
    found.close()
