"""Convert texts to tokens with a folder's tokenizer: whole, cut, or in overlapping windows. Thread-safe."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from producers.wire.errors import ConfigurationError, InvalidInput
from workers.models.huggingface import tokenizer_file
from workers.models.huggingface.ascii_texts import AsciiTexts, encode_batch, start_pool
from workers.models.huggingface.checkpoint import Checkpoint, loading

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

#: The text to cut if a pair is too long.
Cut: TypeAlias = Literal["longest_first", "only_first", "only_second"]

#: Characters of texts that are tokenised together: a token takes some 100 bytes until its text is prepared, and other
#: texts wait until the pool of threads is free.
TOGETHER = 2**16

#: Fewer texts are tokenised one by one, so that they do not wait for that pool.
FEW = 8

#: The spaces that transformers removes if a folder sets `clean_up_tokenization_spaces`, in its order.
_CLEANED = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")),
)

#: The most added tokens that are compared.
_MOST_ADDED = 200

#: Texts on which our tokens must equal those of transformers: words, digits, accents, spaces, other scripts, emoji.
PROBES = (
    "Hello, World! It's 3.14 o'clock.",
    "  Ça va?  naïve café\n",
    "東京 Привет \U0001f600",
    "<s> [MASK] </s> don't-stop",
)

#: Texts that take for ever with a regular expression that can match them in very many ways.
LONG_PROBES = tuple(
    f"{unit * (2000 // len(unit))}!" for unit in ("a", "A", " ", "1", "-", "\n", "é", "東", "aA1 ", "a'")
)


@dataclass(frozen=True)
class Tokenizing:
    """The tokenizer of a folder, read with the first text. `lower_case` is not for special tokens in a text."""

    checkpoint: Checkpoint
    lower_case: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)
    _ahead: threading.local = field(default_factory=threading.local, compare=False, repr=False)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer without truncation or padding; its settings never change."""
        return self._read()

    @cached_property
    def _cutting(self) -> Tokenizer:
        """The tokenizer whose truncation changes with each call. Callers hold the lock."""
        return self._read(truncating=True)

    @cached_property
    def _cut_side(self) -> str:
        """The side on which a long text loses tokens, "right" or "left", as transformers finds it. Callers hold the
        lock.
        """
        side = self.checkpoint.read_if_there("tokenizer_config.json").get("truncation_side")
        return str(side or (self._cutting.truncation or {}).get("direction", "right")).lower()

    def encode(self, text: str, pair: str | None = None) -> Encoding:
        """Return all tokens of a text or a pair. Raises InvalidInput if it is not valid Unicode."""
        ready = None if pair is not None else getattr(self._ahead, "encodings", {}).get(text)
        return ready or _encode(self.tokenizer, text, pair)

    @contextmanager
    def ahead(self, texts: Sequence[str], *, offsets: bool = True) -> Iterator[None]:
        """Tokenise texts together, for the calls of `encode` that this thread makes in the context.

        Other threads compute meanwhile, which `encode` does not let them. Without `offsets`, the encodings lack the
        tokens' positions in the text, and take less time. Texts beyond `TOGETHER`, or fewer than `FEW`, are left to
        `encode`.
        """
        ends = itertools.accumulate(map(len, texts))
        together = [text for text, end in zip(texts, ends, strict=True) if end <= TOGETHER and len(texts) >= FEW]
        start_pool()
        encode = self.tokenizer.encode_batch if offsets else self._encode_batch
        try:
            self._ahead.encodings = dict(zip(together, encode(together), strict=True))
        except BaseException as error:
            if not _of_a_text(error):
                raise
        try:
            yield
        finally:
            self._ahead.encodings = {}

    def ids_of_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Return all tokens of texts. Other threads compute meanwhile. Raises like the tokenizer if a text is at fault.

        About `TOGETHER` characters are tokenised at a time.
        """
        found: list[list[int]] = []
        begin = 0
        while begin < len(texts):
            ends = itertools.accumulate(map(len, itertools.islice(texts, begin, None)))
            count = sum(1 for _ in itertools.takewhile(lambda end: end <= TOGETHER, ends)) or 1
            encodings = self._encode_batch(texts[begin : begin + count])
            found += [encoding.ids for encoding in encodings]
            begin += count
        return found

    def _encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        return encode_batch(self.tokenizer, self._ascii_texts, texts)

    @cached_property
    def _ascii_texts(self) -> AsciiTexts | None:
        return AsciiTexts.of(self._read())

    @cached_property
    def has_types(self) -> bool:
        """Whether a single text has tokens of another type than 0."""
        return any(self.tokenizer.encode("a").type_ids)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The tokens that are no part of a text."""
        added = self.tokenizer.get_added_tokens_decoder()
        return frozenset(number for number, token in added.items() if token.special)

    def bare(self, text: str) -> list[int]:
        """Return a text's tokens without special tokens. Raises InvalidInput like `encode`."""
        return self.as_written(text).ids

    def as_written(self, text: str) -> Encoding:
        """Return the tokens of a text to which no special tokens are added. Raises InvalidInput like `encode`."""
        return _encode(self.tokenizer, text, special=False)

    def cut(self, text: str, pair: str | None, max_tokens: int, strategy: Cut = "longest_first") -> Encoding:
        """Return the first `max_tokens` tokens of a text or a pair, or the last ones if the folder says so."""
        return self._truncated(text, pair, max_tokens, 0, strategy)[0]

    def windows(
        self, text: str, pair: str | None, max_tokens: int, stride: int, strategy: Cut = "longest_first"
    ) -> list[Encoding]:
        """Return windows of at most `max_tokens` tokens over a long text. Neighbours share `stride` tokens."""
        return self._truncated(text, pair, max_tokens, stride, strategy, "right")

    def _truncated(
        self, text: str, pair: str | None, max_tokens: int, stride: int, strategy: Cut, side: str = ""
    ) -> list[Encoding]:
        with self._lock:
            own = self._cut_side  # before the truncation changes for the first time
            try:
                self._cutting.enable_truncation(max_tokens, stride=stride, strategy=strategy, direction=side or own)
                first = _encode(self._cutting, text, pair)
            except InvalidInput:
                raise
            except Exception as error:  # tokenizers raises no narrower class
                problem = f"leaves no room for windows of {max_tokens} tokens: {error}"
                raise InvalidInput(
                    "input", problem, "shorten the question or the labels, or lower the stride"
                ) from error
        return [first, *first.overflowing]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of tokens, as transformers decodes them."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        for spaced, plain in _CLEANED if self.cleans_up else ():
            text = text.replace(spaced, plain)
        return text

    @cached_property
    def cleans_up(self) -> bool:
        """Whether the folder has spaces before punctuation removed; transformers does not do it to texts of BPE."""
        settings = self.checkpoint.read_if_there("tokenizer_config.json")
        forced = settings.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
        bpe = type(self.tokenizer.model).__name__ == "BPE"
        return bool(settings.get("clean_up_tokenization_spaces") and (forced or not bpe))

    def token_id(self, role: str) -> int | None:
        """Return the number of a special token by its role (``mask_token``), or None."""
        token = self.token(role)
        return None if token is None else self.tokenizer.token_to_id(token)

    def token(self, role: str) -> str | None:
        """Return a special token by its role in ``tokenizer_config.json``, or None."""
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            token: Any = self.checkpoint.read_if_there(name).get(role)
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str):
                return text
        return None

    def check(self) -> bool:
        """Compare with transformers' own tokenizer, in the device process, before the first text.

        Return whether that one gives token types, which networks then get.

        If the tokens differ, transformers' tokenizer is cached and used instead. The parent process uses it too,
        because it reads its tokenizer only with the first text, after the device has started. Raises ConfigurationError
        if the tokens differ even then, or if the tokenizer gives up on a long text.
        """
        from transformers import AutoTokenizer

        folder = self.checkpoint.folder
        with loading(folder, self.checkpoint.where):
            theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if self._difference(theirs) and theirs.is_fast:
            tokenizer_file.keep(self.checkpoint, theirs)
        if probe := self._difference(theirs):
            problem = f"{tokenizer_file.locate(self.checkpoint)} and transformers give different tokens for {probe!r}"
            raise ConfigurationError(f"{self.checkpoint.where}: {problem}; write a class for it (docs/models.md)")

        ours = self._read()
        most = self.checkpoint.read_if_there("config.json").get("vocab_size")  # a folder within a pipeline has none
        highest = max(ours.get_vocab(False).values(), default=0)
        if isinstance(most, int) and highest >= most:
            problem = (
                f"{folder} has a tokenizer with the number {highest:,}, and a network of {most:,} tokens (vocab_size)"
            )
            raise ConfigurationError(
                f"{self.checkpoint.where}: {problem}; put the model's own tokenizer into the folder"
            )
        for probe in LONG_PROBES:
            try:
                _encode(ours, probe)
            except InvalidInput as error:
                raise ConfigurationError(f"{self.checkpoint.where}: the tokenizer of {folder}: {error}") from error
        return "token_type_ids" in theirs(PROBES[0])

    def _difference(self, theirs: Any) -> str:
        """Return a probe for which the file's tokens differ from those of `theirs`, or an empty string."""
        ours = self._read()
        probes: list[tuple[str, str | None]] = [(probe, None) for probe in PROBES]
        if theirs.is_fast:
            added = sorted(theirs.get_added_vocab(), key=theirs.get_added_vocab().__getitem__)
            probes += [(PROBES[0], PROBES[1]), (" a ".join(added[:_MOST_ADDED]), None)]
        for text, pair in probes:
            if list(theirs(text, pair)["input_ids"]) != ours.encode(text, pair).ids:
                return text if pair is None else f"{text} and {pair}"
        return ""

    def _read(self, *, truncating: bool = False) -> Tokenizer:
        from tokenizers import Tokenizer, normalizers

        file = tokenizer_file.locate(self.checkpoint)
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises no narrower class
            raise ConfigurationError(f"{self.checkpoint.where}: {file} cannot be read: {error}") from error
        tokenizer.no_padding()
        if not truncating:
            tokenizer.no_truncation()
        if self.lower_case:
            before = [tokenizer.normalizer] if tokenizer.normalizer else []
            tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])
        return tokenizer


def _encode(tokenizer: Tokenizer, text: str, pair: str | None = None, *, special: bool = True) -> Encoding:
    try:
        return tokenizer.encode(text, pair, add_special_tokens=special)
    except BaseException as error:
        if not _of_a_text(error):
            raise
        if isinstance(error, UnicodeEncodeError | TypeError):
            raise InvalidInput("input", "is not valid Unicode", "decode it with the right encoding") from error
        raise InvalidInput("input", f"cannot be tokenised: {str(error)[:200]}", "use a model you trust") from error


def _of_a_text(error: BaseException) -> bool:
    """Whether a text is at fault: half a surrogate pair, or a regular expression that took too many steps in Rust."""
    return isinstance(error, UnicodeEncodeError | TypeError) or type(error).__name__ == "PanicException"
