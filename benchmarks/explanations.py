"""Do explanations name the words that matter, what do they cost, and does an interactive item wait for them?

Faithfulness by deletion: of held-out sentences, the fifth of the words that the explanation says spoke most for the
label is left out, and beside it as many words at random; how far do the label's log-odds fall, and how often does it
change? Cost: explained texts a second beside plain ones. Interactive: texts awaited one after another, on an idle fleet
and while bulk explanations run.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from random import Random
from typing import Any

from benchmarks import convention
from producers import Client
from workers.models.sources import model_source
from workers.training import data

DRAWS = 3
WORDS = (8, 30)


def sentences(count: int) -> list[str]:
    """Return held-out sentences of the data that `sentiment` was trained on, none of which it has seen."""
    test = data.split(data.read("sentiment", model_source.cache_folder()), seed=data.SEED).test
    fit = [example.text for example in test if WORDS[0] <= len(example.text.split()) <= WORDS[1]]
    return Random(0).sample(fit, count)


def main() -> None:
    options = convention.options(__doc__)
    count, awaited = (4, 4) if options.quick else (200, 200)
    texts = sentences(count)
    with convention.fleet() as fleet, Client(fleet.broker_url, fleet.store_url) as client:
        ask(client, texts[:2], explain=True)
        figures = faithfulness(client, texts)
        convention.progress(f"faithfulness: {figures}")
        figures |= cost(client, texts)
        idle = waits(client, texts, awaited)
        bulk = client.submit_many("sentiment", texts * 4, params={"explain": True}, priority="bulk")
        beside = waits(client, texts, awaited)
        bulk.cancel()
    figures |= {
        "idle_p50_ms": round(statistics.median(idle), 1),
        "beside_explanations_p50_ms": round(statistics.median(beside), 1),
        "beside_explanations_p99_ms": round(sorted(beside)[int(0.99 * len(beside))], 1),
    }
    convention.report("explanations", figures, keep=options.keep)


def ask(client: Client, texts: Sequence[str], **params: Any) -> list[list[dict[str, Any]]]:
    job = client.submit_many("sentiment", texts, params=params)
    assert job.wait(timeout_s=900).succeeded == len(texts)
    return [row.output for row in sorted(job.results(), key=lambda row: row.seq)]


def faithfulness(client: Client, texts: Sequence[str]) -> dict[str, float]:
    random = Random(1)
    explained = [labels[0] for labels in ask(client, texts, explain=True)]
    shortened: list[str] = []
    for text, label in zip(texts, explained, strict=True):
        words = label["explanation"]["words"]
        few = max(1, len(words) // 5)
        shortened.append(without(text, sorted(words, key=lambda word: -float(word["contribution"]))[:few]))
        shortened += [without(text, random.sample(words, few)) for _ in range(DRAWS)]
    answers = iter(ask(client, [text or "." for text in shortened], top_k=None))
    falls: dict[str, list[float]] = {"named": [], "random": []}
    for label in explained:
        for kind in ("named", *["random"] * DRAWS):
            scores = {one["label"]: one["score"] for one in next(answers)}
            falls[kind].append(log_odds(label["score"]) - log_odds(scores[label["label"]]))
    deltas = [abs(one["explanation"].get("delta", 0.0)) for one in explained]
    changed = {
        kind: sum(
            fall > log_odds(explained[n // (1 if kind == "named" else DRAWS)]["score"]) for n, fall in enumerate(own)
        )
        for kind, own in falls.items()
    }
    return {
        "named_words_fall": round(statistics.mean(falls["named"]), 2),
        "random_words_fall": round(statistics.mean(falls["random"]), 2),
        "named_words_label_changed": round(changed["named"] / len(falls["named"]), 3),
        "random_words_label_changed": round(changed["random"] / len(falls["random"]), 3),
        "median_delta": round(statistics.median(deltas), 4),
    }


def without(text: str, words: Sequence[dict[str, Any]]) -> str:
    for word in sorted(words, key=lambda word: -int(word["start"])):
        text = text[: word["start"]] + text[word["end"] :]
    return " ".join(text.split())


def log_odds(score: float) -> float:
    kept = min(max(score, 1e-6), 1 - 1e-6)
    return math.log(kept / (1 - kept))


def cost(client: Client, texts: Sequence[str]) -> dict[str, float]:
    seconds = {}
    for name, params in (("explained", {"explain": True}), ("plain", {})):
        started = time.monotonic()
        ask(client, texts, **params)
        seconds[name] = time.monotonic() - started
    return {f"{name}_items_per_s": round(len(texts) / took, 2) for name, took in seconds.items()}


def waits(client: Client, texts: Sequence[str], count: int) -> list[float]:
    found = []
    for number in range(count):
        started = time.monotonic()
        client.submit("sentiment", f"{number}: {texts[number % len(texts)]}", priority="interactive").result(
            timeout_s=120
        )
        found.append((time.monotonic() - started) * 1000)
    return found


if __name__ == "__main__":
    main()
