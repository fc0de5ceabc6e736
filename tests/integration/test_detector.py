"""The built-in detector: its network with the weights of a TensorFlow.js model, boxes in the image's own pixels; on
photographs if it was pulled.
"""

from __future__ import annotations

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
from workers.models.built_in.vision import detector, nanodet
from workers.models.built_in.vision.detector import DetectorModel
from workers.models.built_in.vision.nanodet import NanoDet
from workers.models.converting import coco_classes, convert
from workers.models.interface.model import ModelSpec
from workers.models.sources import model_source

# --- the network ----------------------------------------------------------------------------------


def written(folder: Path, constants: dict[str, np.ndarray[Any, Any]], **kept: str) -> Path:
    """Write constants as TensorFlow.js does: floats in half precision, unless `kept` says otherwise."""
    folder.mkdir()
    weights, content = [], b""
    for name, values in constants.items():
        form = kept.get(name, "float16" if values.dtype == np.float32 else str(values.dtype))
        content += values.astype(form).tobytes()
        described: dict[str, Any] = {"name": name, "shape": list(values.shape), "dtype": str(values.dtype)}
        weights.append(described | ({"quantization": {"dtype": form}} if form != str(values.dtype) else {}))
    half = len(content) // 2  # a large model comes in several files, cut anywhere
    for number, part in enumerate((content[:half], content[half:])):
        (folder / f"weights{number}.bin").write_bytes(part)
    manifest = [{"paths": ["weights0.bin", "weights1.bin"], "weights": weights}]
    (folder / "model.json").write_text(json.dumps({"modelTopology": {}, "weightsManifest": manifest}))
    return folder


def published(network: NanoDet) -> dict[str, np.ndarray[Any, Any]]:
    """A network's weights as its package names and numbers them, shuffled, with constants that are none."""
    weights = [weight.numpy() for weight in network.state_dict().values()]
    named = {f"PartitionedCall/split_{n}".removesuffix("_0"): w for n, w in enumerate(weights[::2])}
    named = {name: filters.transpose(2, 3, 1, 0) for name, filters in named.items()}
    named |= {f"unknown_{2 * n + 6 * (n > 27)}": bias for n, bias in enumerate(weights[1::2])}
    named |= {"zero": np.zeros((), np.float32), "shape": np.array([1, 80, -1], np.int32)}
    return {name: named[name] for name in np.random.default_rng(0).permutation(list(named)).tolist()}


@pytest.fixture
def network() -> NanoDet:
    torch.manual_seed(0)
    made = NanoDet().eval()
    for weight in made.parameters():
        weight.data = weight.data.half().float()
    return made


def test_weights_of_tensorflow_js_make_the_network(network: NanoDet, tmp_path: Path) -> None:
    """Whatever the order of its file; a batch's rows are answered each by itself, with class logits and distances by
    place.
    """
    convert.tfjs_nanodet(written(tmp_path / "from", published(network)), tmp_path / "made")
    rows = torch.rand(3, 3, 64, 96)
    with torch.inference_mode():
        expected, found = network(rows), nanodet.load(tmp_path / "made").eval()(rows)
        alone = network(rows[1:2])
    assert [tuple(grid.shape) for grid in found] == [(3, 8 * 12, 124), (3, 4 * 6, 124), (3, 2 * 3, 124)]
    for grid, same, one in zip(found, expected, alone, strict=True):
        torch.testing.assert_close(grid, same, rtol=0, atol=0)
        torch.testing.assert_close(grid[1], one[0], rtol=0, atol=1e-5)


def test_weights_of_another_network_are_refused(network: NanoDet, tmp_path: Path) -> None:
    constants = published(network)
    convert.tfjs_nanodet(
        written(tmp_path / "more", constants | {"unknown_99": np.zeros(8, np.float32)}), tmp_path / "a"
    )
    del constants["PartitionedCall/split_33"]
    convert.tfjs_nanodet(written(tmp_path / "less", constants), tmp_path / "b")
    for made in ("a", "b"):
        with pytest.raises(ConfigurationError, match=f"{made}: holds no weights of NanoDet-g"):
            nanodet.load(tmp_path / made)


def test_constants_in_fewer_bits_are_refused(tmp_path: Path) -> None:
    """Weights in 8 bits need their scale; without it they would be other weights."""
    source = written(tmp_path / "from", {"weight": np.ones(4, np.float32)}, weight="uint8")
    with pytest.raises(ValueError, match="weight: constants of type uint8 are not supported"):
        convert.tfjs_nanodet(source, tmp_path / "made")


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
    assert detector._without_duplicates(found) == [0, 2, 3]


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
