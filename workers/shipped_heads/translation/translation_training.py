"""Train the English to French model: ``python -m workers.shipped_heads.translation.translation_training --work FOLDER
[--minutes N]``.

A T5 of 4.5 M parameters with its own word pieces, on the sentences of Debian's package descriptions and their
translations. The result is the state with the lowest loss on held-out packages.
`workers.shipped_heads.translation.translation_scores` scores it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch.nn import functional

from workers.models.sources import model_source
from workers.shipped_heads.text import descriptions
from workers.shipped_heads.text.descriptions import Pair
from workers.shipped_heads.translation.pieces import PAD, VOCABULARY, likeness_of_pieces, train_pieces
from workers.training import data
from workers.training.kinds.labelled_kind import padded
from workers.training.training_batches import by_size

_WIDTH = 192
_BATCH_TOKENS = 1024
_LONGEST_TOKENS = 80
_LEARNING_RATE = 1e-3
_WARMUP = 0.04  # of the time
_JUDGE_EVERY_S = 300.0
_LONGEST_READ, _MOST_WRITTEN = 256, 128
_JOINED = 0.12  # of the sentences are followed by a second, so that texts of several sentences are familiar

#: The state of a run, in its folder: the best so far.
UNFINISHED = "unfinished.pt"

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The pieces of pairs, with the end mark."""

    source: list[Ids]
    target: list[Ids]

    @classmethod
    def of(cls, pairs: Sequence[Pair], tokenizer: Any) -> Tokens:
        sides = [
            [np.asarray(one.ids) for one in tokenizer.encode_batch(texts)]
            for texts in ([pair.source for pair in pairs], [pair.target for pair in pairs])
        ]
        short = [n for n in range(len(pairs)) if max(len(side[n]) for side in sides) <= _LONGEST_TOKENS]
        return cls([sides[0][n] for n in short], [sides[1][n] for n in short])

    def joined(self, random: Random) -> Tokens:
        """Return these pairs, some of them followed by another."""
        source, target = list(self.source), list(self.target)
        for place in random.sample(range(len(source)), int(_JOINED * len(source))):
            other = random.randrange(len(source))
            longest = max(len(side[place]) + len(side[other]) for side in (self.source, self.target))
            if longest <= _LONGEST_TOKENS:
                source[place] = np.concatenate([self.source[place][:-1], self.source[other]])
                target[place] = np.concatenate([self.target[place][:-1], self.target[other]])
        return Tokens(source, target)


def network(vocabulary: int = VOCABULARY) -> Any:
    """Return the network, untrained."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=vocabulary, d_model=_WIDTH, d_kv=48, num_heads=4, d_ff=768, num_layers=4, num_decoder_layers=2,
        dropout_rate=0.0, pad_token_id=PAD, eos_token_id=1, decoder_start_token_id=PAD,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def batches(tokens: Tokens, random: Random | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield padded (source, target) of similar length; for training, lengths are blurred and batches mixed."""
    sizes = [
        len(a) + len(b) + (random.random() * 4 if random else 0)
        for a, b in zip(tokens.source, tokens.target, strict=True)
    ]
    groups = list(by_size(sizes, _BATCH_TOKENS))
    if random:
        random.shuffle(groups)
    for group in groups:
        yield _padded([tokens.source[n] for n in group]), _padded([tokens.target[n] for n in group])


def _padded(rows: Sequence[Ids]) -> torch.Tensor:
    return torch.from_numpy(padded(rows, PAD))


def loss_of(model: Any, source: torch.Tensor, target: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return the loss of a batch, the mean over its pieces."""
    before = functional.pad(target[:, :-1], (1, 0), value=PAD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=source, attention_mask=source != PAD, decoder_input_ids=before, use_cache=False).logits
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), target.flatten(), ignore_index=PAD, label_smoothing=smoothing
    )


def judge(model: Any, tokens: Tokens) -> float:
    """Return the mean loss per held-out piece."""
    model.eval()
    total = pieces = 0.0
    with torch.inference_mode():
        for source, target in batches(tokens, None):
            count = int((target != PAD).sum())
            total += float(loss_of(model, source, target, 0.0)) * count
            pieces += count
    model.train()
    return total / pieces


@dataclass
class Training:
    """A run of `seconds`: the learning rate rises, then falls with the elapsed time."""

    model: Any
    train: Tokens
    validation: Tokens
    seconds: float
    folder: Path
    console: Console

    def run(self) -> None:
        """Train, and leave the model in its best state."""
        optimiser = torch.optim.AdamW(self.model.parameters(), lr=_LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98))
        started = judged = time.monotonic()
        best, kept, steps = judge(self.model, self.validation), copy.deepcopy(self.model.state_dict()), 0
        for source, target in self._endless():
            passed = (time.monotonic() - started) / self.seconds
            for group in optimiser.param_groups:
                group["lr"] = _LEARNING_RATE * _shape(passed)
            loss = loss_of(self.model, source, target, 0.1)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimiser.step()
            steps += 1
            if passed < 1 and time.monotonic() - judged < _JUDGE_EVERY_S:
                continue
            judged, found = time.monotonic(), judge(self.model, self.validation)
            self.console.print(
                f"{passed:.0%}, {steps:,} steps: held-out loss {found:.4f}, perplexity {math.exp(found):.1f}"
            )
            if found < best:
                best, kept = found, copy.deepcopy(self.model.state_dict())
                torch.save(kept, self.folder / UNFINISHED)
            if passed >= 1:
                break
        self.model.load_state_dict(kept)

    def _endless(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        random = Random(0)  # noqa: S311 (a repeatable order, no secret)
        self.model.train()
        for epoch in range(1_000):
            self.console.print(f"epoch {epoch + 1}")
            yield from batches(self.train.joined(random), random)


def _shape(passed: float) -> float:
    """Return the factor of the learning rate at this part of the time."""
    return min(passed / _WARMUP, 1.0) * (0.5 + 0.5 * math.cos(math.pi * min(passed, 1.0))) + 0.005


def start(model: Any, train: Tokens) -> None:
    """Start with pieces of the same meaning close together, by their counts in sentences and translations."""
    with torch.no_grad():
        model.shared.weight.copy_(torch.from_numpy(likeness_of_pieces(train.source, train.target, _WIDTH)))


def read(cache: Path) -> dict[str, list[Pair]]:
    """Return the parts of the pairs, after pulling the descriptions if needed."""
    folder = data.pull("descriptions", cache)
    return descriptions.split(descriptions.pairs(folder / "Translation-en", folder / "Translation-fr"))


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a Hugging Face folder: weights in half precision, which is their storage and not their computation."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config.update(max_new_tokens=_MOST_WRITTEN)
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text("utf-8")) | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": _LONGEST_READ}
    about |= {"pad_token": "<pad>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=model_source.BUNDLED / "translation", help="(default: %(default)s)")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for what is not finished; a later run goes on with it"
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    asked = parser.parse_args()
    console = Console(width=120)
    torch.manual_seed(0)
    parts = read(model_source.cache_folder())
    tokenizer = train_pieces([text for pair in parts["train"] for text in (pair.source, pair.target)])
    train, validation = Tokens.of(parts["train"], tokenizer), Tokens.of(parts["validation"][::2], tokenizer)
    pieces = (sum(map(len, side)) for side in (train.source, train.target))
    console.print("{:,} pairs; {:,} and {:,} pieces".format(len(train.source), *pieces))
    model, unfinished = network(), asked.work / UNFINISHED
    asked.work.mkdir(parents=True, exist_ok=True)
    if unfinished.is_file():
        model.load_state_dict(torch.load(unfinished, weights_only=True))
    else:
        start(model, train)
    Training(model, train, validation, asked.minutes * 60, asked.work, console).run()
    save(model, tokenizer, asked.out)
    console.print(f"wrote {asked.out}")


if __name__ == "__main__":
    main()
