"""Generation by vLLM on GPUs, with its own batching, key-value memory and prefix cache; same requests and answers.

vLLM runs inside the device process, not in a process of its own, so that it always ends with the device process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from producers.wire.errors import ConfigurationError
from workers.models.adapters.lora_folder import Adapter
from workers.models.generation import vllm_requests
from workers.models.generation.generation_request import GenerationRequest
from workers.models.generation.vllm_requests import Ask, VllmRequest
from workers.models.generation.writing import TextWriter
from workers.models.interface.stepwise import StepResult

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Llm(Protocol):
    """The part of vLLM's ``LLMEngine`` that is used."""

    def add_request(self, request_id: str, prompt: Any, params: Any, *, lora_request: Any, priority: int) -> Any: ...
    def abort_request(self, request_ids: list[str]) -> None: ...
    def step(self) -> list[Any]: ...


class Calls(Protocol):
    """Builds vLLM's objects from plain values."""

    def params(self, ask: Ask) -> Any: ...
    def adapter(self, number: int) -> Any: ...


class VllmEngine:
    """All requests at the device. Not thread-safe."""

    def __init__(self, llm: Llm, calls: Calls, tokenizer: Tokenizer, eos: Collection[int]) -> None:
        self._llm = llm
        self._calls = calls
        self._tokenizer = tokenizer
        self._eos = eos
        self._asked: dict[Hashable, VllmRequest] = {}
        self._by_name: dict[str, VllmRequest] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._asked)

    def join(self, key: Hashable, request: GenerationRequest, *, urgency: int, adapter: int = 0) -> None:
        """Send a request to vLLM. Re-raises vLLM's error if it refuses the request."""
        asked = VllmRequest(key, request, TextWriter(self._tokenizer, request.stop), self._eos)
        self._asked[key] = asked
        try:
            for ask in vllm_requests.asks(request, self._eos):
                self._number += 1
                name = str(self._number)
                self._llm.add_request(
                    name,
                    {"prompt_token_ids": ask.tokens},
                    self._calls.params(ask),
                    lora_request=self._calls.adapter(adapter) if adapter else None,
                    priority=urgency,
                )
                asked.waiting[name], self._by_name[name] = ask, asked
        except Exception:
            self.leave(key)
            raise

    def leave(self, key: Hashable) -> None:
        asked = self._asked.pop(key, None)
        if asked is None:
            return
        for name in asked.waiting:
            del self._by_name[name]
        if asked.waiting:
            self._llm.abort_request(list(asked.waiting))

    def clear(self) -> None:
        """Drop all requests after a fault."""
        for key in list(self._asked):
            self.leave(key)

    def step(self) -> list[StepResult]:
        """Take a step and return its outputs."""
        started = time.perf_counter()
        outputs = self._llm.step()
        each_s = (time.perf_counter() - started) / max(len(self._asked), 1)
        for asked in self._asked.values():
            asked.forward_s += each_s
        touched: dict[Hashable, VllmRequest] = {}
        for output in outputs:
            asked_for = self._by_name.get(output.request_id)  # None for late outputs of a request that has left
            if asked_for is not None:
                touched[asked_for.key] = asked_for
                self._take(asked_for, output)
        return [self._stepped(asked) for asked in touched.values() if asked.outcome or asked.request.stream]

    def _take(self, asked: VllmRequest, output: Any) -> None:
        [made] = output.outputs
        if output.finished:
            del self._by_name[output.request_id]  # first, because an aborted request raises below
        if asked.request.labels:
            if output.finished:
                chances = {token: one.logprob for token, one in made.logprobs[0].items()}
                asked.scored(output.request_id, chances, output.num_cached_tokens)
        else:
            reason = made.finish_reason if output.finished else None
            asked.wrote(output.request_id, made.token_ids, reason, output.num_cached_tokens)
        if output.finished:
            asked.waiting.pop(output.request_id, None)  # it is finished in vLLM, so there is nothing to abort

    def _stepped(self, asked: VllmRequest) -> StepResult:
        text, at = asked.writer.piece() if asked.request.stream else ("", 0)
        if asked.outcome is None:
            return StepResult(asked.key, text, at)
        self.leave(asked.key)
        return StepResult(asked.key, text, at, asked.outcome, asked.forward_s)


class _Calls:
    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self._adapters = adapters

    def params(self, ask: Ask) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        return SamplingParams(
            **ask.sampling,
            # deltas, because stop strings must be found at once even without streaming
            output_kind=RequestOutputKind.DELTA,
            structured_outputs=None if ask.schema is None else StructuredOutputsParams(json=ask.schema),
        )

    def adapter(self, number: int) -> Any:
        from vllm.lora.request import LoRARequest

        return LoRARequest(f"adapter-{number}", number, str(self._adapters[number - 1].folder))


def start(
    arguments: Mapping[str, Any], adapters: Sequence[Adapter], tokenizer: Tokenizer, eos: Collection[int], *, where: str
) -> VllmEngine:
    """Return an engine with its weights on the GPU. Raises ConfigurationError if vLLM is not installed."""
    # set before the import: stay in this process, and send no usage statistics
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", VLLM_DO_NOT_TRACK="1")
    try:
        from vllm.config import StructuredOutputsConfig
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine
    except ImportError as error:
        raise ConfigurationError(f"{where}.backend: vllm: {error}; pip install 'argosy[vllm]'") from error
    grammars = StructuredOutputsConfig(backend="guidance")
    llm: Any = LLMEngine.from_engine_args(EngineArgs(**arguments, structured_outputs_config=grammars))
    return VllmEngine(llm, _Calls(adapters), tokenizer, eos)
