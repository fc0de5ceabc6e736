"""Train the model `language`: ``python -m workers.shipped_heads.text.languages [--out FOLDER]``, some minutes; then
judge it.

It learns from Debian's package descriptions and the words of Django's pages, cut to pieces as short as a user's texts.
It is judged on descriptions of other packages, and on the Universal Declaration of Human Rights, which it was not
trained on.
"""

from __future__ import annotations

import argparse
import ast
import html
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from workers.models.built_in.multitask import head_file
from workers.models.built_in.text import language
from workers.models.sources import model_source
from workers.shipped_heads.text import descriptions
from workers.training import data
from workers.training.data import SEED

#: Language by language: its code (ISO 639-1), and its name at Debian, Django, and the Declaration.
LANGUAGES: Mapping[str, tuple[str | None, str, str]] = {
    "ar": (None, "ar", "arb"), "cs": ("cs", "cs", "ces"), "da": ("da", "da", "dan"), "de": ("de", "de", "deu_1996"),
    "el": (None, "el", "ell_monotonic"), "en": ("en", "en_GB", "eng"),
    "es": ("es", "es", "spa"), "fi": ("fi", "fi", "fin"),
    "fr": ("fr", "fr", "fra"), "he": (None, "he", "heb"), "hi": (None, "hi", "hin"), "hu": ("hu", "hu", "hun"),
    "it": ("it", "it", "ita"), "ja": ("ja", "ja", "jpn"), "ko": ("ko", "ko", "kor"), "nl": ("nl", "nl", "nld"),
    "pl": ("pl", "pl", "pol"), "pt": ("pt_BR", "pt", "por_PT"), "ru": ("ru", "ru", "rus"), "sk": ("sk", "sk", "slk"),
    "sv": ("sv", "sv", "swe"), "tr": (None, "tr", "tur"), "uk": ("uk", "uk", "ukr"),
    "zh": ("zh_CN", "zh_Hans", "cmn_hans"),
}  # fmt: skip

LABELS = tuple(LANGUAGES)

#: Texts of each language in an epoch, drawn anew each time; a language with fewer sentences repeats them.
_TEXTS_OF_EACH = 6_000
_EPOCHS = 6
_WIDTH = 16
_BATCH_ROWS = 256
_LEARNING_RATE = 0.02

#: A sentence must have this many characters to be judged.
_JUDGED_FROM = 20

_MESSAGE = re.compile(r'^msgstr(?:\[\d\])? ((?:".*"\s*)+)', re.MULTILINE)
_NOT_WORDS = re.compile(r"%\(\w+\)[sd]|%[sd]|\{\w*\}|<[^>]+>")


def train(sentences: Mapping[str, Sequence[str]], console: Console) -> dict[str, torch.Tensor]:
    """Return the tensors of a model trained on sentences by language."""
    torch.manual_seed(SEED)
    random = Random(SEED)  # noqa: S311 (a repeatable choice, no secret)
    table = torch.zeros(language.BUCKETS, _WIDTH).normal_(0, 0.1).requires_grad_()
    out = torch.zeros(len(LABELS), _WIDTH).normal_(0, 0.3).requires_grad_()
    bias = torch.zeros(len(LABELS)).requires_grad_()
    parameters = [table, out, bias]
    optimiser = torch.optim.Adam(parameters, lr=_LEARNING_RATE)
    steps = _EPOCHS * -(-_TEXTS_OF_EACH * len(LABELS) // _BATCH_ROWS)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, steps)
    for epoch in range(_EPOCHS):
        total = 0.0
        for ngrams, starts, wanted in _batches(sentences, random):
            loss = functional.cross_entropy(language.scores(ngrams, starts, *parameters), wanted)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        console.print(f"epoch {epoch + 1} of {_EPOCHS}: loss {total * _EPOCHS / steps:.4f}")
    names = ("table", "out", "bias")
    return {name: tensor.detach().half() for name, tensor in zip(names, parameters, strict=True)}


def _batches(
    sentences: Mapping[str, Sequence[str]], random: Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    drawn = [
        (LABELS.index(name), _cut(random.choice(own), random))
        for name, own in sentences.items()
        for _ in range(_TEXTS_OF_EACH)
    ]
    random.shuffle(drawn)
    for start in range(0, len(drawn), _BATCH_ROWS):
        batch = [(label, language.ngrams(text)) for label, text in drawn[start : start + _BATCH_ROWS]]
        batch = [(label, own) for label, own in batch if len(own)]
        counts = np.array([len(own) for _, own in batch])
        ngrams: NDArray[np.int64] = np.concatenate([own for _, own in batch])
        yield (
            torch.from_numpy(ngrams),
            torch.from_numpy(np.cumsum(counts) - counts),
            torch.tensor([label for label, _ in batch]),
        )


def _cut(text: str, random: Random) -> str:
    """Return a piece of a text, from 12 characters up."""
    length = random.randint(12, 120)
    start = random.randrange(max(len(text) - length, 0) + 1)
    return text[start : start + length]


# --- data -----------------------------------------------------------------------------------------


def described(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return the parts (``train`` and ``test``) of the descriptions' paragraphs, by language; no package is in both."""
    english = descriptions.read(folder / "Translation-en")
    same = {descriptions.same(text) for _, one in english.values() for text in descriptions.paragraphs(one)}
    parts: dict[str, dict[str, list[str]]] = {"train": defaultdict(list), "test": defaultdict(list)}
    for name, (file, _, _) in LANGUAGES.items():
        seen: set[str] = set()
        own = descriptions.read(folder / f"Translation-{file}") if file else {}
        for package, one in own.values():
            part = "train" if descriptions.part(descriptions.family(package)) == "train" else "test"
            for text in descriptions.paragraphs(one):
                plain = descriptions.same(text)
                # untranslated text stays English
                if "<trans>" not in text and plain not in seen and (name == "en" or plain not in same):
                    seen.add(plain)
                    parts[part][name].append(text)
    return parts


def django(folder: Path) -> dict[str, list[str]]:
    """Return the sentences of Django's pages by language."""
    found: dict[str, list[str]] = {}
    for name, (_, locale, _) in LANGUAGES.items():
        files = sorted(folder.glob(f"**/locale/{locale}/LC_MESSAGES/*.po"))
        texts = (text for file in files for text in _messages(file.read_text("utf-8")))
        found[name] = sorted({text for text in texts if len(text) >= 12})
    return found


def _messages(file: str) -> Iterator[str]:
    for match in _MESSAGE.finditer(file):
        joined = "".join(str(ast.literal_eval(line)) for line in match[1].strip().splitlines())
        yield _NOT_WORDS.sub(" ", joined).strip()


def declaration(folder: Path) -> dict[str, list[str]]:
    """Return the paragraphs of the Universal Declaration of Human Rights by language."""
    return {
        name: [
            html.unescape(text) for text in re.findall(r"<p>(.*?)</p>", (folder / f"{file}.html").read_text("utf-8"))
        ]
        for name, (_, _, file) in LANGUAGES.items()
    }


# --- scores ---------------------------------------------------------------------------------------


def judge(by_language: Mapping[str, Sequence[str]], answer: Callable[[str], str]) -> dict[str, tuple[int, int]]:
    """Return for each language the number of right texts, and of all texts."""
    found = {}
    for name, texts in by_language.items():
        judged = [text for text in texts if len(text) >= _JUDGED_FROM][:1000]
        if judged:
            found[name] = sum(answer(text) == name for text in judged), len(judged)
    return found


def served(tensors: Mapping[str, torch.Tensor]) -> Callable[[str], str]:
    """Return a function that names the language of a text by these tensors."""
    table, out, bias = (tensors[name].float() for name in ("table", "out", "bias"))

    def answer(text: str) -> str:
        own = language.ngrams(text)
        if not len(own):
            return language.UNDETERMINED
        return LABELS[int(language.scores(torch.from_numpy(own), torch.tensor([0]), table, out, bias).argmax())]

    return answer


def fasttext(file: Path) -> Callable[[str], str]:
    """Return a function that names the language of a text by a fastText model (pip install fasttext-predict)."""
    import fasttext as library

    model = library.load_model(str(file))

    def answer(text: str) -> str:
        return str(model.predict(text.replace("\n", " "))[0][0]).removeprefix("__label__")

    return answer


def show(scores: Mapping[str, Mapping[str, tuple[int, int]]], console: Console) -> None:
    table = Table("judged on", "texts", "accuracy", "mean of the languages", "weakest")
    for name, own in scores.items():
        shares = {code: right / count for code, (right, count) in own.items()}
        right, count = (sum(column) for column in zip(*own.values(), strict=True))
        weakest = sorted(shares, key=shares.__getitem__)[:3]
        table.add_row(
            name, f"{count:,}", f"{right / count:.1%}", f"{sum(shares.values()) / len(shares):.1%}",
            ", ".join(f"{code} {shares[code]:.0%}" for code in weakest),
        )  # fmt: skip
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=model_source.BUNDLED, help="folder for the model (default: %(default)s)"
    )
    parser.add_argument(
        "--fasttext", type=Path, help="judge this model of fastText's (lid.176.ftz) beside it; train none"
    )
    asked = parser.parse_args()
    console, cache = Console(), model_source.cache_folder()
    parts = described(data.pull("descriptions", cache))
    judged = {"descriptions": parts["test"], "declaration": declaration(data.pull("declaration", cache))}
    if asked.fasttext:
        show({name: judge(own, fasttext(asked.fasttext)) for name, own in judged.items()}, console)
        return
    words = django(data.pull("phrases", cache))
    tensors = train({name: [*parts["train"][name], *words[name]] for name in LABELS}, console)
    file = asked.out / "language" / head_file.FILE
    head_file.save_tensors(tensors, file, kind=language.FORMAT, labels=LABELS, seed=SEED)
    console.print(f"wrote {file}")
    show({name: judge(own, served(tensors)) for name, own in judged.items()}, console)


if __name__ == "__main__":
    main()
