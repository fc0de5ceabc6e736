"""Settings: typed, checked once, each error naming its place."""

from __future__ import annotations

import pytest

from producers.catalogue import Catalogue
from producers.errors import ConfigurationError
from workers import settings


def load(tmp_path, text: str):
    path = tmp_path / "fleet.toml"
    path.write_text(text, encoding="utf-8")
    return settings.load(path, environment={})


def test_without_a_file_there_are_the_built_in_models():
    """And they serve exactly the tasks that producers know of without any settings."""
    found = settings.load(environment={})
    assert set(found.served) == {"text", "vision"}
    assert set(found.catalogue.tasks) == set(Catalogue.builtin().tasks)


def test_a_file_extends_a_model_and_replaces_its_source(tmp_path):
    """One key can be changed without repeating the table, but never half a source."""
    found = load(
        tmp_path, '[models.text]\nbatch_rows = 7\n[models.text.source]\npath = "/m"\n[worker]\nconcurrency = 3\n'
    )
    assert found.models["text"].batch_rows == 7
    assert found.models["text"].batch_cost == settings.load(environment={}).models["text"].batch_cost
    assert found.models["text"].source == {"path": "/m"}
    assert found.worker.concurrency == 3


def test_a_file_adds_a_model_with_its_tasks(tmp_path):
    """A user's model is served, and its tasks are known, by TOML alone."""
    found = load(
        tmp_path,
        '[models.mine]\nclass = "m:M"\nsource = { path = "/m" }\nbatch_cost = 1\nbatch_rows = 1\n'
        '[models.mine.tasks.toxicity]\nkind = "text-classification"\n',
    )
    assert found.catalogue.task("toxicity").model == "mine"
    assert "sentiment" in found.catalogue.tasks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[worker]\nconcurrency = 0\n", "worker.*`concurrency` must be 1 to 1024"),
        ("[worker]\nconcurency = 1\n", "worker.*concurency"),
        ("[worker]\nbulk_share = 0.95\n", "worker.*`bulk_share` must be 0 to 0.9"),
        ('[worker]\ngrace_s = "long"\n', "worker.grace_s.*float"),
        ('[models.text]\nbatch_rows = "many"\n', r"models.*batch_rows"),
        ("[worker\n", "not valid TOML"),
        ('[models.x]\nclass = "m:M"\nsource = {}\nbatch_cost = 1\nbatch_rows = 1\n[models.x.tasks.t]\nkind = "magic"\n', "models.x.tasks.t.kind"),
    ],
)  # fmt: skip
def test_an_error_names_file_and_setting(tmp_path, text, message):
    """Whoever wrote the file must find the line."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        load(tmp_path, text)
    assert "fleet.toml" in str(caught.value)


def test_a_missing_file_is_an_error_with_its_variable():
    """ARGOSY_FLEET that names nothing must not fall back to the built-in settings in silence."""
    with pytest.raises(ConfigurationError, match="ARGOSY_FLEET"):
        settings.load(environment={"ARGOSY_FLEET": "/nowhere/fleet.toml"})
