"""What tells one table of settings from another."""

from __future__ import annotations

import msgspec

from workers.node import declared_settings
from workers.settings import ModelSettings


class LaterSettings(ModelSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Those of a release that knows one more."""

    share: float = 0.5


def test_a_release_with_more_settings_is_no_change_of_the_file() -> None:
    """Else `argosy up` would go back from what was reloaded to what the file says, after an upgrade."""
    table = {"source": {"path": "/srv/v1"}, "batch_rows": 8, "options": {"b": 1, "a": [2]}}
    now, later = (msgspec.convert(table, kind) for kind in (ModelSettings, LaterSettings))
    assert declared_settings.digest(now) == declared_settings.digest(later)
    assert declared_settings.digest(
        msgspec.convert({**table, "share": 0.7}, LaterSettings)
    ) != declared_settings.digest(now)


def test_every_change_tells() -> None:
    table = {"source": {"path": "/srv/v1"}, "batch_rows": 8, "options": {"b": 1, "a": [2]}}
    same = {**table, "options": {"a": [2], "b": 1}, "backend": "auto"}
    changes = [
        {"batch_rows": 64},
        {"batch_rows": 9},
        {"source": {"path": "/srv/v2"}, "options": {}},
        {"options": {"b": 1}},
    ]
    tables = [table, *({**table, **change} for change in changes)]
    digests = [declared_settings.digest(msgspec.convert(one, ModelSettings)) for one in tables]
    assert len(set(digests)) == len(tables)
    assert declared_settings.digest(msgspec.convert(same, ModelSettings)) == digests[0]
