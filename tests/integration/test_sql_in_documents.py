"""The queries in the documents run on both databases."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import text

from results_store.records import ResultState
from results_store.store import Store
from tests.end_to_end.documents import DOCUMENTS, ROOT
from tests.integration.rows import batch, new_envelope, result, submit

_SQL = re.compile(r"^```sql\n(.*?)^```", re.MULTILINE | re.DOTALL)


def queries() -> list[tuple[str, str]]:
    return [
        (f"{path.relative_to(ROOT)}:{text_[: found.start()].count(chr(10)) + 1}", found[1])
        for path in DOCUMENTS
        for text_ in [Path(path).read_text(encoding="utf-8")]
        for found in _SQL.finditer(text_)
    ]


@pytest.mark.parametrize("query", [sql for _, sql in queries()], ids=[place for place, _ in queries()])
def test_a_query_finds_something(store: Store, query: str) -> None:
    """A reader copies it as it stands."""
    submit(store, 2)
    error = {"kind": "ModelError", "message": "broke"}
    failed = result(0, state=ResultState.FAILED, output=None, error=error)
    store.commit([failed], done=["e0"], batches=[batch("b0")])
    store.add_envelopes([new_envelope("later")])
    with store._database.read() as connection:
        assert connection.execute(text(query.replace(":", r"\:"))).all()
