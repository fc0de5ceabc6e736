"""Scores of the model `translation`: ``python -m workers.shipped_heads.translation.translation_scores [--folder FOLDER]
[--pairs N]``.

BLEU (Papineni et al., 2002) and chrF (Popović, 2015) by sacrebleu, on sentences of packages outside the training, with
two baselines: the unchanged English text, and the translation of the most similar training sentence.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import sacrebleu
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer

from producers.wire.catalogue import Catalogue
from workers.models.huggingface import model_for
from workers.models.interface.model import ModelSpec
from workers.models.sources import model_source
from workers.shipped_heads.text.descriptions import Pair
from workers.shipped_heads.translation import translation_training
from workers.training import training_batches
from workers.training.data import SEED

_TASK = "translation"

#: A sentence whose nearest training sentence is farther than this (cosine of its letters' triples) can hardly be looked
#: up.
_UNLIKE = 0.6

_BATCH_TOKENS = 1_024


def written(folder: Path, texts: Sequence[str], **params: int) -> list[str]:
    """Return the translations, by the serving code."""
    catalogue = Catalogue({}).with_models({_TASK: {"tasks": {_TASK: "translation"}}}, where="here")
    task = catalogue.tasks[_TASK]
    model = model_for(ModelSpec(_TASK, folder, "1", catalogue.tasks))
    model.load("cpu")
    own = catalogue.check_params(task, {"truncation": True, **params}, field="params")
    rows = [model.prepare(text, {_TASK: own}) for text in texts]
    found: dict[int, str] = {}
    for places in training_batches.by_size([row.size for row in rows], _BATCH_TOKENS):
        outputs = model.forward(model.collate([rows[n] for n in places]), {_TASK: np.arange(len(places))})[_TASK]
        for place, output in zip(places, outputs, strict=True):
            found[place] = model.finish(task, output, own, rows[place])["text"]
    return [found[place] for place in range(len(texts))]


def remembered(train: Sequence[Pair], texts: Sequence[str]) -> tuple[list[str], list[float]]:
    """Return the answers of a translation memory, that is, the translation of the most similar sentence; and their
    similarity.
    """
    similar = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), sublinear_tf=True, min_df=2, dtype=np.float32)
    known = similar.fit_transform(pair.source for pair in train)
    found, cosines = [], []
    for start in range(0, len(texts), 100):
        products = (similar.transform(texts[start : start + 100]) @ known.T).toarray()
        for row in products:
            found.append(train[int(row.argmax())].target)
            cosines.append(float(row.max()))
    return found, cosines


def show(pairs: Sequence[Pair], by: dict[str, list[str]], cosines: Sequence[float], console: Console) -> None:
    unlike = [place for place, cosine in enumerate(cosines) if cosine < _UNLIKE]
    table = Table("judged on", "sentences", "by", "BLEU", "chrF")
    for name, places in (("held-out packages", range(len(pairs))), ("of these, unlike any in training", unlike)):
        wanted = [[pairs[n].target for n in places]]
        for who, texts in by.items():
            own = [texts[n] for n in places]
            bleu, chrf = sacrebleu.corpus_bleu(own, wanted), sacrebleu.corpus_chrf(own, wanted)
            table.add_row(name, f"{len(places):,}", who, f"{bleu.score:.1f}", f"{chrf.score:.1f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=model_source.BUNDLED / "translation", help="(default: %(default)s)"
    )
    parser.add_argument("--pairs", type=int, default=2_000, help="judge so many sentences (default: %(default)s)")
    asked = parser.parse_args()
    parts = translation_training.read(model_source.cache_folder())
    random = Random(SEED)  # noqa: S311 (a repeatable choice, no secret)
    pairs = random.sample(parts["test"], min(asked.pairs, len(parts["test"])))
    texts = [pair.source for pair in pairs]
    memory, cosines = remembered(parts["train"], texts)
    by = {"the model": written(asked.folder, texts), "the source as it is": texts, "the most similar sentence": memory}
    show(pairs, by, cosines, Console(width=120))


if __name__ == "__main__":
    main()
