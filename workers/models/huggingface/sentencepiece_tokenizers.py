"""Marian's and M2M-100's tokenizers, which transformers has in Python only, as tokenizers of the library `tokenizers`.

Both cut texts with a model of SentencePiece, and number its pieces by a vocabulary of their own.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: The score of a piece that the model of the source language lacks. It loses to every other way to cut a text.
_NEVER = -1e6


def converted(theirs: Any) -> Tokenizer:
    """Return a tokenizer of transformers as one of `tokenizers`. Raises TypeError if it is of another class."""
    from tokenizers import AddedToken, Regex, decoders, models, processors
    from tokenizers import Tokenizer as Made
    from transformers import M2M100Tokenizer, MarianTokenizer
    from transformers.convert_slow_tokenizer import SpmConverter, generate_merges

    if isinstance(theirs, MarianTokenizer) and not theirs.separate_vocabs:
        file = theirs.spm_files[0]
    elif isinstance(theirs, M2M100Tokenizer):
        file = theirs.spm_file
    else:
        raise TypeError(f"{type(theirs).__name__} has no fast version")
    converter = SpmConverter(SimpleNamespace(vocab_file=str(file)))
    proto, numbers = converter.proto, theirs.encoder
    unknown = str(theirs.unk_token)
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == 1}
    made: Tokenizer
    if proto.trainer_spec.model_type == 1:
        pieces = [(piece, scores.get(piece, _NEVER)) for piece in sorted(numbers, key=numbers.__getitem__)]
        made = Made(models.Unigram(pieces, unk_id=numbers[unknown], byte_fallback=False))
    else:
        order = {piece: place for place, piece in enumerate(scores)}
        made = Made(models.BPE(numbers, generate_merges(order, scores), unk_token=unknown, fuse_unk=True))
    made.normalizer, made.pre_tokenizer = converter.normalizer(proto), converter.pre_tokenizer("\u2581", True)
    ends = decoders.Replace(Regex("^ +| +$"), "")
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), ends])
    names = {*theirs.all_special_tokens, *getattr(theirs, "lang_token_to_id", ())}  # M2M-100 numbers its languages
    special = sorted(names, key=theirs.convert_tokens_to_ids)
    made.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    languages = [piece for piece in numbers if piece.startswith(">>") and piece.endswith("<<")]
    made.add_tokens([AddedToken(piece, normalized=False) for piece in languages])
    around = theirs.convert_ids_to_tokens(theirs.build_inputs_with_special_tokens([numbers[unknown]]))
    before, after = around[: around.index(unknown)], around[around.index(unknown) + 1 :]
    made.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        special_tokens=[(token, theirs.convert_tokens_to_ids(token)) for token in dict.fromkeys([*before, *after])],
    )
    return made
