"""Translate requests to vLLM's, and its outputs to answers. Neither vLLM nor torch is imported here.

A request to generate is a single vLLM request. The likelihoods of labels need several: one for each prefix of a label,
which returns the likelihoods of the tokens that may follow. vLLM's prefix cache reads their common tokens once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from workers.models.adapters.lora_folder import Adapter
from workers.models.backends.choice import DTYPES
from workers.models.generation.generation_request import GenerationRequest, Written
from workers.models.generation.writing import TextWriter

#: The LoRA ranks that vLLM supports.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

#: A proper prefix of a label's tokens.
Beginning: TypeAlias = tuple[int, ...]


def engine_arguments(
    folder: Path,
    *,
    precision: str,
    max_tokens: int,
    rows: int,
    prefixes: bool,
    gpu_memory_share: float,
    adapters: Sequence[Adapter] = (),
) -> dict[str, Any]:
    """Return the arguments of vLLM's ``EngineArgs``."""
    arguments: dict[str, Any] = {
        "model": str(folder),
        "dtype": DTYPES[precision],
        "max_model_len": max_tokens,
        "max_num_seqs": rows,
        "enable_prefix_caching": prefixes,
        "gpu_memory_utilization": gpu_memory_share,
        "scheduling_policy": "priority",
        "load_format": "safetensors",
        "generation_config": "vllm",  # use no sampling defaults from the folder
        "logprobs_mode": "raw_logprobs",
        "trust_remote_code": False,
        "disable_log_stats": True,
    }
    if adapters:
        largest = max(
            shape[0] for one in adapters for name, shape in one.shapes.items() if name.endswith("lora_A.weight")
        )
        rank = next((rank for rank in _RANKS if rank >= largest), largest)
        arguments |= {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": rank}
    return arguments


@dataclass(frozen=True, slots=True)
class Ask:
    """A vLLM request: its tokens, the arguments of its ``SamplingParams``, and a JSON schema of the answer."""

    tokens: list[int]
    sampling: Mapping[str, Any]
    schema: str | None = None
    beginning: Beginning = ()


def asks(request: GenerationRequest, eos: Collection[int]) -> Iterator[Ask]:
    """Yield the vLLM requests for a request."""
    if request.labels:
        for beginning, following in next_tokens(request.labels, eos).items():
            scored = {"temperature": 0.0, "max_tokens": 1, "detokenize": False, "logprob_token_ids": following}
            yield Ask([*request.tokens, *beginning], scored, beginning=beginning)
        return
    chosen = request.sampling
    sampling: dict[str, Any] = {
        "temperature": chosen.temperature,
        "top_p": chosen.top_p,
        "top_k": chosen.top_k,
        "repetition_penalty": chosen.repetition_penalty,
        "seed": chosen.seed,
        "max_tokens": request.max_new_tokens,
        "stop_token_ids": sorted(eos),
        "detokenize": False,  # our own writer finds stop strings and whole characters, as on every backend
    }
    yield Ask(request.tokens, sampling, _schema(request.grammar) if request.grammar else None)


def _schema(grammar: str) -> str:
    """Return the JSON schema in a llguidance grammar. vLLM compiles the same grammar from it."""
    [own] = json.loads(grammar)["grammars"]
    return json.dumps(own["json_schema"])


def next_tokens(labels: Sequence[Sequence[int]], eos: Collection[int]) -> dict[Beginning, list[int]]:
    """Return each proper prefix of a label, with the tokens that follow it in some label: of the end tokens all."""
    found: dict[Beginning, set[int]] = {}
    for label in labels:
        for place, token in enumerate(label):
            found.setdefault(tuple(label[:place]), set()).update(eos if token in eos else [token])
    return {beginning: sorted(following) for beginning, following in found.items()}


@dataclass(slots=True, eq=False)
class VllmRequest:
    """A request at vLLM. `waiting` has the names of its vLLM requests that are not answered yet."""

    key: Hashable
    request: GenerationRequest
    writer: TextWriter
    eos: Collection[int]
    waiting: dict[str, Ask] = field(default_factory=dict)
    written: int = 0
    cached: int = 0
    forward_s: float = 0.0
    outcome: Written | None = None
    _chances: dict[Beginning, Mapping[int, float]] = field(default_factory=dict)

    def wrote(self, name: str, tokens: Sequence[int], finish_reason: str | None, cached: int | None) -> None:
        """Take the newly generated tokens. Raises RuntimeError if vLLM aborted the request."""
        self.cached = max(self.cached, cached or 0)
        for token in tokens:
            self.written += 1
            if token in self.eos:
                self._end("stop")
                return
            self.writer.add(token)
            if self.writer.stopped:
                self._end("stop")
                return
        if finish_reason is not None:
            del self.waiting[name]
            if finish_reason not in ("stop", "length"):
                raise RuntimeError(f"vLLM ended the request: {finish_reason}")
            self._end(finish_reason)

    def scored(self, name: str, chances: Mapping[int, float], cached: int | None) -> None:
        """Take the log-likelihoods of the tokens after a prefix. The last call sets the labels' scores."""
        ask = self.waiting.pop(name)
        if not ask.beginning:
            self.cached = cached or 0
        self._chances[ask.beginning] = chances
        if self.waiting:
            return
        self.outcome = Written(cached_tokens=self.cached, scores=list(map(self._score, self.request.labels)))

    def _score(self, label: Sequence[int]) -> float:
        after = [self._chances[tuple(label[:place])] for place in range(len(label))]
        return sum(
            _any(own, self.eos if token in self.eos else [token]) for own, token in zip(after, label, strict=True)
        )

    def _end(self, reason: str) -> None:
        self.writer.end()
        self.outcome = Written(self.writer.text, reason, self.written, self.cached)


def _any(chances: Mapping[int, float], tokens: Collection[int]) -> float:
    """Return the log-likelihood that the next token is one of these."""
    most = max(chances[token] for token in tokens)
    if most == -math.inf:
        return most
    return most + math.log(sum(math.exp(chances[token] - most) for token in tokens))
