"""The decoder network in the device process: a pass over a block of rows, each with its own new tokens."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from producers.wire.errors import ConfigurationError
from workers.models.adapters import low_rank
from workers.models.adapters.lora_folder import Adapter
from workers.models.adapters.low_rank import AdapterRows
from workers.models.backends.choice import DTYPES
from workers.models.generation import key_value_memory
from workers.models.generation.key_value_memory import Block, CacheShape
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.checkpoint_networks import read_network, refuse_missing

#: The tokens of the rows that are tried when a network is loaded. An attention of its own may have a window that it
#: counts from the end of the longest row.
_TRIED_TOKENS, _LONG_TOKENS = (4, 9), 600

#: The tokens beside the one that is tried on a branch.
_BESIDE = 64

#: The largest mean difference of logits, as a share of their mean size, in fp32 and in lower precision.
_MARGIN, _ROUGH_MARGIN = 1e-3, 1e-1

#: transformers' name for the attention of an architecture that has no other. It adds its mask to the scores.
_OWN_ATTENTION = "eager"

#: The most characters of an error of transformers.
_LONGEST_REASON = 400


@dataclass(frozen=True, slots=True)
class Feed:
    """New tokens of a row: their `offsets` from the row's length, the attention mask `sees` among them, and the
    `wanted` tokens, whose next-token logits are returned.

    Without `offsets` and `sees` the tokens follow one another like text. `adapter` counts from 1; 0 means no adapter.
    """

    tokens: Sequence[int]
    wanted: Sequence[int] = ()
    offsets: Sequence[int] | None = None
    sees: torch.Tensor | None = field(default=None, compare=False)
    adapter: int = 0


class DecoderNetwork:
    """A causal language model of transformers. The constructor does not load it."""

    def __init__(self, folder: Path, *, where: str, precision: str, adapters: Sequence[Adapter] = ()) -> None:
        self._folder = folder
        self._where = where
        self._precision = precision
        self._adapters = adapters
        self._adapter_rows: AdapterRows | None = None
        self._model: Any = None
        self._device = "cpu"
        self._attention = key_value_memory.ATTENTION
        self.branches = True  # whether tokens that do not see each other can follow the same text
        self.tokens_read = 0

    def load(self, device: str) -> None:
        """Load the weights. Raises ConfigurationError if the precision or a type of layer is not supported."""
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

        if self._precision not in DTYPES:
            raise ConfigurationError(f"{self._where}.precision: must be one of {', '.join(DTYPES)} for text generation")
        AttentionInterface.register(key_value_memory.ATTENTION, key_value_memory.attend)
        AttentionMaskInterface.register(key_value_memory.ATTENTION, sdpa_mask)
        self._device = device
        Checkpoint(self._folder, self._where).check_weights()
        try:
            model = self._read(key_value_memory.ATTENTION)
        except ConfigurationError as error:
            if repr(error.__cause__) != f"KeyError({key_value_memory.ATTENTION!r})":
                raise
            model = None
        if model is None or not model._can_set_attn_implementation():  # noqa: SLF001 - it has no public name
            model = self._read(_OWN_ATTENTION)
        self._check_layers(model.config)
        self._model = model.eval().to(device)
        self._attention = model.config._attn_implementation  # noqa: SLF001 - it has no public name
        self._try_out()
        if self._adapters:
            self._adapter_rows = low_rank.attach(self._model, self._adapters)
            self._try_adapters()

    def _read(self, attention: str) -> Any:
        dtype = getattr(torch, DTYPES[self._precision])
        network, report = read_network(
            "AutoModelForCausalLM", self._folder, self._where, dtype, attn_implementation=attention
        )
        refuse_missing(sorted(report["missing_keys"]), report["unexpected_keys"], network, self._folder, self._where)
        return network

    def _check_layers(self, config: Any) -> None:
        layers = set(getattr(config, "layer_types", None) or ["full_attention"])
        if other := sorted(layers - {"full_attention"}):
            problem = f"layers of the type {other[0]} are not supported"
            raise ConfigurationError(f"{self._where}: {problem}; use a model whose layers all have full attention")

    def _try_out(self) -> None:
        """Compare the logits of rows, in two steps, with those of plain transformers.

        Raises ConfigurationError if the network's attention does not work with the rows' memory (latent attention,
        biases by position).
        """
        counts = list(_TRIED_TOKENS)
        if self._attention == _OWN_ATTENTION:
            counts.append(min(_LONG_TOKENS, Checkpoint(self._folder, self._where).max_tokens))
        rows = [[token % self.vocabulary for token in range(3, 3 + count)] for count in counts]
        try:
            block = Block(self.shape)
            for _ in rows:
                block.add(self.shape.empty())
            self.run(block, [Feed(row[:-1], (0,)) for row in rows])
            own = torch.cat(self.run(block, [Feed(row[-1:], (0,)) for row in rows]))
            branch = self._after_a_branch(rows[0])
            if self._attention != _OWN_ATTENTION:
                self._model.set_attn_implementation("sdpa")
            with torch.inference_mode():
                plain = [self._plain(row) for row in rows]
            if self._attention != _OWN_ATTENTION:
                self._model.set_attn_implementation(self._attention)
        except Exception as error:  # transformers' networks raise errors of every type
            said = " ".join(str(error).split())[:_LONGEST_REASON]
            raise self._unserved(f"its attention does not work in steps ({type(error).__name__}: {said})") from error
        right = torch.cat(plain).float().cpu()
        most = _MARGIN if self._precision == "fp32" else _ROUGH_MARGIN
        if not (difference := _difference(own, right)) <= most:  # NaN is no number that is less
            raise self._unserved(f"its answers in steps differ from those of transformers (by {difference:.2g})")
        self.branches = _difference(branch, right[:1]) <= most
        self.tokens_read = 0

    def _try_adapters(self) -> None:
        """Raise ConfigurationError if rows of different adapters cannot share a step."""
        block = Block(self.shape)
        rows = [[token % self.vocabulary for token in range(3, 3 + count)] for count in _TRIED_TOKENS]
        for _ in rows:
            block.add(self.shape.empty())
        try:
            self.run(block, [Feed(row, (0,), adapter=number) for number, row in enumerate(rows)])
        except low_rank.NotByRow as error:
            remedy = "merge the adapter into a model of its own"
            raise ConfigurationError(f"{self._where}.options.adapters: {error}; {remedy}") from error
        self.tokens_read = 0

    def _after_a_branch(self, row: Sequence[int]) -> torch.Tensor:
        """Return the logits after a row whose last token stands behind others, which it does not see."""
        block = Block(self.shape)
        block.add(self.shape.empty())
        before, own = len(row) - 1, len(row) - 1 + _BESIDE
        tokens = [*row[:-1], *[row[0]] * _BESIDE, row[-1]]
        sees = torch.ones((len(tokens), len(tokens)), dtype=torch.bool).tril()
        sees[own, before:own] = False
        return self.run(block, [Feed(tokens, (own,), [*range(before), *[before] * _BESIDE, before], sees)])[0]

    def _plain(self, row: Sequence[int]) -> torch.Tensor:
        """Return the logits after a row, with the positions that transformers' `generate` gives a network."""
        given = {"input_ids": torch.tensor([row], device=self._device)}
        if "position_ids" in inspect.signature(self._model.forward).parameters:
            given["position_ids"] = torch.arange(len(row), device=self._device)[None]
        logits: torch.Tensor = self._model(**given).logits[:, -1]
        return logits

    def _unserved(self, problem: str) -> ConfigurationError:
        return ConfigurationError(f"{self._where}: {problem}; use a checkpoint of another architecture")

    @property
    def shape(self) -> CacheShape:
        """The shape of the keys and values of a token."""
        config = self._model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return CacheShape(config.num_hidden_layers, heads, width, self._model.dtype, self._device)

    @property
    def vocabulary(self) -> int:
        """The number of tokens that have a logit."""
        return int(self._model.config.vocab_size)

    def run(self, block: Block, feeds: Sequence[Feed]) -> list[torch.Tensor]:
        """Feed each row of a block its tokens. Return each row's logits at its `wanted` tokens, (wanted, vocabulary),
        in fp32 on the CPU.
        """
        tokens = max(len(feed.tokens) for feed in feeds)
        block.begin(tokens)
        ids = torch.zeros((len(feeds), tokens), dtype=torch.long)
        for row, feed in enumerate(feeds):
            ids[row, : len(feed.tokens)] = torch.tensor(feed.tokens)
        wanted = sorted({place for feed in feeds for place in feed.wanted}) or [0]
        if self._adapter_rows is not None:
            self._adapter_rows.set([feed.adapter for feed in feeds], tokens, self._device)
        with torch.inference_mode():
            logits = self._model(
                input_ids=ids.to(self._device),
                attention_mask=self._mask(block, feeds, tokens),
                position_ids=self._positions(block, feeds),
                past_key_values=block,
                use_cache=True,
                logits_to_keep=torch.tensor(wanted, device=self._device),
            ).logits
        at = {place: index for index, place in enumerate(wanted)}
        key_value_memory.lengths_after(block, [len(feed.tokens) for feed in feeds])
        self.tokens_read += sum(len(feed.tokens) for feed in feeds)
        rows = [row for row, feed in enumerate(feeds) for _ in feed.wanted]
        places = [at[place] for feed in feeds for place in feed.wanted]
        # copy all rows from the device at once: each separate copy would wait for the device again
        found = logits[rows, places].float().cpu()
        return list(found.split([len(feed.wanted) for feed in feeds]))

    def _mask(self, block: Block, feeds: Sequence[Feed], tokens: int) -> torch.Tensor:
        """Return the mask of the network's attention: whether a token is seen, or for one of its own a summand."""
        seen = key_value_memory.visible(block, self._inner(feeds, tokens), tokens)
        if self._attention != _OWN_ATTENTION:
            return seen
        kind = self._model.dtype
        return torch.zeros(seen.shape, dtype=kind, device=seen.device).masked_fill(~seen, torch.finfo(kind).min)

    def _positions(self, block: Block, feeds: Sequence[Feed]) -> torch.Tensor:
        """Return the tokens' positions. The padding behind a row's tokens has that of the first of them.

        Counted on, it might pass the network's limit, or the length from which LongRoPE turns all tokens otherwise.
        """
        positions = block.columns.clone()
        for row, feed in enumerate(feeds):
            if feed.offsets is not None:
                offsets = torch.tensor(feed.offsets, device=self._device)
                positions[row, : len(offsets)] = block.columns[row, 0] + offsets
            if len(feed.tokens) < positions.shape[1]:
                positions[row, len(feed.tokens) :] = block.columns[row, 0]
        return positions

    def _inner(self, feeds: Sequence[Feed], tokens: int) -> torch.Tensor | None:
        if all(feed.sees is None for feed in feeds):
            return None
        inner = torch.ones((len(feeds), tokens, tokens), dtype=torch.bool, device=self._device).tril()
        for row, feed in enumerate(feeds):
            if feed.sees is not None:
                count = len(feed.tokens)
                inner[row, :count, :count] = feed.sees.to(self._device)
        return inner


def _difference(own: torch.Tensor, right: torch.Tensor) -> float:
    return float((own - right).abs().mean() / right.abs().mean().clamp(min=1e-6))
