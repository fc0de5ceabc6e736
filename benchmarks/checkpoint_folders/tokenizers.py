"""Tokenizers of transformers' classes, trained on docstrings. Each `write` returns the numbers that a config names."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from workers.models.interface import sample_inputs

_SIZE = 600
_LONGEST = 512

#: The special tokens of each class, in the order of their numbers, and the sort of its vocabulary.
_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "Bert": ("wordpiece", _BERT),
    "DistilBert": ("wordpiece", _BERT),
    "Electra": ("wordpiece", _BERT),
    "LayoutLM": ("wordpiece", _BERT),
    "Funnel": ("wordpiece", ("<pad>", "<unk>", "<cls>", "<sep>", "<mask>", "<s>", "</s>")),
    "MPNet": ("wordpiece", ("<s>", "<pad>", "</s>", "[UNK]", "<mask>")),
    "Roberta": ("bytes", _ROBERTA),
    "Bart": ("bytes", _ROBERTA),
    "LED": ("bytes", _ROBERTA),
    "Blenderbot": ("bytes", _ROBERTA),
    "Deberta": ("bytes", ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")),
    "GPT2": ("bytes", ("<|endoftext|>",)),
    "CodeGen": ("bytes", ("<|endoftext|>",)),
    "Qwen2": ("bytes", ("<|endoftext|>", "<|im_start|>", "<|im_end|>")),
    "GPTNeoX": ("bytes", ("<|endoftext|>", "<|padding|>")),
    "T5": ("unigram", ("<pad>", "</s>", "<unk>")),
    "XLMRoberta": ("unigram", ("<s>", "<pad>", "</s>", "<unk>")),
    "Camembert": ("unigram", ("<s>", "<pad>", "</s>", "<unk>")),
    "Albert": ("unigram", ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")),
    "RemBert": ("unigram", ("<pad>", "[CLS]", "<unk>", "[SEP]", "[MASK]")),
    "FNet": ("unigram", ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")),
    "BigBird": ("unigram", ("<pad>", "</s>", "<s>", "<unk>", "[SEP]", "[MASK]", "[CLS]")),
    "DebertaV2": ("unigram", ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")),
    "XLNet": ("unigram", ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>")),
    "MBart50": ("unigram", ("<s>", "<pad>", "</s>", "<unk>")),
    "Llama": ("metaspace", ("<unk>", "<s>", "</s>")),
    "Gemma": ("metaspace", ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")),
    "Nllb": ("metaspace", ("<s>", "<pad>", "</s>", "<unk>")),
}


def write(folder: Path, name: str, **settings: Any) -> dict[str, int]:
    """Write the tokenizer ``NAMETokenizer``; return `vocab_size` and the numbers of its special tokens."""
    import transformers

    sort, special = _CLASSES[name]
    class_ = getattr(transformers, f"{name}Tokenizer")
    tokenizer = class_(**vocabulary(sort, special), model_max_length=_LONGEST, **settings)
    tokenizer.save_pretrained(folder)
    return numbers(tokenizer)


def numbers(tokenizer: Any) -> dict[str, int]:
    """Return the settings of a config that concern a tokenizer."""
    roles = ("pad", "bos", "eos", "cls", "sep", "mask", "unk")
    found = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id", None) for role in roles}
    return {"vocab_size": len(tokenizer)} | {name: number for name, number in found.items() if number is not None}


@cache
def texts() -> tuple[str, ...]:
    return tuple(sample_inputs.texts(400, seed=3))


@cache
def vocabulary(sort: str, special: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments of a tokenizer class with a vocabulary of this sort."""
    if sort == "unigram":
        return {
            "vocab": [*((token, 0.0) for token in special), *(pair for pair in _pieces() if pair[0] not in special)]
        }
    words, merges = _merged(sort)
    vocab = {token: number for number, token in enumerate(dict.fromkeys([*special, *words]))}
    return {"vocab": vocab} if sort == "wordpiece" else {"vocab": vocab, "merges": list(merges)}


@cache
def _pieces() -> tuple[tuple[str, float], ...]:
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    unknown = "<unk>"
    trainer = trainers.UnigramTrainer(
        vocab_size=_SIZE, unk_token=unknown, special_tokens=[unknown], show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tuple((piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"])


@cache
def _merged(sort: str) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Return the tokens of a vocabulary that was made by merging, and the merges."""
    import json

    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    trainer: Any
    if sort == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece())
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=_SIZE, show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE())
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if sort == "metaspace":
            alphabet = []
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=_SIZE, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    words = [word for word, _ in sorted(model["vocab"].items(), key=lambda pair: pair[1])]
    return tuple(words), tuple(tuple(pair) for pair in model.get("merges", ()))


@cache
def sentencepiece(**settings: Any) -> bytes:
    """Return a trained file of SentencePiece. Raises ImportError without that package."""
    import io

    import sentencepiece

    made = io.BytesIO()
    usual = {"vocab_size": _SIZE, "hard_vocab_limit": False, "minloglevel": 2, "num_threads": 1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()[:100]), model_writer=made, **usual | settings
    )
    return made.getvalue()


def pieces(trained: bytes) -> list[str]:
    """Return the pieces of a file of SentencePiece."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=trained)
    return [processor.id_to_piece(number) for number in range(processor.get_piece_size())]
