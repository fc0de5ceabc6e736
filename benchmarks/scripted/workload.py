"""The inputs of a pass, the outputs that they must have, and the cost of their preparation alone."""

from __future__ import annotations

import io
import itertools
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from . import answers, trees

Expected = dict[str, list[Any]]


class Texts:
    """The mix of texts of every text benchmark (about 50 tokens), with two tasks."""

    model, class_name, cost = "text", "ScriptedText", 32_768
    tasks = ("sentiment", "topic")
    params: ClassVar = {task: {"truncation": True} for task in tasks}

    def made(self, count: int) -> tuple[list[str], Expected, dict[str, float]]:
        """Return texts, their outputs, and figures of tokenising them alone, as the tree's workers do it."""
        texts = _mixed(count)
        encode = self._encoder()
        encode(texts[:200])
        started = time.process_time()
        encodings = encode(texts)
        spent_s = time.process_time() - started
        ids = [np.array([encoding.ids]) for encoding in encodings]
        sums = np.concatenate([answers.of_tokens(row, np.ones(row.shape, dtype=bool)) for row in ids])
        expected = {task: answers.expected(sums, task, self._labels(task)) for task in self.tasks}
        tokens = sum(row.size for row in ids) / count
        return texts, expected, {"tokenising_us": 1e6 * spent_s / count, "tokens_per_text": tokens}

    def _encoder(self) -> Callable[[list[str]], list[Any]]:
        from tokenizers import Tokenizer

        def read() -> Tokenizer:
            tokenizer = Tokenizer.from_file(str(self._folder() / "tokenizer.json"))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            return tokenizer

        try:
            from workers.models.huggingface.ascii_texts import AsciiTexts, encode_batch
        except ImportError:  # an older tree
            return read().encode_batch_fast
        return partial(encode_batch, read(), AsciiTexts.of(read()))

    def _folder(self) -> Path:
        return trees.pulled(_built_in(), self.model)

    def _labels(self, task: str) -> tuple[str, ...]:
        from safetensors import safe_open

        from workers import models

        with safe_open(Path(models.__path__[0]) / "heads" / task / "head.safetensors", "np") as file:
            return tuple(json.loads(file.metadata()["labels"]))


class Pictures:
    """JPEGs of 640 x 480 pixels and about 35 kB, all different."""

    model, class_name, cost = "vision", "ScriptedVision", 512
    tasks = ("image-classification",)
    params: ClassVar[dict[str, Any]] = {}

    def made(self, count: int) -> tuple[list[bytes], Expected, dict[str, float]]:
        """Return pictures, their outputs, and figures of decoding and resizing alone, on all cores."""
        pictures = [_jpeg(number) for number in range(count)]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(_decoded, pictures[:20]))
            cpu_s, started = time.process_time(), time.monotonic()
            rows = list(pool.map(_decoded, pictures))
            took_s, spent_s = time.monotonic() - started, time.process_time() - cpu_s
        sums = answers.of_pixels(np.stack(rows))
        (task,) = self.tasks
        alone = {"decoding_us": 1e6 * spent_s / count, "decoded_per_s": count / took_s}
        return pictures, {task: answers.expected(sums, task, self._labels())}, alone

    def _folder(self) -> Path:
        return trees.pulled(_built_in(), self.model)

    def _labels(self) -> tuple[str, ...]:
        names = json.loads((self._folder() / "config.json").read_text("utf-8"))["id2label"]
        return tuple(names[str(number)] for number in range(len(names)))


def _built_in() -> Any:
    from workers import settings

    return settings.load(environment={})


def _mixed(count: int) -> list[str]:
    from benchmarks.workload import mixed_texts

    distinct = mixed_texts(min(count, 4000))
    return list(itertools.islice(itertools.cycle(distinct), count))


def _jpeg(number: int) -> bytes:
    """A picture whose compressed size is that of a photograph."""
    from PIL import Image

    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=78)
    return file.getvalue()


def _decoded(data: bytes) -> np.ndarray[Any, Any]:
    """The least that a vision model needs: the centre of a picture, 224 x 224."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (512, 512))
        image.load()
        side = min(image.size) * 224 / 256
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        return np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR, box=box))
