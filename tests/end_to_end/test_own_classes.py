"""A user's own class that is wrong beside models that are right: the item fails by name, and nobody else notices."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from producers import Client, InvalidInput
from producers.commands.main import main
from tests.end_to_end.documents import ROOT
from tests.end_to_end.processes import fleet_in
from tests.wrong_class import EXPECTED, FAULTS
from workers.fleet.local import LocalFleet

#: The limit of calls that hang is short, and long enough for a busy machine's batches.
FLEET = """
[worker]
models = ["wrong", "edited", "language"]
grace_s = 2.0
batch_timeout_s = 2.0
load_timeout_s = 20.0
[models.wrong]
class = "tests.wrong_class:Wrong"
[models.wrong.tasks.double]
kind = "custom"
[models.edited]
class = "edited_by_a_test:Edited"
[models.edited.tasks.edited]
kind = "custom"
[models.language.tasks]
language = "language-identification"
"""

EDITED = "from tests.wrong_class import Wrong\n\n\nclass Edited(Wrong):\n    pass\n"

#: Classes that cannot take the place of a class that is served.
UNLOADABLE = """
import os
import time

from tests.wrong_class import Wrong
from workers.models.interface.model import Model


class Unwritten(Model):
    def load(self, device):
        pass


class Raising(Wrong):
    def load(self, device):
        raise OSError("no such weights")


class Deadly(Wrong):
    def load(self, device):
        os._exit(7)


class Hanging(Wrong):
    def load(self, device):
        time.sleep(3600)


class Slow(Wrong):
    def load(self, device):
        time.sleep(0.5)
"""

TIMEOUT_S = 90


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "edited_by_a_test.py").write_text(EDITED, encoding="utf-8")
    (folder / "unloadable_by_a_test.py").write_text(UNLOADABLE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{ROOT}")
        patch.syspath_prepend(str(folder))
        with fleet_in(folder, FLEET) as fleet:
            yield fleet


@pytest.fixture(scope="module")
def client(fleet: LocalFleet) -> Iterator[Client]:
    with Client() as client:
        yield client


@pytest.fixture
def neighbours(client: Client) -> Iterator[None]:
    """The load of a built-in model, which shares the worker and its device with the class that is wrong: all right."""
    job = client.submit_many("language", ["the words of a text in English"] * 64)
    yield
    assert job.wait(timeout_s=TIMEOUT_S).succeeded == 64
    assert {row.output[0]["label"] for row in job.results()} == {"en"}


#: Each takes several limits, or starts of the device.
SLOW = ("prepare: loop", "collate: hang", "forward: death", "forward: hang")


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[pytest.mark.faults] if fault in SLOW else []) for fault in FAULTS]
)
@pytest.mark.usefixtures("neighbours")
def test_a_class_that_is_wrong_fails_its_item_by_name(fleet: LocalFleet, client: Client, fault: str) -> None:
    """Its neighbours in the envelope and in the batch have their own answers, and the worker is the same afterwards."""
    worker = fleet.workers[0].process
    asked = [{"number": 10 * FAULTS.index(fault) + place} for place in range(4)]
    job = client.submit_many(
        "double", [{**one, "fault": fault if place == 2 else ""} for place, one in enumerate(asked)]
    )
    job.wait(timeout_s=TIMEOUT_S)
    rows = {row.seq: row for row in job.results()}
    for place, one in enumerate(asked):
        if place == 2 and (said := EXPECTED[fault]) is not None:
            assert rows[place].error is not None, rows[place]
            assert re.match(said, "{kind}: {message}".format(**rows[place].error))
        else:
            assert rows[place].output == {"twice": 2.0 * one["number"]}, rows[place]
    assert fleet.workers[0].process is worker
    assert worker is not None
    assert worker.poll() is None


@pytest.mark.parametrize(
    ("class_", "said"),
    [
        ("Unwritten", "Can't instantiate abstract class Unwritten"),
        *(
            pytest.param(*one, marks=pytest.mark.faults)
            for one in (
                ("Raising", "no such weights"),
                ("Deadly", "ended 2 times"),
                ("Hanging", "was not loaded within 20 s"),
                ("Slow", None),
            )
        ),
    ],
)
@pytest.mark.usefixtures("neighbours")
def test_a_class_that_cannot_be_loaded_changes_nothing(
    fleet: LocalFleet, client: Client, class_: str, said: str | None
) -> None:
    """It is declared for a model that is served: the class before goes on, unless the new one is only slow."""
    worker, file = fleet.workers[0].process, Path(os.environ["ARGOSY_FLEET"])
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("edited_by_a_test:Edited", f"unloadable_by_a_test:{class_}"), encoding="utf-8")
    try:
        reloaded = CliRunner().invoke(main, ["models", "reload", "edited"])
    finally:
        file.write_text(text, encoding="utf-8")
    assert reloaded.exit_code == (0 if said is None else 1)
    assert (said or "") in reloaded.output, reloaded.output
    assert client.submit("edited", {"number": 4}).result(timeout_s=TIMEOUT_S) == {"twice": 8.0}
    again = CliRunner().invoke(main, ["models", "reload", "edited"])
    assert again.exit_code == 0, again.output
    assert fleet.workers[0].process is worker


def test_a_client_checks_inputs_by_the_schema_that_the_class_declares(client: Client) -> None:
    """It never imports the class; the worker has put the schema into the store."""
    with pytest.raises(InvalidInput, match=r"^input\.number: must be integer, not string"):
        client.submit("double", {"number": "one"})
    with pytest.raises(InvalidInput, match=r"^inputs\[1\]\.number: is missing|number: is missing"):
        client.submit_many("double", [{"number": 1}, {}])


def test_a_reload_is_refused_after_an_edit_of_the_class(fleet: LocalFleet, client: Client) -> None:
    """The worker would go on with the code that it imported, and call it the new version."""
    file = Path(os.environ["ARGOSY_FLEET"]).with_name("edited_by_a_test.py")
    assert CliRunner().invoke(main, ["models", "reload", "edited"]).exit_code == 0
    file.write_text(EDITED + "    # edited\n", encoding="utf-8")
    try:
        refused = CliRunner().invoke(main, ["models", "reload", "edited"])
    finally:
        file.write_text(EDITED, encoding="utf-8")
    assert refused.exit_code == 1
    assert "edited_by_a_test:Edited has other code now than when this worker imported it" in refused.output
    assert "restart the worker" in refused.output
    assert client.submit("edited", {"number": 4}).result(timeout_s=TIMEOUT_S) == {"twice": 8.0}
