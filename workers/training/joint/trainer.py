"""The steps of a joint training, as each of its processes takes them."""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from producers.wire.errors import ConfigurationError
from workers.training.joint import compression, joint_checkpoint, layers, schedule
from workers.training.joint.compression import SlowLink, Traffic
from workers.training.joint.joint_checkpoint import Progress
from workers.training.joint.processes import Process
from workers.training.joint.recipe import Recipe
from workers.training.joint.schedule import Place, Schedule
from workers.training.joint.training_subject import TrainingSubject
from workers.training.training_batches import by_size

LOG = "log.jsonl"

_WARM_UP = 0.1
_MOST_NORM = 1.0
_EVALUATED_TOKENS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A training: its data, its recipe, and its folder. The fields after `out` change only its duration, apart from
    rounding.
    """

    corpus: TrainingSubject
    recipe: Recipe
    out: Path
    accumulate: int = 1
    #: The processes share out the rows of each step, or the layers of the encoder.
    split: Literal["rows", "layers"] = "rows"
    #: Steps between checkpoints; 0 for none.
    checkpoint_every: int = 100
    #: The size of a bucket of gradients, which is sent once it is complete. Small, because the embeddings come last and
    #: are half of all: the rest of their bucket waits for them. If larger than all gradients, nothing is sent before
    #: the backward pass ends.
    bucket_mb: float = 4.0
    #: For measurements: see `SlowLink`.
    link_bytes_per_s: float | None = None


class LogLine(msgspec.Struct, frozen=True):
    """One step in the log. Losses and evaluations are by task, in the corpus's order; an evaluation is of the
    validation part.
    """

    step: int
    seconds: float
    losses: list[float | None]
    given_bytes: int
    uncompressed_bytes: int
    accuracies: list[float] | None = None


def train(process: Process, work: Work) -> list[LogLine]:
    """Take all remaining steps, after the checkpoint in `work.out`, and return them.

    The best weights are then in `work.out`, as `checkpoint.BEST`.
    """
    return list(steps(process, work))


def steps(process: Process, work: Work) -> Iterator[LogLine]:
    """Take a step for each item that the caller asks for. Raises ConfigurationError."""
    _check(process, work)
    work.out.mkdir(parents=True, exist_ok=True)
    link = SlowLink(work.link_bytes_per_s) if work.link_bytes_per_s else None
    try:
        yield from prepare(process, work, link).run()
    finally:
        if link:
            link.close()


def _check(process: Process, work: Work) -> None:
    work.recipe.check(work.corpus.tasks, process.count * work.accumulate)
    if work.split == "layers" and process.count == 1:
        raise ConfigurationError("split: one process has nobody to share layers with; ask for more, or split rows")
    if work.split == "layers" and work.recipe.compression != "none":
        raise ConfigurationError(
            "compression: is of gradients, which stay where they are if layers are split; use none"
        )


def prepare(process: Process, work: Work, link: SlowLink | None) -> Trainer:
    """Return a process's part in a training, with networks and averages from the checkpoint, if there is one."""
    built: Any = work.corpus.build(work.recipe).to(process.device)
    if work.split == "layers":
        layers.split(built.encoder, process.device)
    optimiser = _optimiser(built, work.recipe)
    progress = joint_checkpoint.load(work.out, work.recipe, built, optimiser)
    replica, traffic = _replicated(built, process, work, link)
    return Trainer(process, work, built, replica, optimiser, progress, traffic)


class Trainer:
    """One process's part. All processes hold the same weights, and decide the same from the same numbers."""

    def __init__(
        self,
        process: Process,
        work: Work,
        network: Any,
        replica: torch.nn.Module,
        optimiser: torch.optim.Optimizer,
        progress: Progress,
        traffic: Traffic,
    ) -> None:
        self.process, self.work, self.recipe = process, work, work.recipe
        self.network, self.replica, self.traffic = network, replica, traffic
        self.optimiser, self.progress = optimiser, progress
        # of the rows: where layers are shared out, all processes see all rows
        self.rank, self.sharers = (process.rank, process.count) if work.split == "rows" else (0, 1)
        self.known = work.corpus.examples("train", process.device)
        self.unseen = work.corpus.examples("validation", process.device)

    def run(self) -> Iterator[LogLine]:
        corpus, recipe = self.work.corpus, self.recipe
        drawn = Schedule(corpus.stream_sizes, recipe.rows, recipe.temperature, recipe.seed, corpus.stream_tasks)
        if self.process.is_first:
            _cut(self.work.out / LOG, self.progress.step)
        for places in drawn.steps(self.progress.step, self.recipe.steps):
            if self.progress.stale >= self.recipe.patience:
                break
            started = time.monotonic()
            losses = [loss / rows if rows else None for rows, loss, *_ in self._step(places).tolist()]
            if any(loss is not None and not math.isfinite(loss) for loss in losses):
                problem = f"the loss of step {self.progress.step + 1} is no number: {losses}"
                raise ConfigurationError(f"{self.work.out}: {problem}; lower the learning rates")
            seconds, sent = time.monotonic() - started, self.traffic.taken()
            self.progress.step += 1
            accuracies = self._evaluation()
            line = LogLine(self.progress.step, seconds, losses, sent.given_bytes, sent.uncompressed_bytes, accuracies)
            self._keep(line)
            yield line

    def _step(self, places: Sequence[Place]) -> torch.Tensor:
        """Learn from a step's examples; return the tallies of all processes' rows."""
        step = self.progress.step
        torch.manual_seed((self.recipe.seed << 24) + step * self.sharers + self.rank)
        self.network.train(self.recipe.dropout)
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * _pace(step, self.recipe.steps)
        parts = schedule.share(
            self.known.lengths(places),
            rank=self.rank,
            processes=self.sharers,
            accumulate=self.work.accumulate,
        )
        tallies = []
        for number, part in enumerate(parts, start=1):
            with self._exchanging(last=number == len(parts)):
                loss, tally = self._passed([places[place] for place in part])
                # DDP takes the mean over the processes; the mean over all rows is the sum divided by their number
                torch.autograd.backward(loss * (self.sharers / len(places)))
            tallies.append(tally)
        layers.clip(self.network.parameters(), _MOST_NORM)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return self._summed(torch.stack(tallies).sum(0))

    def _passed(self, places: Sequence[Place]) -> tuple[torch.Tensor, torch.Tensor]:
        kind = torch.device(self.process.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            found: tuple[torch.Tensor, torch.Tensor] = self.replica(**self.known.batch(places))
        return found

    def _exchanging(self, *, last: bool) -> AbstractContextManager[None]:
        """Sum the gradients of several micro-batches here, and exchange them with those of the last one."""
        if last or not isinstance(self.replica, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.replica.no_sync()

    def _summed(self, tallies: torch.Tensor) -> torch.Tensor:
        if self.sharers > 1:
            distributed.all_reduce(tallies)
        return tallies

    def _evaluation(self) -> list[float] | None:
        """Return accuracies by task, when due; remember whether they are the best, and the weights if so."""
        step = self.progress.step
        if step % self.recipe.evaluate_every and step != self.recipe.steps:
            return None
        accuracies = self._accuracies()
        mean = sum(accuracies) / len(accuracies)
        if mean <= self.progress.best:
            self.progress.stale += 1
            return accuracies
        self.progress.best, self.progress.best_step, self.progress.stale = mean, step, 0
        best = joint_checkpoint.learnt(self.network)
        if self.process.is_first:
            joint_checkpoint.write(best, self.work.out / joint_checkpoint.BEST, {"step": str(step)})
        return accuracies

    def _accuracies(self) -> list[float]:
        self.network.eval()
        places = self.unseen.places()
        batches = list(by_size(self.unseen.lengths(places), _EVALUATED_TOKENS))
        with torch.inference_mode():
            own = [
                self.unseen.judged(self.network, [places[place] for place in batch])
                for batch in batches[self.rank :: self.sharers]
            ]
        return self.work.corpus.scores(self._gathered(own))

    def _gathered(self, own: list[Any]) -> list[Any]:
        if self.sharers == 1:
            return own
        found: list[list[Any]] = [[] for _ in range(self.sharers)]
        distributed.all_gather_object(found, own)
        return [judged for part in found for judged in part]

    def _keep(self, line: LogLine) -> None:
        done = line.step == self.recipe.steps or self.progress.stale >= self.recipe.patience
        every = self.work.checkpoint_every
        found = (
            joint_checkpoint.tensors(self.network, self.optimiser)
            if every and (done or line.step % every == 0)
            else None
        )
        if not self.process.is_first:
            return
        with (self.work.out / LOG).open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
        if found:
            joint_checkpoint.save(self.work.out, self.recipe, self.progress, found)


def _replicated(network: Any, process: Process, work: Work, link: SlowLink | None) -> tuple[torch.nn.Module, Traffic]:
    if not distributed.is_initialized() or work.split == "layers":
        return network, Traffic()
    replica = DistributedDataParallel(
        network,
        device_ids=[process.device] if process.device.startswith("cuda") else None,
        bucket_cap_mb=work.bucket_mb,
        gradient_as_bucket_view=True,
    )
    return replica, compression.attach(replica, work.recipe.compression, link)


def _optimiser(network: torch.nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    rates = {"encoder": recipe.encoder_rate, "heads": recipe.head_rate, "weights": recipe.head_rate}
    groups: dict[tuple[str, bool, type], list[torch.nn.Parameter]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            # whole parameters and shared-out parts cannot be updated in the same call
            groups[name.partition(".")[0], parameter.ndim > 1, type(parameter.data)].append(parameter)
    # no weight decay for biases, norms and the tasks' weights
    chosen = [
        {"params": own, "lr": rates[part], "initial_lr": rates[part], "weight_decay": 0.01 if is_matrix else 0.0}
        for (part, is_matrix, _), own in groups.items()
    ]
    # 1e-6: the gradient of a key's bias is rounding alone, and a smaller value would blow it up to whole steps
    return torch.optim.AdamW(chosen, eps=1e-6)


def _pace(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: rising over the first tenth, then falling to zero."""
    warm = max(1, round(steps * _WARM_UP))
    return (step + 1) / warm if step < warm else (steps - step) / (steps - warm + 1)


def _cut(log: Path, step: int) -> None:
    """Remove the steps from the log that will be taken again."""
    if log.is_file():
        lines = [line for line in log.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        log.write_bytes(b"".join(line for line in lines if msgspec.json.decode(line, type=LogLine).step <= step))


def read_log(out: Path) -> Iterator[LogLine]:
    """Yield the logged steps of the training in that folder."""
    for line in (out / LOG).read_bytes().splitlines():
        yield msgspec.json.decode(line, type=LogLine)
