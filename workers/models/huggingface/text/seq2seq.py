"""Any Hugging Face encoder-decoder: summaries, translations, answers to a prompt.

A micro-batch is generated as a whole, until its longest text ends. Texts do not join or leave between steps. Nothing
is sampled. Items with different parameters, or of very different lengths, are generated in separate groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from msgspec import field

from producers.wire.catalogue import Task
from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.kinds.text import GenerationParams
from workers.models.huggingface import generation_settings, token_sequences
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.checkpoint_model import FolderModel, FolderOptions, read_for_each
from workers.models.huggingface.text_head import TextReader
from workers.models.huggingface.token_sequences import Batch, Reading
from workers.models.huggingface.tokenizing import Tokenizing
from workers.models.interface import ragged
from workers.models.interface.model import Array, Arrays, Prepared, digest
from workers.models.interface.options import Count, Table

#: The most tokens of an output, unless the option or the checkpoint says otherwise.
_MOST_NEW_TOKENS = 256


class Seq2SeqOptions(FolderOptions, frozen=True):
    """Inputs have up to `max_tokens`, by default the checkpoint's own limit. Outputs have up to `max_new_tokens`. By
    default items may ask for up to 256 tokens, and other outputs have up to the checkpoint's own length, or 256.
    `prefix` gives a task the text before its inputs: T5 and similar models choose their task by it.
    """

    max_tokens: Count | None = None
    max_new_tokens: Count | None = None
    prefix: Table = field(default_factory=dict)


@dataclass(frozen=True)
class Writing(TextReader):
    """A task that generates a text from a text."""

    options: Seq2SeqOptions

    auto = "AutoModelForSeq2SeqLM"

    def check(self) -> None:
        super().check()
        if not self.checkpoint.config.get("is_encoder_decoder"):
            raise ConfigurationError(
                f"{self.checkpoint.where}: the model is not an encoder-decoder (is_encoder_decoder)"
            )

    def read(self, content: Any, params: GenerationParams) -> Reading:
        most = self._most_new_tokens
        for name in ("max_new_tokens", "min_new_tokens"):
            if (getattr(params, name) or 0) > most:
                raise InvalidInput(f"params.{name}", f"is over {most}, the model's maximum", "ask for fewer tokens")
        self.encode(content)  # refuse an empty text, which the prefix would hide
        prefix = self.options.prefix.get(self.task.name, "")
        sequence = self.one(f"{prefix}{content}", params)
        for name in ("src_lang", "tgt_lang"):
            if language := getattr(params, name, None):
                self._language(language, f"params.{name}")
        if language := getattr(params, "src_lang", None):
            sequence = sequence._replace(ids=self._from_language(sequence.ids, language))
        return Reading((sequence,))

    @cached_property
    def _most_new_tokens(self) -> int:
        """The most that an item may ask for. A table of the decoder's positions limits it: the first is the start's."""
        positions = self.checkpoint.config.get("max_position_embeddings")
        most = self.options.max_new_tokens or _MOST_NEW_TOKENS
        return min(most, positions - 1) if isinstance(positions, int) else most

    def _language(self, name: str, field: str) -> int:
        """Return the token of a language. Raises InvalidInput."""
        found = self._languages.get(name)
        if found is None:
            known = ", ".join(sorted(self._languages)[:5]) or "none"
            raise InvalidInput(field, f"the model has no language {name!r}", f"choose one of {known} …")
        return found

    @cached_property
    def _languages(self) -> dict[str, int]:
        """The special tokens without another role. In a multilingual model these are the languages."""
        tokenizing = self.tokenizing
        others = {tokenizing.token(f"{role}_token") for role in ("bos", "eos", "unk", "pad", "mask", "sep", "cls")}
        others |= {"<s>", "</s>", "<unk>", "<pad>"}  # a folder of Marian names none
        added = tokenizing.tokenizer.get_added_tokens_decoder()
        return {one.content: number for number, one in added.items() if one.special and one.content not in others}

    def _from_language(self, ids: Array, language: str) -> Array:
        """Put a language's token in the place of the tokenizer's default language (Liu et al., 2020: mBART)."""
        place = np.isin(ids, list(self._languages.values()))
        if place.sum() != 1:
            raise InvalidInput("params.src_lang", "the model's inputs have no language", "leave it out")
        return np.where(place, self._language(language, "params.src_lang"), ids).astype(ids.dtype)

    def settings(self, params: msgspec.Struct) -> dict[str, Any]:
        """Return the arguments of `generate`: the request's parameters, and a length if they have none and the
        checkpoint's own is missing or over the option.
        """
        asked = msgspec.structs.asdict(params)
        del asked["truncation"]
        asked.pop("src_lang", None)
        if target := asked.pop("tgt_lang", None):
            asked["forced_bos_token_id"] = self._language(target, "params.tgt_lang")
        settings = {name: value for name, value in asked.items() if value is not None}
        own = generation_settings.read(self.checkpoint)
        length = own.get("max_new_tokens") or (own.get("max_length") or 1) - 1  # without the start token
        over = self.options.max_new_tokens is not None and length > self._most_new_tokens
        if not settings.get("max_new_tokens") and (over or not length):
            settings["max_new_tokens"] = self._most_new_tokens
        return settings

    def finish(self, output: Array, params: GenerationParams, aside: Any) -> Any:
        return {"text": self.tokenizing.decode(ragged.unpack(output))}


class Seq2SeqModel(FolderModel[Writing]):
    """Texts with equal settings and similar lengths are generated together."""

    options_class = Seq2SeqOptions
    options: Seq2SeqOptions

    COMPARED = False  # a token that is nearly as likely as another may change with the order of sums

    # --- in the parent process ---

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Tokenise a text. The row has the sequences of `token_sequences.pack`, and for each task `settings/TASK`,
        MessagePack as uint8.

        Raises InvalidInput, InputTooLarge.
        """
        readings, refused = read_for_each(params, lambda task, chosen: self.heads[task].read(content, chosen))
        arrays = token_sequences.pack({task: reading.sequences for task, reading in readings.items()})
        for task in readings:
            settings = self.heads[task].settings(params[task])
            arrays[f"settings/{task}"] = np.frombuffer(msgspec.msgpack.encode(settings, order="sorted"), dtype=np.uint8)
        size = int(arrays["lengths"].sum())
        return Prepared(arrays, size, digest(arrays), refused, dict.fromkeys(readings))

    def collate(self, rows: Sequence[Prepared]) -> Arrays:
        batch = token_sequences.collate([row.arrays for row in rows], tuple(self.spec.tasks))
        for task in self.spec.tasks:
            own = [row.arrays.get(f"settings/{task}", np.zeros(0, np.uint8)).tobytes() for row in rows]
            batch[f"settings/{task}"] = ragged.pack(own)
        return batch

    def _head(self, task: Task, checkpoint: Checkpoint) -> Writing:
        longest = self.checkpoint.max_tokens
        max_tokens = min(longest, self.options.max_tokens or longest)
        return Writing(task, checkpoint, self._tokenizing, max_tokens, self.options)

    @cached_property
    def _tokenizing(self) -> Tokenizing:
        return Tokenizing(self.checkpoint)

    # --- in the device process ---

    def load(self, device: str) -> None:
        self._tokenizing.check()
        super().load(device)

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        import torch

        batch = Batch(arrays, self.checkpoint.pad_id)
        with torch.inference_mode():
            return {task: ragged.pack(self._write(task, arrays, batch, rows)) for task, rows in wanted.items()}

    def _write(self, task: str, arrays: Arrays, batch: Batch, rows: Array) -> list[list[int]]:
        """Return each row's tokens. Rows with equal settings and similar lengths are generated together."""
        alike: dict[bytes, list[int]] = {}
        for place, row in enumerate(rows):
            alike.setdefault(ragged.unpack(arrays[f"settings/{task}"][row]), []).append(place)
        needs = [int(own[0]) for own in batch.of(task, rows)]
        written: list[list[int]] = [[] for _ in rows]
        for settings, places in alike.items():
            sizes = [(place, len(batch.sequences[needs[place]].ids)) for place in places]
            for group in token_sequences.plan(sizes):
                tokens = self._generate(
                    batch.padded([needs[place] for place in group]), msgspec.msgpack.decode(settings)
                )
                for place, own in zip(group, tokens, strict=True):
                    written[place] = own
        return written

    def _generate(self, padded: Arrays, settings: Mapping[str, Any]) -> list[list[int]]:
        import torch

        tensors = {name: torch.from_numpy(padded[name]).to(self._device) for name in ("ids", "mask")}
        made = self.networks.only.generate(
            input_ids=tensors["ids"],
            attention_mask=tensors["mask"],
            do_sample=False,
            num_return_sequences=1,
            return_dict_in_generate=False,
            **settings,
        )
        tokens: list[list[int]] = made.cpu().tolist()
        return tokens
