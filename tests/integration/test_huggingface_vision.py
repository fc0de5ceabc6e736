"""Any Hugging Face image model by its folder and kinds alone: the answers of plain transformers, whoever shares the
batch.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from producers.wire.errors import ConfigurationError, InputTooLarge
from tests import tiny_checkpoints as tiny
from tests.serving import TOLERANCE, Served, answered, assert_alike, pipeline
from workers.models.huggingface.vision.image_heads import run_lengths, run_lengths_by_label
from workers.models.huggingface.vision.image_processing import target_size

Made = Callable[..., Path]

PANOPTIC = {"num_labels": 4, "d_model": 128, "encoder_attention_heads": 8, "decoder_attention_heads": 8}


def picture(width: int, height: int, seed: int) -> Image.Image:
    """A picture with some large coloured areas."""
    spots = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    made = io.BytesIO()
    image.save(made, format_, **options)
    return made.getvalue()


#: Upright and lying, one smaller than any patch, two of one shape.
PICTURES = [picture(50, 40, 1), picture(90, 40, 2), picture(40, 50, 3), picture(1, 1, 4), picture(50, 40, 5)]
FILES = [encoded(one) for one in PICTURES]


# --- the answers of plain transformers ------------------------------------------------------------


@pytest.mark.parametrize(
    ("maker", "config"),
    [
        (tiny.vit, {"num_labels": 3}),
        (tiny.vit, {"num_labels": 3, "problem_type": "multi_label_classification"}),
        (tiny.convnext, {"num_labels": 3}),
    ],
    ids=["vit", "several-labels", "scaled-and-cropped"],
)
def test_image_classification(made: Made, maker: Callable[..., Path], config: dict[str, Any]) -> None:
    """Scaled, cropped and normalised as the folder says."""
    folder = made(maker, **config)
    served = Served(folder, {"shows": "image-classification"}).load()
    assert_alike(served.ask("shows", FILES), pipeline("image-classification", folder)(PICTURES))
    assert all(len(answer) == 1 for answer in served.ask("shows", FILES, top_k=1))


def test_image_feature_extraction(made: Made) -> None:
    """The pooled output, or the mean over the patches that the pipeline gives one by one."""
    folder = made(tiny.vit, "ViTModel")
    theirs = pipeline("image-feature-extraction", folder)
    expected = np.array(theirs(PICTURES, pool=True))[:, 0]
    served = Served(folder, {"vector": "image-feature-extraction"}).load()
    np.testing.assert_allclose(served.ask("vector", FILES, normalize=False), expected, atol=TOLERANCE)
    patches = np.array(theirs(PICTURES))[:, 0]
    for pooling, pooled in (("mean", patches.mean(1)), ("cls", patches[:, 0])):
        served = Served(folder, {"vector": "image-feature-extraction"}, pooling=pooling).load()
        np.testing.assert_allclose(served.ask("vector", FILES, normalize=False), pooled, atol=TOLERANCE)
    np.testing.assert_allclose(np.linalg.norm(served.ask("vector", FILES), axis=1), 1, atol=1e-6)


def test_a_classifiers_vectors_do_not_come_from_weights_that_it_does_not_have(made: Made) -> None:
    """transformers would add a pooler of random numbers to it."""
    folder = made(tiny.vit, num_labels=3)
    served = Served(folder, {"vector": "image-feature-extraction", "shows": "image-classification"}).load()
    params = {name: served.task(name).kind.params() for name in ("vector", "shows")}
    [both] = answered(served.model, [(FILES[0], params)])
    assert served.model.passes == 1
    [alone] = Served(folder, {"vector": "image-feature-extraction"}).load().ask("vector", FILES[:1])
    np.testing.assert_allclose(both["vector"], alone, atol=TOLERANCE)
    assert_alike(both["shows"], pipeline("image-classification", folder)(PICTURES[0]))


@pytest.mark.parametrize("maker", [tiny.yolos, tiny.detr])
def test_object_detection(made: Made, maker: Callable[..., Path]) -> None:
    """Boxes in pixels of the image as it was sent, whatever it was scaled to."""
    folder = made(maker, num_labels=4)
    served = Served(folder, {"objects": "object-detection"}).load()
    found = served.ask("objects", FILES, threshold=0.1)
    theirs = pipeline("object-detection", folder)(PICTURES, threshold=0.1)
    assert_alike(found, [sorted(one, key=lambda box: -box["score"]) for one in theirs])
    assert sum(map(len, found)) > 5
    assert served.ask("objects", FILES[:1], threshold=1.0) == [[]]


def unpacked(mask: dict[str, Any]) -> Any:
    """A mask's pixels, as COCO's tools read it."""
    inside = np.arange(len(mask["counts"])) % 2 == 1
    return np.repeat(inside, mask["counts"]).reshape(mask["size"], order="F")


@pytest.mark.parametrize(
    ("maker", "head", "config", "params"),
    [
        (tiny.segformer, (), {"num_labels": 4}, {}),
        (tiny.detr, ("DetrForSegmentation",), PANOPTIC, {"threshold": 0.1}),
        (tiny.detr, ("DetrForSegmentation",), PANOPTIC, {"threshold": 0.1, "subtask": "instance"}),
    ],
    ids=["semantic", "panoptic", "instance"],
)
@pytest.mark.filterwarnings("ignore:`label_ids_to_fuse`")
def test_image_segmentation(
    made: Made, maker: Callable[..., Path], head: tuple[str, ...], config: dict[str, Any], params: dict[str, Any]
) -> None:
    """Every pixel of every mask, in the image as it was sent."""
    folder = made(maker, *head, **config)
    served = Served(folder, {"parts": "image-segmentation"}).load()
    for found, expected in zip(
        served.ask("parts", FILES, **params), pipeline("image-segmentation", folder)(PICTURES, **params), strict=True
    ):
        plain = [{"label": one["label"], "score": one["score"]} for one in expected]
        assert_alike([{"label": one["label"], "score": one["score"]} for one in found], plain)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(unpacked(one["mask"]), np.array(other["mask"]) > 0)


def test_a_subtask_that_the_model_cannot_do_is_an_error_with_its_name(made: Made) -> None:
    served = Served(made(tiny.segformer, num_labels=4), {"parts": "image-segmentation"}).load()
    with pytest.raises(ValueError, match="does not support panoptic; it supports: semantic"):
        served.ask("parts", FILES[:1], subtask="panoptic")


@pytest.mark.parametrize(("shape", "labels"), [((7, 5), 3), ((1, 1), 2), ((40, 30), 150), ((4, 4), 1)])
def test_the_masks_of_all_labels_in_one_go(shape: tuple[int, int], labels: int) -> None:
    """As if each were made by itself."""
    map_ = np.random.default_rng(0).integers(0, labels, shape)
    alone = [(int(label), run_lengths(map_ == label)) for label in np.unique(map_)]
    assert list(run_lengths_by_label(map_)) == alone


def test_run_lengths() -> None:
    """Column by column, outside first, also where the first pixel is inside."""
    assert run_lengths(np.array([[0, 1], [0, 1]])) == [2, 2]
    assert run_lengths(np.array([[1, 1], [0, 1]])) == [0, 1, 1, 2]
    assert run_lengths(np.zeros((2, 3))) == [6]
    mask = np.random.default_rng(0).random((7, 5)) > 0.5
    np.testing.assert_array_equal(unpacked({"size": (7, 5), "counts": run_lengths(mask)}), mask)


# --- who shares a batch ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maker", "kind", "params"),
    [
        (tiny.vit, "image-classification", {}),
        (tiny.yolos, "object-detection", {"threshold": 0.1}),
        (tiny.detr, "object-detection", {"threshold": 0.1}),
        (tiny.segformer, "image-segmentation", {}),
    ],
    ids=["vit", "yolos", "detr", "segformer"],
)
def test_neighbours_do_not_change_an_answer(
    made: Made, maker: Callable[..., Path], kind: str, params: dict[str, Any]
) -> None:
    """Images of other shapes are not padded to one: padding would change what detectors see."""
    served = Served(made(maker, num_labels=4 if maker is not tiny.vit else 3), {"task": kind}).load()
    alone = [served.ask("task", [file], **params)[0] for file in FILES]
    random = np.random.default_rng(0)
    for _ in range(3):
        order = random.permutation(len(FILES))[: random.integers(2, len(FILES) + 1)]
        for place, answer in zip(order, served.ask("task", [FILES[n] for n in order], **params), strict=True):
            assert_alike(answer, alone[place])


def test_images_of_one_shape_are_one_pass(made: Made) -> None:
    """Squeezed to one size they all are; with their ratio kept, those of one ratio."""
    served = Served(made(tiny.vit, num_labels=3), {"task": "image-classification"}).load()
    served.ask("task", FILES)
    assert served.model.passes == 1
    served = Served(made(tiny.detr, num_labels=4), {"task": "object-detection"}).load()
    served.ask("task", FILES)
    assert served.model.passes == 4


def test_equal_pixels_of_another_size_are_another_image_where_that_matters(made: Made) -> None:
    """A box of the smaller image would be wrong in the larger one, though both are scaled to the same pixels."""
    grey = [encoded(Image.new("RGB", size, "grey")) for size in ((40, 40), (80, 80))]
    for kind, folder, differs in (
        ("object-detection", made(tiny.yolos, num_labels=4), True),
        ("image-classification", made(tiny.vit, num_labels=3), False),
    ):
        served = Served(folder, {"task": kind})
        own = {"task": served.task("task").kind.params()}
        one, other = (served.model.prepare(file, own) for file in grey)
        assert (one.content != other.content) is differs


# --- images of every sort -------------------------------------------------------------------------


def test_unusual_images_are_read_as_they_look(made: Made) -> None:
    """CMYK as printers have it, 16 bits as scanners have it, the first frame of an animation, turned by EXIF,
    transparent.
    """
    plain = picture(50, 40, 1)
    frames = [picture(50, 40, seed) for seed in (1, 2)]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    deep = Image.fromarray(np.asarray(plain.convert("L"), dtype=np.uint16) * 257)
    clear = plain.copy()
    clear.putalpha(0)
    same = [
        (encoded(plain.convert("CMYK"), "TIFF"), plain.convert("CMYK").convert("RGB")),
        (encoded(deep), plain.convert("L").convert("RGB")),
        (encoded(plain.rotate(90, expand=True), exif=exif), plain),
        (encoded(clear), Image.new("RGB", (50, 40), "white")),
        (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), None),
    ]
    folder = made(tiny.vit, num_labels=3)
    served = Served(folder, {"task": "image-classification"}).load()
    found = served.ask("task", [file for file, _ in same])
    expected = [one or Image.open(io.BytesIO(file)).convert("RGB") for file, one in same]
    assert_alike(found, pipeline("image-classification", folder)(expected))


@pytest.mark.parametrize("content", [b"", b"no image", FILES[0][:60], "a text", 7])
def test_what_is_no_image_is_refused(made: Made, content: object) -> None:
    served = Served(made(tiny.vit, num_labels=3), {"task": "image-classification"})
    assert served.refusal("task", content).field == "input"


def test_an_image_too_large_or_too_narrow_is_refused(made: Made) -> None:
    """Before it is decoded; and before a line of pixels is blown up to a wall."""
    folder = made(tiny.detr, num_labels=4)
    small = Served(folder, {"task": "object-detection"}, max_image_pixels=100)
    assert isinstance(small.refusal("task", FILES[0]), InputTooLarge)
    settings = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
    settings["size"] = {"shortest_edge": 800}
    own = folder.with_name("narrow")
    shutil.copytree(folder, own)
    (own / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    narrow = Served(own, {"task": "object-detection"})
    assert "after scaling" in str(narrow.refusal("task", encoded(Image.new("RGB", (1, 900)))))


@pytest.mark.parametrize(
    ("original", "size", "expected"),
    [
        ((40, 90), {"height": 32, "width": 16}, (32, 16)),
        ((40, 90), {"shortest_edge": 80}, (80, 180)),
        ((90, 40), {"shortest_edge": 80, "longest_edge": 100}, (100, 44)),
        ((40, 90), {"max_height": 80, "max_width": 90}, (40, 90)),
        ((40, 90), 24, (24, 24)),
    ],
)
def test_target_sizes(original: tuple[int, int], size: Any, expected: tuple[int, int]) -> None:
    """The five ways in which processors say how large an image is to be."""
    assert target_size(original, size) == expected


# --- settings -------------------------------------------------------------------------------------


def test_a_processor_that_we_do_not_follow_is_found_out(made: Made, tmp_path: Path) -> None:
    """Images prepared otherwise than in training are answered with confidence, and wrongly."""
    folder = shutil.copytree(made(tiny.vit, num_labels=3), tmp_path / "copy")
    settings = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
    settings |= {"image_processor_type": "EfficientNetImageProcessor", "include_top": True, "rescale_offset": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"not prepared as by EfficientNetImageProcessor"):
        Served(folder, {"task": "image-classification"}).load()


@pytest.mark.parametrize(
    ("tasks", "options", "problem"),
    [
        ({"task": "object-detection"}, {}, "ViTForImageClassification does not detect objects"),
        ({"task": "image-segmentation"}, {}, "does not segment images"),
        ({"task": "image-feature-extraction"}, {"pooling": "max"}, "must be mean or cls"),
        ({"task": "image-classification"}, {"max_tokens": 3}, "max_tokens: not an option"),
        ({"task": "image-classification", "other": "fill-mask"}, {}, "cannot share a pass"),
    ],
)
def test_a_wrong_setting_is_named(made: Made, tasks: Any, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        Served(made(tiny.vit, num_labels=3), tasks, **options).load()


def test_preparing_and_finishing_never_import_torch(made: Made) -> None:
    """The Celery parent stays light."""
    folder = str(made(tiny.detr, num_labels=4))
    code = f"""
import sys
from pathlib import Path
from tests.serving import Served
from tests.integration.test_huggingface_vision import FILES
served = Served(Path({folder!r}), {{"task": "object-detection"}})
served.model.revision
served.model.collate([served.model.prepare(FILES[0], {{"task": served.task("task").kind.params()}})])
loaded = sorted({{"torch", "transformers"}} & set(sys.modules))
sys.exit(f"loaded {{loaded}}" if loaded else 0)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
