"""`[edge]`: checked once at the start, each error with its setting and a remedy."""

from __future__ import annotations

from datetime import time
from pathlib import Path

import pytest

from producers.wire.edge.cascade_tasks import programs_catalogue
from producers.wire.edge.edge_settings import EdgeSettings, EdgeTask, edge_settings
from producers.wire.errors import ConfigurationError, InvalidInput
from workers import settings

HEAD = '[edge]\nsite = "harbour"\ncentre = "https://centre.example"\n'
TASK = "[edge.tasks.sentiment]\n"


def file(folder: Path, text: str) -> Path:
    path = folder / "fleet.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (HEAD, "edge.tasks: is missing"),
        (HEAD.replace("harbour", "a/b") + TASK, "`site` must be a name"),
        (HEAD.replace("https", "ftp") + TASK, "`centre` must be the address of a gateway"),
        (HEAD.replace("https", "http") + TASK, "`centre` must begin with https://"),
        (HEAD.replace("https://", "https://user:word@") + TASK, "write the key into `key_file`"),
        (HEAD + 'when_full = "wait"\n' + TASK, "one of drop-oldest, refuse-new"),
        (HEAD + "spool_item = 3\n" + TASK, "edge.spool_item: no such setting; did you mean 'spool_items'"),
        (HEAD + "max_kbit_s = -1\n" + TASK, "`max_kbit_s` must be a number of kilobits"),
        (HEAD + 'hours = "22-6"\n' + TASK, "`hours` must be two times of a day"),
        (HEAD + 'hours = "22:00-24:00"\n' + TASK, "`hours` must be two times of a day"),
        (HEAD + TASK + "threshold = 2\n", "edge.tasks.sentiment: `threshold` must be 0 to 1"),
        (HEAD + TASK + "most_side = 224\n", "edge.tasks.sentiment.most_side: is for pictures that get labels"),
        (HEAD + "[edge.tasks.image-classification]\nmost_side = 8\n", "`most_side` must be 32 pixels or more"),
        (
            HEAD + '[edge.tasks.new]\nonly_at_centre = true\nkind = "object-detection"\nmost_side = 640\n',
            "edge.tasks.new.most_side: is for pictures that get labels",
        ),
        (HEAD + TASK + "stay_on_site = true\nonly_at_centre = true\n", "answered nowhere"),
        (HEAD + "[edge.tasks.mood]\n", "edge.tasks.mood.site: no task 'mood' at this site"),
        (HEAD + "[edge.tasks.embedding]\n", "have no score that a threshold could judge"),
        (HEAD + "[edge.tasks.new]\nonly_at_centre = true\n", "edge.tasks.new.kind: no kind ''"),
        (HEAD + '[edge.tasks.new]\nonly_at_centre = true\nkind = "feature-extraction"\n', "are not fetched"),
        (HEAD + TASK + '[blobs]\nurl = "file:///tmp"\n', "blobs.url: is for fleets whose inputs lie beside the store"),
        (HEAD + TASK + '[models.edge.tasks.x]\nkind = "text-classification"\n', "models.edge: this name is taken"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, problem: str) -> None:
    """Before anything is started or sent."""
    with pytest.raises(ConfigurationError) as raised:
        programs_catalogue(file(tmp_path, text))
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("hours", "sends"), [("", "xxxx"), ("08:00-18:00", ".x.."), ("22:00-06:00", "x..x"), ("07:00-07:00", "xxxx")]
)
def test_hours_may_span_midnight(hours: str, sends: str) -> None:
    """The end is no longer in them."""
    given = EdgeSettings(site="s", centre="https://c", hours=hours, tasks={"sentiment": EdgeTask()})
    assert "".join(".x"[given.sends_at(time(hour))] for hour in (1, 12, 18, 23)) == sends


def test_programs_and_workers_read_one_file(tmp_path: Path) -> None:
    """To programs the task belongs to the forwarder, to workers to its model; the rest is the same."""
    path = file(tmp_path, HEAD + 'key_file = "centre.key"\n' + TASK)
    theirs, own = programs_catalogue(path), settings.load(path)
    assert (theirs.tasks["sentiment"].model, own.catalogue.tasks["sentiment"].model) == ("edge", "text")
    assert theirs.tasks["topic"] == own.catalogue.tasks["topic"]
    assert own.served == ("text", "vision")
    assert own.edge is not None
    assert own.edge.key_file == str(tmp_path / "centre.key")


def test_the_mark_is_a_parameter_and_the_kinds_own_checks_still_hold(tmp_path: Path) -> None:
    """`top_k` is the kind's, `stay_on_site` the cascade's."""
    catalogue = programs_catalogue(file(tmp_path, HEAD + TASK))
    task = catalogue.tasks["sentiment"]
    assert catalogue.check_params(task, {"top_k": 2, "stay_on_site": True}, field="params")
    for wrong in ({"top_k": 0}, {"stay_on_site": "yes"}, {"stay": True}):
        with pytest.raises(InvalidInput):
            catalogue.check_params(task, wrong, field="params")


def test_a_key_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    """Its absence is said at the start, not at the first item."""
    path = file(tmp_path, HEAD + TASK)
    found = edge_settings(path)
    assert found is not None
    assert found.key({"ARGOSY_EDGE_KEY": "secret\n"}) == "secret"
    with pytest.raises(ConfigurationError, match="ARGOSY_EDGE_KEY is not set"):
        found.key({})
