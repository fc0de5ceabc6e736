"""What do requests gain that are at the device together?

One client asks SmolLM2-135M eight questions, one after another, and then all eight at the same time, round after round,
through a whole fleet; each answer has as many tokens. Beside it: transformers' own `generate`, one by one and as one
padded batch, and its own continuous batching, on the same prompts in this process, each after a warm-up.
"""

from __future__ import annotations

import dataclasses
import time
from statistics import median
from typing import Any

from benchmarks import convention
from producers import Client
from workers import settings
from workers.models.sources import model_source

FLEET = """
[worker]
models = ["chat"]
[models.chat.tasks]
chat = "text-generation"
"""

QUESTIONS = (
    "What is the capital of France?",
    "Name three fruits and describe each of them.",
    "Write a paragraph about the sea.",
    "Why is the sky blue?",
    "Who wrote Hamlet, and what is it about?",
    "Describe a cat to somebody who has never seen one.",
    "How does one bake bread?",
    "Tell a short story about a lighthouse.",
)


def main() -> None:
    options = convention.options(__doc__)
    tokens, rounds = (6, 1) if options.quick else (64, 3)
    parsed = model_source.parse(settings.load(environment={}).models["chat"].source, where="models.chat.source")
    source = model_source.pull(parsed, model_source.cache_folder())
    with convention.fleet(toml=FLEET) as fleet, Client(fleet.broker_url, fleet.store_url) as client:
        single, together = _fleet(client, tokens, rounds)
    figures: dict[str, Any] = {
        "generation_over_single": round(together / single, 3),
        "together_tokens_per_s": round(together, 1),
        "single_tokens_per_s": round(single, 1),
        "tokens_each": tokens,
    }
    if not options.quick:
        figures |= _transformers(str(source.folder), tokens)
    convention.report("generation", figures, keep=options.keep)


def _fleet(client: Client, tokens: int, rounds: int) -> tuple[float, float]:
    """Return tokens a second: one request at a time, and eight. The two take turns, so that the machine's moods hit
    both.
    """
    _ask(client, QUESTIONS[:1], tokens)
    single, together = [], []
    for number in range(rounds):
        convention.progress(f"round {number + 1} of {rounds}")
        started = time.perf_counter()
        written = sum(_ask(client, [question], tokens) for question in QUESTIONS)
        single.append(written / (time.perf_counter() - started))
        started = time.perf_counter()
        written = _ask(client, QUESTIONS, tokens)
        together.append(written / (time.perf_counter() - started))
    return median(single), median(together)


def _ask(client: Client, questions: Any, tokens: int) -> int:
    """Ask at the same time; return how many tokens were written."""
    handles = [
        client.submit(
            "chat",
            [{"role": "user", "content": question}],
            params={"max_new_tokens": tokens},
            priority="interactive",
        )
        for question in questions
    ]
    return sum(handle.result(timeout_s=120)["completion_tokens"] for handle in handles)


@dataclasses.dataclass
class _Plain:
    """transformers by itself."""

    folder: str
    tokens: int

    def figures(self) -> dict[str, float]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.folder, padding_side="left")
        turns = [[{"role": "user", "content": question}] for question in QUESTIONS]
        texts = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        found = {}
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype="float32")
        for name, groups in (("single", [[text] for text in texts]), ("padded", [texts])):
            convention.progress(f"transformers' generate, {name}")
            batches = [tokenizer(group, return_tensors="pt", padding=True) for group in groups]
            self._generate(model, batches[0])
            started = time.perf_counter()
            written = sum(self._generate(model, batch) for batch in batches)
            found[f"transformers_{name}_tokens_per_s"] = round(written / (time.perf_counter() - started), 1)
        convention.progress("transformers' continuous batching")
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype="float32", attn_implementation="sdpa")
        found["transformers_continuous_tokens_per_s"] = round(self._continuous(model, tokenizer, texts), 1)
        return found

    def _generate(self, model: Any, batch: Any) -> int:
        made = model.generate(**batch, do_sample=False, max_new_tokens=self.tokens)
        new = made[:, batch["input_ids"].shape[1] :]
        # what stands behind a row's end is padding, which is the same token as the end
        ends = [(row == model.generation_config.eos_token_id).nonzero() for row in new]
        return sum(int(end[0]) + 1 if len(end) else new.shape[1] for end in ends)

    def _continuous(self, model: Any, tokenizer: Any, texts: list[str]) -> float:
        from transformers import GenerationConfig

        config = GenerationConfig(
            max_new_tokens=self.tokens,
            do_sample=False,
            eos_token_id=model.generation_config.eos_token_id,
            pad_token_id=model.generation_config.pad_token_id,
        )
        inputs = [tokenizer(text)["input_ids"] for text in texts]
        model.generate_batch(inputs[:1], generation_config=config)
        started = time.perf_counter()
        made = model.generate_batch(inputs, generation_config=config)
        return sum(len(one.generated_tokens) for one in made.values()) / (time.perf_counter() - started)


def _transformers(folder: str, tokens: int) -> dict[str, float]:
    return _Plain(folder, tokens).figures()


if __name__ == "__main__":
    main()
