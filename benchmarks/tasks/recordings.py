"""Recordings for benchmarks.catalogue: sentences of a novel, read aloud (tests/data/speech), and what listens to
them without a fleet.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from producers import Client
from workers.training import word_errors

FOLDER = Path(__file__).parents[2] / "tests" / "data" / "speech"


def clips(count: int) -> list[Any]:
    """Return so many different FLAC files of 4 to 13 s: two or three sentences of the five, cut short somewhere."""
    import numpy as np
    import soundfile

    sentences = [soundfile.read(file, dtype="float32")[0] for file in sorted(FOLDER.glob("*.flac"))]
    random, found = Random(0), []
    for _ in range(count):
        whole = np.concatenate(random.sample(sentences, random.randint(2, 3)))
        made = io.BytesIO()
        soundfile.write(made, whole[: random.randint(4 * 16_000, 13 * 16_000)], 16_000, format="FLAC")
        found.append(made.getvalue())
    return found


def pipeline(kind: str, **params: Any) -> Callable[[Path], Callable[[Sequence[Any], int], object]]:
    """Return what loads transformers' pipeline, files read as its documentation has it; greedy, as the fleet is, not
    by five beams.
    """

    def load(folder: Path) -> Callable[[Sequence[Any], int], object]:
        import torch
        import transformers

        plain = transformers.pipeline(kind, model=str(folder), device="cpu", dtype=torch.float32)

        def run(inputs: Sequence[Any], batch_size: int) -> object:
            return list(plain(_samples(inputs), batch_size=batch_size, **params))

        return run

    return load


def _samples(inputs: Sequence[bytes]) -> Iterator[Any]:
    import soundfile

    yield from (soundfile.read(io.BytesIO(one), dtype="float32")[0] for one in inputs)


def words_wrong(client: Client) -> tuple[str, float, float]:
    """Judge the transcripts of the five sentences; whoever writes nothing has all words wrong."""
    lines = (FOLDER / "transcripts.txt").read_text("utf-8").splitlines()
    names, said = zip(*(line.split("\t") for line in lines), strict=True)
    job = client.submit_many("transcript", [(FOLDER / name).read_bytes() for name in names])
    job.wait(timeout_s=600)
    written = {row.seq: row.output["text"] for row in job.results()}
    wrong = word_errors.rate([(text, written[place]) for place, text in enumerate(said)])
    return "word error rate, 5 LibriVox sentences:", wrong, 1.0
