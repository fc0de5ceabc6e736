"""The steps of a training, as each of its processes takes them."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from producers.wire.errors import ConfigurationError
from workers.training.loop import schedule, training_checkpoint
from workers.training.loop.processes import Process
from workers.training.loop.recipe import Recipe, Split
from workers.training.loop.schedule import Place, Schedule
from workers.training.loop.training_checkpoint import Progress
from workers.training.loop.training_subject import TrainingSubject
from workers.training.splits import layouts
from workers.training.splits.choose import split_network
from workers.training.splits.compression import SlowLink
from workers.training.splits.splitting import Batch, Splitting
from workers.training.training_batches import by_size

LOG = "log.jsonl"


class TrainingStopped(Exception):
    """A training was asked to stop, and has written a checkpoint."""


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
    #: See `workers.training.splits`.
    split: Split = "rows"
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

    The best weights are then in `work.out`, as `training_checkpoint.BEST` names them.
    """
    return list(steps(process, work))


def never() -> bool:
    return False


def steps(process: Process, work: Work, stopping: Callable[[], bool] = never) -> Iterator[LogLine]:
    """Take a step for each item that the caller asks for. Raises ConfigurationError.

    Once a single process finds `stopping` true, after a step or before its evaluation, it writes a checkpoint and
    raises TrainingStopped.
    """
    _check(process, work)
    work.out.mkdir(parents=True, exist_ok=True)
    link = SlowLink(work.link_bytes_per_s) if work.link_bytes_per_s else None
    try:
        yield from prepare(process, work, link).run(stopping)
    finally:
        if link:
            link.close()


def _check(process: Process, work: Work) -> None:
    layouts.check(work.split, process.count, work.corpus.shape, work.recipe.compression)
    work.recipe.check(work.corpus.tasks, process.count * work.accumulate)


def prepare(process: Process, work: Work, link: SlowLink | None) -> Trainer:
    """Return a process's part in a training, with networks and averages from the checkpoint, if there is one."""
    built: Any = work.corpus.build(work.recipe).to(process.device)
    split = split_network(work.split, built, process, work.recipe, bucket_mb=work.bucket_mb, link=link)
    optimiser = _optimiser(split.network, work.recipe)
    progress = training_checkpoint.load(work.out, work.recipe, split.network, optimiser)
    return Trainer(process, work, split, optimiser, progress)


class Trainer:
    """The part of a process. All processes decide the same from the same numbers."""

    def __init__(
        self,
        process: Process,
        work: Work,
        split: Splitting,
        optimiser: torch.optim.Optimizer,
        progress: Progress,
    ) -> None:
        self.process, self.work, self.recipe = process, work, work.recipe
        self.split, self.network = split, split.network
        self.optimiser, self.progress = optimiser, progress
        self.known = work.corpus.examples("train", process.device)
        self.unseen = work.corpus.examples("validation", process.device)

    def run(self, stopping: Callable[[], bool] = never) -> Iterator[LogLine]:
        corpus, recipe = self.work.corpus, self.recipe
        drawn = Schedule(corpus.stream_sizes, recipe.rows, recipe.temperature, recipe.seed, corpus.stream_tasks)
        if self.process.is_first:
            _cut(self.work.out / LOG, self.progress.step)
        if self.progress.owes_evaluation:
            self._evaluate_late()
        steps = drawn.steps(self.progress.step, self.recipe.steps)
        # the next step's batches are made while this one is computed
        with ThreadPoolExecutor(1) as reader:
            coming = self._coming(reader, steps)
            while coming is not None and self.progress.stale < self.recipe.patience:
                started = time.monotonic()
                batches = coming.result()
                coming = self._coming(reader, steps)
                losses = [loss / rows if rows else None for rows, loss, *_ in self._step(batches).tolist()]
                if any(loss is not None and not math.isfinite(loss) for loss in losses):
                    problem = f"the loss of step {self.progress.step + 1} is no number: {losses}"
                    raise ConfigurationError(f"{self.work.out}: {problem}; lower the learning rates")
                seconds, sent = time.monotonic() - started, self.split.traffic.taken()
                self.progress.step += 1
                if coming is not None:
                    wait([coming])  # a tokenizer serves one thread at a time
                given, whole = sent.given_bytes, sent.uncompressed_bytes
                # an evaluation may take longer than whoever stops a training waits
                owes = self.progress.owes_evaluation = self._is_evaluated() and stopping()
                accuracies = self._evaluation() if self._is_evaluated() and not owes else None
                line = LogLine(self.progress.step, seconds, losses, given, whole, accuracies)
                stops = owes or stopping()
                self._keep(line, stops=stops)
                yield line
                if owes or (stops and coming is not None and self.progress.stale < recipe.patience):
                    raise TrainingStopped

    def _coming(self, reader: ThreadPoolExecutor, steps: Iterator[list[Place]]) -> Future[list[Batch]] | None:
        places = next(steps, None)
        return None if places is None else reader.submit(self._batches, places)

    def _batches(self, places: Sequence[Place]) -> list[Batch]:
        """Return this process's micro-batches of a step."""
        parts = schedule.share(
            self.known.lengths(places),
            rank=self.split.rank,
            processes=self.split.sharers,
            accumulate=self.work.accumulate * self.split.micro_batches,
        )
        return [self.known.batch([places[place] for place in part]) for part in parts]

    def _step(self, batches: Sequence[Batch]) -> torch.Tensor:
        """Learn from a step's examples; return the tallies of all processes' rows."""
        step = self.progress.step
        torch.manual_seed((self.recipe.seed << 24) + step * self.process.count + self.split.draws)
        self.network.train(self.recipe.dropout)
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * _pace(step, self.recipe.steps)
        tallies = self.split.learn(batches, 1 / self.recipe.rows)
        self.split.clip(_MOST_NORM)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return tallies

    def _is_evaluated(self) -> bool:
        """Return whether an evaluation follows the last step."""
        step = self.progress.step
        return step % self.recipe.evaluate_every == 0 or step == self.recipe.steps

    def _evaluate_late(self) -> None:
        """Evaluate the checkpoint of a training that was stopped before its evaluation."""
        accuracies = self._evaluation()
        self.progress.owes_evaluation = False
        if self.process.is_first:
            _evaluated(self.work.out / LOG, accuracies)
        training_checkpoint.tell(self.work.out, self.recipe, self.progress)

    def _evaluation(self) -> list[float]:
        """Return accuracies by task; remember whether they are the best, and the weights if so."""
        step = self.progress.step
        accuracies = self._accuracies()
        mean = sum(accuracies) / len(accuracies)
        if self.progress.best_step and mean <= self.progress.best:
            self.progress.stale += 1
            return accuracies
        self.progress.best, self.progress.best_step, self.progress.stale = mean, step, 0
        training_checkpoint.save_best(self.work.out, step, self.network)
        return accuracies

    def _accuracies(self) -> list[float]:
        self.network.eval()
        places = self.unseen.places()
        batches = [
            [places[place] for place in batch] for batch in by_size(self.unseen.lengths(places), _EVALUATED_TOKENS)
        ]
        with torch.no_grad():  # in inference mode, FSDP would gather weights that cannot learn afterwards
            return self.work.corpus.scores(self.split.judged(self.unseen, batches))

    def _keep(self, line: LogLine, *, stops: bool) -> None:
        done = line.step == self.recipe.steps or self.progress.stale >= self.recipe.patience
        every = self.work.checkpoint_every
        if self.process.is_first:
            with (self.work.out / LOG).open("ab") as file:
                file.write(msgspec.json.encode(line) + b"\n")
        if stops or (every and (done or line.step % every == 0)):
            training_checkpoint.save(self.work.out, self.recipe, self.progress, self.network, self.optimiser)


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


def _evaluated(log: Path, accuracies: list[float]) -> None:
    """Add the evaluation to the last step of the log."""
    *lines, last = log.read_bytes().splitlines(keepends=True)
    line = msgspec.structs.replace(msgspec.json.decode(last, type=LogLine), accuracies=accuracies)
    log.write_bytes(b"".join([*lines, msgspec.json.encode(line) + b"\n"]))


def read_log(out: Path) -> Iterator[LogLine]:
    """Yield the logged steps of the training in that folder."""
    for line in (out / LOG).read_bytes().splitlines():
        yield msgspec.json.decode(line, type=LogLine)
