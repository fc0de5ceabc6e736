"""A Hugging Face decoder with its tasks, of the kinds `text-generation`, `prompted-classification` and `prompted-json`.
All of its tasks share its steps.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta, field

from producers.wire.catalogue import Task
from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.kinds.generation import PromptedClassificationParams, PromptedJsonParams, TextGenerationParams
from producers.wire.messages import Message, MessagesInput
from workers.models.adapters.lora_folder import Adapter
from workers.models.generation import generation_request, grammar
from workers.models.generation.checkpoint_rules import OBEYED, CheckpointRules
from workers.models.generation.generation_request import GenerationRequest, Sampling, Written
from workers.models.generation.prompts import Prompts
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.checkpoint_model import FolderOptions, read_for_each
from workers.models.huggingface.text_head import best_labels, softmax
from workers.models.huggingface.tokenizing import Tokenizing
from workers.models.interface import ragged
from workers.models.interface.model import Array, Prepared, digest
from workers.models.interface.options import Amount, Count, Table
from workers.models.interface.stepwise import EngineModel
from workers.models.sources import model_source

if TYPE_CHECKING:
    from workers.models.generation.decoding_engine import DecodingEngine  # noqa: F401 (in quotes in the base class)
    from workers.models.generation.vllm_engine import VllmEngine

#: The default number of requests in a step, of our own engine and of vLLM.
_ROWS = {"torch": 8, "vllm": 256}


#: The most tokens of a task's labels. They are read in one pass, whose mask grows with their square.
_MOST_LABEL_TOKENS = 1024


class GenerationOptions(FolderOptions, frozen=True):
    """`max_tokens` limits prompt and answer together, by default to the checkpoint's own limit. Keys and values of
    `prefix_tokens` tokens are cached for prompts that begin alike (vLLM has its own limit; 0 turns it off). A step has
    `step_rows` requests, by default 8, with vLLM 256. `adapters` gives a task its LoRA folder. vLLM takes
    `gpu_memory_share` of the GPU's memory.
    """

    max_tokens: Count | None = None
    prefix_tokens: Amount = 2048
    step_rows: Count | None = None
    adapters: Table = field(default_factory=dict)
    gpu_memory_share: Annotated[float, Meta(gt=0, lt=1, description="a number over 0 and under 1")] = 0.9


class GenerationModel(EngineModel["DecodingEngine | VllmEngine"]):
    """A decoder whose requests join and leave between two steps."""

    options_class = GenerationOptions
    options: GenerationOptions

    backends = ("torch", "vllm")
    #: The tokens of the requests at the device, whose keys and values are in its memory.
    default_cost = 16384

    # --- in the parent process ---

    @cached_property
    def revision(self) -> str:
        if self.spec.backend.compiled:
            raise ConfigurationError(f"{self._where}.compile: not supported for text generation; leave it out")
        if self.options.own_code == "refused":
            self.prompts.tokenizing.checkpoint.refuse_own_code(("AutoModelForCausalLM", "AutoTokenizer"))
        if self.prompts.chats:
            self.prompts.chats_here()  # report it when the worker starts, not at the first item
        self.prompts.check_settings(obeyed=OBEYED if self.spec.backend.name == "torch" else ())
        backend = self.spec.backend
        parts = [self.spec.revision, *(model_source.folder_revision(one.folder) for one in self.adapters)]
        return "+".join(parts if backend.is_reference else [*parts, str(backend)])

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Tokenise a prompt or messages. The row has a packed request for each task, uint8 `(bytes,)`. Its size is the
        number of tokens to read and to generate. Raises InvalidInput, InputTooLarge.
        """
        found, refused = read_for_each(params, lambda task, chosen: self._request(content, chosen))
        arrays = {task: request.packed() for task, request in found.items()}
        size = sum(len(request.tokens) + _to_write(request) for request in found.values())
        return Prepared(arrays, size, digest(arrays), refused, {task: len(found[task].tokens) for task in found})

    def _request(self, content: Any, params: msgspec.Struct) -> GenerationRequest:
        match params:
            case TextGenerationParams():
                return self._free(content, params)
            case PromptedClassificationParams():
                return self._choice(content, params)
            case PromptedJsonParams():
                return self._json(content, params)
        raise ConfigurationError(f"{self._where}: tasks with {type(params).__name__} are not supported")

    def _free(self, content: str | MessagesInput, params: TextGenerationParams) -> GenerationRequest:
        if isinstance(content, str) and params.as_message:
            content = MessagesInput((Message("user", content),))
        tokens = self.prompts.text(content) if isinstance(content, str) else self.prompts.messages(content)
        if not tokens:
            raise InvalidInput("input", "has no readable characters", "give it some text")
        room = self.prompts.room(tokens, params.max_new_tokens)
        asked = {name: getattr(params, name) for name in Sampling.__struct_fields__}
        if params.repetition_penalty is None:
            asked["repetition_penalty"] = self.prompts.repetition_penalty
        sampling = Sampling(**asked)
        if sampling.temperature and sampling.seed is None:
            # drawn in the parent, so that a request restarted after a crash of the device gives the same text
            sampling = msgspec.structs.replace(sampling, seed=secrets.randbits(63))
        return GenerationRequest(tokens, room, sampling, params.stop, params.stream)

    def _choice(self, content: str, params: PromptedClassificationParams) -> GenerationRequest:
        tokens = self.prompts.templated(params.prompt, content)
        ending = self.prompts.eos[:1]  # for all; without it, "low" would gain the likelihood of every "lower"
        labels = [self.prompts.bare(label) + ending for label in params.labels]
        self.prompts.room(tokens, max(map(len, labels)), asked=False)
        if (in_all := sum(map(len, labels))) > _MOST_LABEL_TOKENS:
            problem = f"have {in_all:,} tokens in all, over {_MOST_LABEL_TOKENS:,}"
            raise InvalidInput("params.labels", problem, "use fewer or shorter labels")
        return GenerationRequest(tokens, labels=labels, shared=self.prompts.shared(params.prompt))

    def _json(self, content: str, params: PromptedJsonParams) -> GenerationRequest:
        tokens = self.prompts.templated(params.prompt, content)
        return GenerationRequest(
            tokens,
            self.prompts.room(tokens, params.max_new_tokens),
            grammar=self._grammar(msgspec.json.encode(params.schema)),
            shared=self.prompts.shared(params.prompt),
        )

    @cached_property
    def _grammar(self) -> Callable[[bytes], str]:
        """The function from a JSON schema to its grammar. Its cache is bounded, because items may have their own
        schemas.
        """
        return lru_cache(256)(lambda schema: grammar.of_schema(msgspec.json.decode(schema), "params.schema"))

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        """Return the text, labels or JSON of a `ragged` row. Raises ValueError if the JSON was cut off."""
        written = msgspec.convert(ragged.unpack(output), Written)
        if isinstance(params, PromptedClassificationParams):
            import numpy as np

            return best_labels(params.labels, softmax(np.array(written.scores)), params.top_k)
        if isinstance(params, PromptedJsonParams):
            if written.finish_reason != "stop":
                raise ValueError(
                    f"the answer is incomplete after {written.completion_tokens} tokens; raise `max_new_tokens`"
                )
            return msgspec.json.decode(written.text)
        return {
            "text": written.text,
            "finish_reason": written.finish_reason,
            "prompt_tokens": prepared.aside[task.name],
            "completion_tokens": written.completion_tokens,
            "cached_tokens": written.cached_tokens,
        }

    @cached_property
    def prompts(self) -> Prompts:
        """The tokenizer of prompts."""
        checkpoint = Checkpoint(self.spec.folder, self._where)
        most = min(checkpoint.max_tokens, self.options.max_tokens or checkpoint.max_tokens)
        window = checkpoint.config.get("sliding_window")
        if isinstance(window, int) and checkpoint.config.get("use_sliding_window", True):
            most = min(most, window)  # a longer text would need attention over a sliding window
        if checkpoint.short_tokens:
            most = min(most, checkpoint.short_tokens)  # a longer text would need other keys for all of its tokens
        return Prompts(checkpoint, Tokenizing(checkpoint), most)

    @cached_property
    def adapters(self) -> Sequence[Adapter]:
        """The distinct adapters of the tasks."""
        given = self.options.adapters
        where = f"{self._where}.options.adapters"
        if unknown := sorted(set(given) - set(self.spec.tasks)):
            raise ConfigurationError(f"{where}.{unknown[0]}: the model has no such task")
        found = list(dict.fromkeys(Adapter(Path(folder).expanduser(), where) for folder in given.values()))
        for adapter in found:
            adapter.check()
            if adapter.saved:
                raise ConfigurationError(
                    f"{where}: the adapter replaces {adapter.saved[0]}; text generation supports LoRA layers only"
                )
        return found

    @cached_property
    def _adapter_numbers(self) -> Mapping[str, int]:
        """The adapter number of each task, counted from 1."""
        folders = [adapter.folder for adapter in self.adapters]
        return {task: 1 + folders.index(Path(own).expanduser()) for task, own in self.options.adapters.items()}

    @property
    def _rows(self) -> int:
        return self.options.step_rows or _ROWS[self.spec.backend.name]

    @property
    def _where(self) -> str:
        return f"models.{self.spec.name}"

    # --- in the device process ---

    def load(self, device: str) -> None:
        self.prompts.tokenizing.check()
        self.prompts.check()
        if self.spec.backend.name == "vllm":
            self._engine = self._vllm(device)
            return
        from workers.models.generation.decoder_network import DecoderNetwork
        from workers.models.generation.decoding_engine import DecodingEngine
        from workers.models.generation.grammar import Grammars

        network = DecoderNetwork(
            self.spec.folder, where=self._where, precision=self.spec.backend.precision, adapters=self.adapters
        )
        network.load(device)
        labelling = [name for name, task in self.spec.tasks.items() if task.kind.name == "prompted-classification"]
        if labelling and not network.branches:
            problem = "the architecture cannot score labels beside each other; generate text, or use another checkpoint"
            raise ConfigurationError(f"{self._where}.tasks.{labelling[0]}: {problem}")
        tokenizer = self.prompts.tokenizing.tokenizer
        self._engine = DecodingEngine(
            network,
            rows=self._rows,
            prefix_tokens=self.options.prefix_tokens,
            tokenizer=tokenizer,
            grammars=Grammars(tokenizer.to_str(), network.vocabulary, self.prompts.eos),
            eos=self.prompts.eos,
            rules=CheckpointRules(self.prompts.settings, self.prompts.eos, self._where),
        )

    def _vllm(self, device: str) -> VllmEngine:
        from workers.models.generation import vllm_engine, vllm_requests

        if not device.startswith("cuda"):
            raise ConfigurationError(f"{self._where}.backend: vllm runs on GPUs only, not on {device}; use 'torch'")
        arguments = vllm_requests.engine_arguments(
            self.spec.folder,
            precision=self.spec.backend.precision,
            max_tokens=self.prompts.max_tokens,
            rows=self._rows,
            prefixes=self.options.prefix_tokens > 0,
            gpu_memory_share=self.options.gpu_memory_share,
            adapters=self.adapters,
        )
        tokenizer = self.prompts.tokenizing.tokenizer
        return vllm_engine.start(arguments, self.adapters, tokenizer, self.prompts.eos, where=self._where)

    def join(self, key: Hashable, task: str, request: Array, *, urgency: int) -> None:
        self.engine.join(
            key, generation_request.unpack(request), urgency=urgency, adapter=self._adapter_numbers.get(task, 0)
        )


def _to_write(request: GenerationRequest) -> int:
    return request.max_new_tokens or sum(map(len, request.labels))
