"""vLLM as a backend: what it is asked, what its outputs come to, who leaves. vLLM itself needs a GPU, which there is
none of here: a plain loop over transformers' network stands for it, which takes the same calls and gives outputs of the
same form.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from producers.wire.errors import ConfigurationError
from tests import tiny_checkpoints
from tests.integration.test_generation import told
from tests.serving import Served, assert_alike
from workers.models.adapters.lora_folder import Adapter
from workers.models.backends.choice import Backend
from workers.models.generation import vllm_requests
from workers.models.generation.generation_request import GenerationRequest, Sampling
from workers.models.generation.vllm_engine import VllmEngine
from workers.models.generation.vllm_requests import Ask

TASKS = {
    "chat": "text-generation",
    "urgency": {
        "kind": "prompted-classification",
        "prompt": "How urgent is the message? Message: {input}",
        "labels": ["low", "high", "higher"],
    },
}


@dataclass
class PlainLlm:
    """Writes greedily, a token a step for each request, as ``LLMEngine`` is driven and answers."""

    network: Any
    requests: dict[str, tuple[list[int], Any]] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    priorities: list[int] = field(default_factory=list)

    def add_request(self, request_id: str, prompt: Any, params: Any, *, lora_request: Any, priority: int) -> None:
        if len(prompt["prompt_token_ids"]) > 256:
            raise ValueError("the prompt is longer than the model")
        self.requests[request_id] = (list(prompt["prompt_token_ids"]), params)
        self.priorities.append(priority)

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        for name in request_ids:
            del self.requests[name]  # one that has ended must not be aborted

    def step(self) -> list[Any]:
        return [self._next(name) for name in list(self.requests)]

    def _next(self, name: str) -> Any:
        import torch

        tokens, params = self.requests[name]
        with torch.inference_mode():
            chances = self.network(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
        token = int(chances.argmax())
        tokens.append(token)
        params["max_tokens"] -= 1
        stopped = token in params.get("stop_token_ids", ())
        reason = "stop" if stopped else "length" if not params["max_tokens"] else None
        if reason:
            del self.requests[name]
        wanted = params.get("logprob_token_ids", [])
        row = {one: SimpleNamespace(logprob=float(chances[one])) for one in (*wanted, token)}
        made = SimpleNamespace(token_ids=[token], finish_reason=reason, logprobs=[row] if wanted else None)
        return SimpleNamespace(request_id=name, outputs=[made], finished=reason is not None, num_cached_tokens=0)


class PlainCalls:
    def params(self, ask: Ask) -> dict[str, Any]:
        return dict(ask.sampling)

    def adapter(self, number: int) -> int:
        return number


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.llama(tmp_path_factory.mktemp("llama") / "llama")


@pytest.fixture(scope="module")
def network(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


@pytest.fixture
def llm(network: Any) -> PlainLlm:
    return PlainLlm(network)


@pytest.fixture
def served(folder: Path, llm: PlainLlm) -> Served:
    return answering(folder, llm)


def answering(folder: Path, llm: PlainLlm) -> Served:
    served = Served(folder, TASKS, Backend("vllm", "bf16"))
    prompts = served.model.prompts
    served.model._engine = VllmEngine(llm, PlainCalls(), prompts.tokenizing.tokenizer, prompts.eos)
    return served


def test_the_client_cannot_tell_them_apart(served: Served, folder: Path) -> None:
    """The same answers as from our own steps: text, why it ends, how many tokens; stop strings; labels with their
    scores.
    """
    assert_as_ours(served, folder)


def test_labels_end_by_any_end_token_there_too(folder: Path, llm: PlainLlm, tmp_path: Path) -> None:
    ends = told(tmp_path / "told", folder, eos_token_id=[0, 2])
    assert_as_ours(answering(ends, llm), ends)


def assert_as_ours(served: Served, folder: Path) -> None:
    ours = Served(folder, TASKS).load()
    texts = ["Once upon", "a time", "Why is the sky blue?"]
    for params in ({"max_new_tokens": 12}, {"max_new_tokens": 40, "stop": ["e", "\n"]}):
        expected = ours.ask("chat", texts, **params)
        found = served.ask("chat", texts, **params)
        for one in (*expected, *found):
            del one["cached_tokens"]  # what each remembers is its own matter
        assert found == expected
    assert_alike(served.ask("urgency", texts, top_k=None), ours.ask("urgency", texts, top_k=None))
    assert served.model.revision == f"{ours.model.revision}+vllm-bf16"


def test_who_leaves_is_aborted_and_forgotten(served: Served, llm: PlainLlm) -> None:
    """A stop string ends it there, too; what still comes of it is dropped; who has ended is not aborted again."""
    engine: VllmEngine = served.model._engine
    request = GenerationRequest(served.model.prompts.text("Once upon"), 30)
    engine.join("stays", request, urgency=3)
    engine.join("goes", request, urgency=0)
    engine.step()
    assert llm.priorities == [3, 0]
    engine.leave("goes")
    engine.leave("never joined")
    assert len(engine) == 1
    assert llm.aborted == ["2"]
    outcomes = [one for _ in range(30) for one in engine.step() if one.ended]
    assert [one.key for one in outcomes] == ["stays"]
    assert llm.aborted == ["2"]
    assert not llm.requests
    engine.join("again", request, urgency=0)
    engine.clear()
    assert (len(engine), llm.requests) == (0, {})


def test_a_request_that_is_refused_leaves_nothing_behind(served: Served, llm: PlainLlm) -> None:
    """It is that request's failure; of its labels' requests none stays."""
    engine: VllmEngine = served.model._engine
    too_long = GenerationRequest(
        [5] * 256, labels=[[6, 2], [7, 2]]
    )  # the prompt fits, the prompt with a label's beginning does not
    with pytest.raises(ValueError, match="longer than the model"):
        engine.join("key", too_long, urgency=0)
    assert (len(engine), llm.requests) == (0, {})


def test_text_is_streamed_piece_by_piece(served: Served) -> None:
    engine: VllmEngine = served.model._engine
    engine.join("key", GenerationRequest(served.model.prompts.text("Once upon"), 10, stream=True), urgency=0)
    steps = [one for _ in range(10) for one in engine.step()]
    assert "".join(one.text for one in steps) == steps[-1].output.text
    assert [one.at for one in steps] == [sum(len(s.text) for s in steps[:n]) for n in range(len(steps))]


def test_labels_are_asked_by_what_they_begin_with() -> None:
    """One request for each beginning, with all that may follow it."""
    labels = [[5, 2], [6, 2], [6, 7, 2]]
    assert vllm_requests.next_tokens(labels, [2]) == {(): [5, 6], (5,): [2], (6,): [2, 7], (6, 7): [2]}
    assert vllm_requests.next_tokens(labels, [2, 0]) == {(): [5, 6], (5,): [0, 2], (6,): [0, 2, 7], (6, 7): [0, 2]}
    asks = list(vllm_requests.asks(GenerationRequest([9, 9], labels=[[5, 2], [6, 2]]), {2}))
    assert [ask.tokens for ask in asks] == [[9, 9], [9, 9, 5], [9, 9, 6]]
    assert asks[0].sampling["logprob_token_ids"] == [5, 6]
    assert asks[0].sampling["max_tokens"] == 1


def test_what_is_asked_for_is_what_vllm_is_told(served: Served) -> None:
    """Every parameter, and the schema of the very grammar that our own steps follow."""
    from workers.models.generation import grammar

    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=40, repetition_penalty=1.1, seed=5)
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    [ask] = vllm_requests.asks(
        GenerationRequest([9], 16, sampling, grammar=grammar.of_schema(schema, "schema")), {2, 3}
    )
    assert ask.sampling == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "repetition_penalty": 1.1,
        "seed": 5,
        "max_tokens": 16,
        "stop_token_ids": [2, 3],
        "detokenize": False,
    }
    assert ask.schema is not None
    assert '"city"' in ask.schema
    assert '"whitespace_flexible": false' in ask.schema


def test_the_engine_is_started_with_the_models_settings(folder: Path) -> None:
    settings: dict[str, Any] = {"precision": "bf16", "max_tokens": 128, "rows": 64, "gpu_memory_share": 0.5}
    found = vllm_requests.engine_arguments(folder, prefixes=True, **settings)
    assert found["model"] == str(folder)
    assert (found["dtype"], found["max_model_len"], found["max_num_seqs"]) == ("bfloat16", 128, 64)
    assert (found["enable_prefix_caching"], found["gpu_memory_utilization"]) == (True, 0.5)
    assert "enable_lora" not in found
    adapter = Adapter(folder, "models.own.options.adapters")
    adapter.__dict__["shapes"] = {"layer.lora_A.weight": (12, 32), "layer.lora_B.weight": (32, 12)}
    found = vllm_requests.engine_arguments(folder, prefixes=True, adapters=[adapter], **settings)
    assert (found["enable_lora"], found["max_loras"], found["max_lora_rank"]) == (True, 1, 16)


def test_a_request_that_vllm_gives_up_is_an_error(
    served: Served, llm: PlainLlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch fails, and is looked into; no half answer passes for a whole one, and nothing is left of it."""
    engine: VllmEngine = served.model._engine
    engine.join("key", GenerationRequest([5], 8), urgency=0)
    [name] = llm.requests
    made = SimpleNamespace(token_ids=[], finish_reason="abort", logprobs=None)
    given_up = SimpleNamespace(request_id=name, outputs=[made], finished=True, num_cached_tokens=0)
    monkeypatch.setattr(llm, "step", lambda: [given_up])
    with pytest.raises(RuntimeError, match="vLLM ended the request: abort"):
        engine.step()
    engine.clear()
    assert (len(engine), engine._by_name, llm.aborted) == (0, {}, [])


def test_it_is_for_gpus_and_must_be_installed(folder: Path) -> None:
    """Both are said when the worker starts, with what to do."""
    with pytest.raises(ConfigurationError, match=r"backend: vllm runs on GPUs only, not on cpu; use 'torch'"):
        Served(folder, TASKS, Backend("vllm", "bf16")).load()
    with pytest.raises(ConfigurationError, match=r"pip install 'argosy\[vllm\]'"):
        Served(folder, TASKS, Backend("vllm", "bf16")).model.load("cuda:0")
