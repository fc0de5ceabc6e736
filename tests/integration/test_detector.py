"""The built-in detector: a TensorFlow.js graph run in torch, boxes in the image's own pixels; on photographs if it was pulled."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from producers.wire.catalogue import Catalogue
from producers.wire.errors import ConfigurationError
from tests.serving import DEVICE, answered, assert_alike
from workers import settings
from workers.models.built_in.vision import detector
from workers.models.built_in.vision.detector import DetectorModel
from workers.models.converting import coco_classes, tfjs
from workers.models.converting.graph_network import GraphNetwork
from workers.models.interface.model import ModelSpec
from workers.models.sources import model_source

# --- graphs ---------------------------------------------------------------------------------------


def written(folder: Path, nodes: list[dict[str, Any]], constants: dict[str, np.ndarray[Any, Any]], output: str) -> Path:
    """Write a graph as TensorFlow.js does, floats in half precision."""
    weights, content = [], b""
    for name, values in constants.items():
        kept = values.astype(np.float16) if values.dtype == np.float32 else values
        content += kept.tobytes()
        described: dict[str, Any] = {"name": name, "shape": list(values.shape), "dtype": str(values.dtype)}
        weights.append(described | ({"quantization": {"dtype": "float16"}} if kept.dtype != values.dtype else {}))
        nodes = [*nodes, {"name": name, "op": "Const"}]
    (folder / "weights.bin").write_bytes(content)
    graph = {
        "modelTopology": {"node": nodes},
        "weightsManifest": [{"paths": ["weights.bin"], "weights": weights}],
        "signature": {"outputs": {"out": {"name": f"{output}:0"}}},
    }
    path = folder / "model.json"
    path.write_text(json.dumps(graph))
    return path


def list_of(*values: int) -> dict[str, Any]:
    return {"list": {"i": [str(value) for value in values]}}


CONV = {
    "strides": list_of(1, 2, 2, 1),
    "dilations": list_of(1, 1, 1, 1),
    "padding": {"s": base64.b64encode(b"SAME").decode()},
}


def test_a_graph_computes_what_its_nodes_say_for_every_row_of_a_batch(tmp_path: Path) -> None:
    """A convolution as TensorFlow pads it (an odd row more below), its bias, and a reshape that was frozen for one row."""
    random = np.random.default_rng(0)
    filters = random.integers(-8, 8, (3, 3, 2, 4)).astype(np.float32) / 8
    bias = random.integers(-8, 8, 4).astype(np.float32) / 8
    nodes = [
        {"name": "sum", "op": "AddV2", "input": ["conv", "bias"]},  # before what it needs
        {"name": "x", "op": "Placeholder"},
        {"name": "conv", "op": "Conv2D", "input": ["x", "filters"], "attr": CONV},
        {"name": "flat", "op": "Reshape", "input": ["relu", "shape"]},
        {"name": "relu", "op": "LeakyRelu", "input": ["sum"], "attr": {"alpha": {"f": 0.25}}},
    ]
    constants = {"filters": filters, "bias": bias, "shape": np.array([1, 12, -1], dtype=np.int32)}
    tfjs.convert(written(tmp_path, nodes, constants, "flat"), tmp_path / "made")
    network = GraphNetwork(tmp_path / "made")
    rows = random.normal(size=(3, 6, 5, 2)).astype(np.float32)
    found = network(torch.from_numpy(rows))["flat"].numpy()
    assert found.shape == (3, 12, 3)
    for row, own in zip(rows, found, strict=True):
        np.testing.assert_allclose(own.reshape(3, 3, 4), by_hand(row, filters, bias), atol=1e-5)


def by_hand(row: Any, filters: Any, bias: Any) -> Any:
    """TensorFlow's SAME with strides of 2: of 6 rows one is missing, which goes below; of 5 columns one on each side."""
    padded = np.pad(row, ((0, 1), (1, 1), (0, 0)))
    made = np.zeros((3, 3, 4))
    for down in range(3):
        for right in range(3):
            seen = padded[2 * down : 2 * down + 3, 2 * right : 2 * right + 3]
            made[down, right] = np.einsum("hwi,hwio->o", seen, filters) + bias
    return np.where(made > 0, made, made / 4)


def test_what_would_mix_rows_is_refused(tmp_path: Path) -> None:
    nodes = [{"name": "x", "op": "Placeholder"}, {"name": "flat", "op": "Reshape", "input": ["x", "shape"]}]
    path = written(tmp_path, nodes, {"shape": np.array([6, 2], dtype=np.int32)}, "flat")
    with pytest.raises(ValueError, match=r"a reshape to \[6, 2\] would mix the rows of a batch"):
        tfjs.convert(path, tmp_path / "made")


# --- boxes ----------------------------------------------------------------------------------------


def test_boxes_of_one_object_are_one() -> None:
    found = np.array(
        [
            [0.9, 0, 0.1, 0.1, 0.5, 0.5],
            [0.8, 0, 0.12, 0.1, 0.5, 0.52],  # the same person
            [0.7, 1, 0.12, 0.1, 0.5, 0.52],  # a bicycle there
            [0.6, 0, 0.5, 0.5, 0.9, 0.9],  # another person
        ],
        dtype=np.float32,
    )
    assert detector._apart(found) == [0, 2, 3]


def test_it_detects_objects_only() -> None:
    tasks = (
        Catalogue({}).with_models({"detector": {"tasks": {"what": "image-classification"}}}, where="fleet.toml").tasks
    )
    with pytest.raises(ConfigurationError, match=r"tasks\.what: is of the kind image-classification"):
        _ = DetectorModel(ModelSpec("detector", Path(), "1", tasks)).revision


# --- real weights ---------------------------------------------------------------------------------


def pulled(kind: str, name: str) -> Path:
    chosen = settings.load(environment={})
    table = chosen.models[name].source if kind == "models" else chosen.data[name]["source"]
    found = model_source.locate(model_source.parse(table, where=name), model_source.cache_folder())
    if found is None:
        pytest.skip(f"{kind}.{name} is not pulled: argosy models pull {name} (144 MB for the detector)")
    return found.folder


@pytest.fixture(scope="module")
def model() -> DetectorModel:
    tasks = (
        Catalogue({}).with_models({"detector": {"tasks": {"objects": "object-detection"}}}, where="fleet.toml").tasks
    )
    made = DetectorModel(ModelSpec("detector", pulled("models", "detector"), "1", tasks))
    made.load(DEVICE)
    return made


def ask(model: DetectorModel, files: list[bytes], threshold: float = 0.4) -> list[Any]:
    params = {"objects": Catalogue({}).check_params(model.spec.tasks["objects"], {"threshold": threshold}, field="p")}
    return [answer["objects"] for answer in answered(model, [(file, params) for file in files])]


def test_photographs(model: DetectorModel) -> None:
    """What is large and plain is found where it is, alone as in company; in a turned photograph it is found upright."""
    photographs = pulled("data", "photographs")
    files = [(photographs / name).read_bytes() for name in ("astronaut.png", "camera.png", "coffee.png", "china.jpg")]
    astronaut, camera, coffee, china = together = ask(model, files)
    assert [found["label"] for found in astronaut] == ["person"]
    assert (camera[0]["label"], coffee[0]["label"], china) == ("person", "cup", [])
    box = coffee[0]["box"]
    assert 100 < box["xmin"] < 200
    assert 380 < box["xmax"] < 480  # the cup, not its saucer, in a picture of 600 x 400
    for file, answer in zip(files, together, strict=True):
        assert_alike(ask(model, [file])[0], answer)
    with Image.open(io.BytesIO(files[0])) as image:
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
        lying = io.BytesIO()
        image.convert("RGB").transpose(Image.Transpose.ROTATE_90).save(lying, "PNG", exif=exif)
    assert_alike(ask(model, [lying.getvalue()])[0], astronaut)


def test_there_are_eighty_names() -> None:
    assert (len(coco_classes.NAMES), coco_classes.NAMES[0], coco_classes.NAMES[15], coco_classes.NAMES[-1]) == (
        80,
        "person",
        "cat",
        "toothbrush",
    )
