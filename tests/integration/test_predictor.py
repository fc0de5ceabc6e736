"""Rows computed outside of a fleet: the columns of a fleet's Parquet files, and each wrong row by itself."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from producers.wire.errors import ConfigurationError, InvalidInput
from results_store.export.parquet_export import SCHEMA
from workers import predictor
from workers.fleet.predictor import TOGETHER, PredictorStopped

FLEET = """
[worker]
profile = "cpu"
[models.sure]
class = "tests.sure_model:SureModel"
source = { path = "." }
options = { says = "rex" }
[models.sure.tasks.animal]
kind = "text-classification"
[models.sure.tasks.plant]
kind = "text-classification"
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("predictor") / "fleet.toml"
    file.write_text(FLEET, "utf-8")
    return file


@pytest.fixture(scope="module")
def computed(config: Path) -> Iterator[Any]:
    made = predictor("sure", tasks=["animal"], input_column="text", key_column="id", config=config)()
    yield made
    made.close()


def test_rows_have_the_columns_of_a_fleets_files(computed: Any) -> None:
    """In the order of the batch, more than are prepared together; wrong ones fail by themselves."""
    texts: list[Any] = [f"text{number} 0.9" for number in range(2 * TOGETHER + 3)]
    texts[1], texts[TOGETHER] = None, 17
    table = computed({"text": texts, "id": [f"k{number}" for number in range(len(texts))]})
    assert table.schema == SCHEMA
    rows = table.to_pylist()
    assert [row["key"] for row in rows] == [f"k{number}" for number in range(len(texts))]
    assert [row["seq"] for row in rows if row["state"] == "failed"] == [1, TOGETHER]
    assert rows[1]["error_kind"] == "InvalidInput"
    assert "text" in rows[1]["error_message"]
    assert json.loads(rows[2]["output"])[0]["score"] == pytest.approx(0.9)
    assert {row["model"] for row in rows} == {"sure"}


@pytest.mark.parametrize(
    "batch",
    [
        {"text": np.array(["one 0.9", "two 0.3"]), "id": np.array([1, 2])},
        pa.table({"text": ["one 0.9", "two 0.3"], "id": [1, 2]}),
        {"text": ("one 0.9", "two 0.3"), "id": (1, 2), "more": (None, None)},
    ],
    ids=["numpy", "arrow", "tuples"],
)
def test_batches_of_several_forms(computed: Any, batch: Any) -> None:
    rows = computed(batch).to_pylist()
    assert [(row["key"], row["state"]) for row in rows] == [("1", "succeeded"), ("2", "succeeded")]


def test_an_empty_batch_is_an_empty_table(computed: Any) -> None:
    assert computed({"text": [], "id": []}).schema == SCHEMA


def test_a_column_that_is_missing_is_named(computed: Any) -> None:
    with pytest.raises(InvalidInput, match="id: is not a column of the batch; its columns are: text"):
        computed({"text": ["one 0.9"]})


def test_each_task_has_a_row(config: Path) -> None:
    own = predictor("sure", config=config)()
    rows = own({"input": ["one 0.9", "two 0.3"]}).to_pylist()
    assert [(row["seq"], row["task"], row["key"]) for row in rows] == [
        (0, "animal", None),
        (0, "plant", None),
        (1, "animal", None),
        (1, "plant", None),
    ]
    own.close()
    with pytest.raises(PredictorStopped, match="2 rows are to be computed again"):
        own({"input": ["one 0.9", "two 0.3"]})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tasks": ["fish"]}, "tasks: 'fish' is not a task of 'sure'; it has animal, plant"),
        ({"tasks": "animal"}, r"write \['animal'\]"),
        ({"params": {"fish": {}}}, "params.fish: is not one of the tasks"),
        ({"device": "cuda:7"}, "no device 'cuda:7'"),
    ],
)
def test_wrong_options_are_refused_before_a_model_loads(config: Path, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        predictor("sure", config=config, **options)()


def test_wrong_parameters_are_refused_before_a_model_loads(config: Path) -> None:
    with pytest.raises(InvalidInput, match=r"params\.animal"):
        predictor("sure", config=config, params={"animal": {"wings": 2}})()


def test_pictures_are_decoded_apart(pulled_models: object) -> None:
    """A broken one, and one that is none, cost their rows alone."""
    made = io.BytesIO()
    Image.effect_noise((400, 300), 60).convert("RGB").save(made, "JPEG")
    picture = made.getvalue()
    own = predictor("vision", tasks=["image-classification"], device="cpu")()
    rows = own({"input": [picture, picture[:500], "no picture", picture]}).to_pylist()
    own.close()
    assert [row["state"] for row in rows] == ["succeeded", "failed", "failed", "succeeded"]
    assert rows[0]["output"] == rows[3]["output"]
