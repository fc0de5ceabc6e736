"""The word pieces of the translation model, and their vectors before training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCABULARY = 8_000
PAD, END = 0, 1


def train_pieces(texts: Iterable[str]) -> Tokenizer:
    """Return a tokenizer of byte pairs (Sennrich et al., 2016), shared by both languages: it can write any text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("\u2019", "'")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", END)]
    )
    return tokenizer


def likeness_of_pieces(
    source: Sequence[NDArray[np.int64]], target: Sequence[NDArray[np.int64]], width: int
) -> NDArray[np.float32]:
    """Return a vector for each piece, `(pieces, width)`: near to the vectors of the pieces that translate it.

    Positive pointwise mutual information of being in a sentence and in its translation, factorised (Levy and Goldberg,
    2014).
    """
    from scipy.sparse.linalg import svds

    ours, theirs = _present(source), _present(target)
    both = ours.T @ theirs
    both = (both + both.T).tocoo()
    occurs = np.asarray(ours.sum(0) + theirs.sum(0)).ravel()
    expected = occurs[both.row] * occurs[both.col] / (2 * len(source))
    both.data = np.maximum(np.log(both.data / expected), 0) * (both.data >= 3)
    left, sizes, _ = svds(both.tocsr().astype(np.float32), k=width, random_state=0)
    vectors = left * np.sqrt(sizes)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    noise = np.random.default_rng(0).standard_normal(vectors.shape)
    shaped = vectors / np.maximum(lengths, 1e-6) * np.sqrt(width) * (lengths > 1e-6)
    return np.asarray(shaped + 0.3 * noise, dtype=np.float32)


def _present(sentences: Sequence[NDArray[np.int64]]) -> Any:
    from scipy.sparse import csr_matrix

    rows = np.repeat(np.arange(len(sentences)), [len(one) for one in sentences])
    found = csr_matrix((np.ones(len(rows)), (rows, np.concatenate(sentences))), (len(sentences), VOCABULARY))
    found.data[:] = 1
    return found
