"""A training as a job of the fleet: its queue, the order to train, and the progress that its node tells in Redis."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from producers.wire.queues import read

if TYPE_CHECKING:
    from redis import Redis

#: The model of a training's envelope, so the name of its queue, and the task of its result.
TRAINING: Final = "training"

#: The seconds for which the progress of a training is kept after it was told.
PROGRESS_KEPT_S = 30 * 86400


#: The file in the folder of a training, or of a part of it, that names its last checkpoint.
CHECKPOINT: Final = "checkpoint.json"


class TrainingParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The order beside the recipe's path: the digest of the recipe as it was submitted, and whether to compare."""

    sha256: str
    compare: bool = False


class TrainerReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line that a trainer tells its node: its work now, or its end.

    `training` is the recipe's name, or a part of its comparison; `step_s` the usual seconds of a step; `folder`, told
    once, the place of its checkpoints. The end is an `output`, an `error` of the recipe or its rows, or `stopped` after
    a checkpoint.
    """

    doing: str = ""
    training: str = ""
    step: int = 0
    steps: int = 0
    step_s: float = 0.0
    folder: str = ""
    output: dict[str, Any] | None = None
    error: dict[str, str] | None = None
    stopped: bool = False


class TrainingProgress(msgspec.Struct, frozen=True, kw_only=True):
    """The last report of a training, told by its `node` at the Unix time `at`. `waits` is why it stands still."""

    node: str
    report: TrainerReport
    waits: str = ""
    at: float = msgspec.field(default_factory=time.time)

    def __str__(self) -> str:
        report = self.report
        told = [f"{report.training or 'training'}: {report.doing}"]
        if report.steps:
            told = [f"{report.training}: step {report.step:,} of at most {report.steps:,}"]
        if report.step_s:
            told += [f"{1 / report.step_s:,.2g} steps/s", f"{_time(report.step_s * (report.steps - report.step))} left"]
        return ", ".join([*told, f"{self.waits} ({self.node})" if self.waits else f"on {self.node}"])


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:,.0f} s" if minutes < 3 else f"{minutes:,} min" if minutes < 180 else f"{minutes / 60:,.0f} h"


def progress_key(job: str) -> str:
    """Return the Redis key with a training's progress."""
    return f"argosy.progress.{job}"


def tell_progress(redis: Redis, job: str, progress: TrainingProgress) -> None:
    """Keep a training's progress. Raises RedisError."""
    redis.set(progress_key(job), msgspec.json.encode(progress), ex=PROGRESS_KEPT_S)


def training_progress(redis: Redis, job: str) -> TrainingProgress | None:
    """Return a training's progress, if its node has told some. Raises RedisError."""
    told: Any = redis.get(progress_key(job))
    return None if told is None else read(told, TrainingProgress)
