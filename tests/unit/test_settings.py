"""Settings: typed, checked once, each error naming its place."""

from __future__ import annotations

import pytest

from producers.wire.catalogue import Catalogue
from producers.wire.errors import ConfigurationError
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
        ("[worker]\nconcurency = 1\n", "worker.concurency: no such setting; did you mean 'concurrency'"),
        ('[worker]\nprofile = "gpus"\n', "worker.profile: .*; one of auto, cpu, gpu"),
        ('[worker]\nmodels = ["txt"]\n', "worker.models: no model 'txt'; did you mean 'text'"),
        ("[worker]\ngrace_s = -1\n", "worker: `grace_s` must be 0 or more"),
        ("[worker]\nlease_s = nan\n", "worker: `lease_s` must be a number of seconds"),
        ("[workers]\nconcurrency = 1\n", "workers: no such table; did you mean 'worker'"),
        ("worker = 3\n", "worker: Expected `object`"),
        ('[result_cache]\ntasks = ["sentimnt"]\n', "result_cache.tasks: no task 'sentimnt'; did you mean 'sentiment'"),
        ("[result_cache]\nkeep_s = 0\n", "result_cache: `keep_s` must be over 0"),
        (
            '[result_cache]\ntasks = ["sentiment"]\n[worker]\ndrop_inputs = true\n',
            "result_cache: digests of inputs would be kept, which `drop_inputs` under .worker. forbids; choose",
        ),
        (
            '[models.p]\nsource = { path = "/m" }\ntasks = { p = "text-to-image" }\n[result_cache]\ntasks = ["p"]\n',
            "result_cache.tasks: the results of 'p' are files, which belong to their job; leave it out",
        ),
        ("[worker]\nlease_s = 1e300\n", "worker: `lease_s` must be a number of seconds"),
        ('[worker]\nmemory_budget = "' + "9" * 400 + ' GB"\n', "worker: `memory_budget` is more than any device has"),
        ('[worker]\nschedules = [" "]\n', "worker: `schedules` has an empty place"),
        ('[worker]\ntrainings = [" "]\n', "worker: `trainings` has an empty place"),
        ('[worker]\ntrainings = ["s3://logs/"]\n', "worker: `trainings` has 's3://logs/', which is no folder"),
        ('[worker]\nschedules = ["s3://logs"]\n', "worker: `schedules` has 's3://logs', .* write s3://bucket/"),
        ('[worker]\nschedules = ["file:///etc/"]\n', "worker: `schedules` has 'file:///etc/'"),
        ('[worker]\nschedules = ["s3://logs/../"]\n', "worker: `schedules` has 's3://logs/../'"),
        ('[worker]\nschedules = ["zip://a/::s3://b/"]\n', "worker: `schedules` has 'zip://a/::s3://b/'"),
        ('[limits]\nallowed_roots = [" "]\n', "limits: `allowed_roots` has an empty path"),
        ('[limits]\nallowed_hosts = ["https://x.example/"]\n', "limits: `allowed_hosts` has 'https://x.example/'"),
        ('[limits]\nallowed_hosts = ["*"]\n', "limits: `allowed_hosts` has '\\*', .*; write host, host:port or "),
        ('[limits]\nallowed_hosts = ["ftp://x.example"]\n', "limits: `allowed_hosts` has 'ftp://x.example'"),
        ("[admission]\nmax_queued_s = { bulk = nan }\n", "admission.*: `max_queued_s.bulk` must be over 0"),
        ('[models.text.tasks]\n" " = "text-classification"\n', "models.text.tasks. : name a task by 1 to 255 printable"),
        ('[models.text.tasks]\n"a\\u0000" = "text-classification"\n', "name a task by 1 to 255 printable"),
        ("x = " + "[" * 3000 + "]" * 3000 + "\n", "not valid TOML"),
        ("[limits]\nmax_input_bytes = 0\n", "limits: `max_input_bytes` must be 1 or more"),
        ("[models.text]\nbatch_row = 1\n", "models.text.batch_row: no such setting; did you mean 'batch_rows'"),
        ('[models.text]\nbackend = "onyx"\n', "models.text.backend: .*; one of auto, torch, onnxruntime"),
        ('[models.text]\nuses = { other = "txt" }\n', "models.text.uses: no model 'txt'"),
        ('[models."a/1"]\nsource = { path = "/m" }\n', "models.a/1: use letters"),
        ("[models.mine]\nbatch_rows = 1\n", "models.mine.source: is missing"),
        ('[models.text]\ntasks = "mood"\n', "models.text.tasks: Expected `object`"),
        ("[admission]\nmax_queued_s = { urgent = 1 }\n", "admission.max_queued_s: .*; one of interactive, standard"),
        ('[broker]\nuri = "redis://x"\n', "broker.uri: no such setting; did you mean 'url'"),
        ('[store]\nurl = "mysql://x"\n', "store.url: must look like sqlite:"),
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


def test_what_other_tools_write_is_read(tmp_path, monkeypatch):
    """The mark of Windows' editors, the user's folder, folders beside the file, a port that is usual, a model twice."""
    text = '[worker]\nmodels = ["text", "text"]\nschedules = ["rows", "s3://logs/"]\n[limits]\nallowed_roots = ["~/photos", "clips", "/srv"]\n'
    (tmp_path / "fleet.toml").write_text(text, encoding="utf-8-sig")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = settings.load(environment={"ARGOSY_FLEET": "~/fleet.toml"})
    assert found.limits.allowed_roots == (str(tmp_path / "photos"), str(tmp_path / "clips"), "/srv")
    assert found.worker.schedules == (str(tmp_path / "rows"), "s3://logs/")
    assert found.served == ("text",)
    assert Catalogue.from_toml("~/fleet.toml").limits == Catalogue.builtin().limits


def test_the_environment_says_before_the_file_where_the_broker_is(tmp_path, monkeypatch):
    """`argosy up` tells its workers by the environment, whatever their file says."""
    found = load(tmp_path, '[broker]\nurl = "redis://file/0"\n[store]\nurl = "sqlite:////file.db"\n')
    monkeypatch.delenv("ARGOSY_STORE_URL", raising=False)
    monkeypatch.setenv("ARGOSY_BROKER_URL", "redis://environment/0")
    assert found.connection.broker_url == "redis://environment/0"
    assert found.connection.store_url == "sqlite:////file.db"


def test_a_missing_file_is_an_error_with_its_variable():
    """ARGOSY_FLEET that names nothing must not fall back to the built-in settings in silence."""
    with pytest.raises(ConfigurationError, match="ARGOSY_FLEET"):
        settings.load(environment={"ARGOSY_FLEET": "/nowhere/fleet.toml"})
