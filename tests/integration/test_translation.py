"""What training writes is a Hugging Face folder like any other: served by its kind alone, with the answers of plain
transformers.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.serving import Served
from workers.models.sources import model_source
from workers.shipped_heads.text.descriptions import Pair
from workers.shipped_heads.translation import translation_training
from workers.shipped_heads.translation.pieces import train_pieces

PAIRS = [
    Pair("library for reading image files", "bibliothèque pour lire des fichiers d'image", "a"),
    Pair("this package contains the documentation", "ce paquet fournit la documentation", "b"),
    Pair("a small text editor", "un petit éditeur de texte", "c"),
] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of the published size that has learnt three sentences, with pieces made of them."""
    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("translation")
    tokenizer = train_pieces([text for pair in PAIRS for text in (pair.source, pair.target)])
    tokens = translation_training.Tokens.of(PAIRS, tokenizer)
    model = translation_training.network().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(12):
        for source, target in translation_training.batches(tokens, None):
            optimiser.zero_grad()
            translation_training.loss_of(model, source, target, 0.0).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    translation_training.save(model, tokenizer, made)
    return made


def test_the_folder_is_served_and_answers_as_plain_transformers(folder: Path) -> None:
    """Together and alone; kept in half precision, computed in single."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    served = Served(folder, {"french": "translation"}).load()
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    assert network.dtype == torch.float32
    texts = [pair.source for pair in PAIRS[:3]] + ["a documentation for text \U0001f600"]
    plain = []
    for text in texts:
        [made] = network.generate(**tokenizer(text, return_tensors="pt"), do_sample=False, max_new_tokens=24)
        plain.append({"text": tokenizer.decode(made, skip_special_tokens=True)})
    assert served.ask("french", texts, max_new_tokens=24) == plain
    assert [served.ask("french", [text], max_new_tokens=24)[0] for text in texts] == plain


def test_the_built_in_model_has_learnt_its_trade() -> None:
    """Of what it was trained on; how well, is in its card."""
    served = Served(model_source.BUNDLED / "translation", {"french": "translation"}).load()
    [one, other] = served.ask("french", ["This package contains the development files.", "a small text editor"])
    assert "fichiers de développement" in one["text"]
    assert "éditeur de texte" in other["text"]


def test_weights_and_pieces_are_under_ten_megabytes(folder: Path) -> None:
    for place in (folder, model_source.BUNDLED / "translation"):
        assert sum(file.stat().st_size for file in place.iterdir()) < 10_000_000


@pytest.mark.parametrize("text", ["L'été, où l'on va…", "日本語 \U0001f600", "x  y\tz"])
def test_pieces_write_any_text(folder: Path, text: str) -> None:
    """Nothing is unknown, and what is written is what was read, but for runs of spaces at its beginning."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=True) == text
