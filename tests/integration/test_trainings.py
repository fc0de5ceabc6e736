"""A node's trainings beside other work, with a trainer that has only its judging left and writes no checkpoint."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from producers.wire.messages import VERSION, Envelope, Item, Named, PathInput, Priority, new_id
from producers.wire.packing import outbox_row
from producers.wire.publisher import Publisher
from producers.wire.training.training_job import CHECKPOINT, TRAINING, TrainingParams, training_progress
from results_store.records import NewJob
from results_store.store import Store
from results_store.writer import Writer
from tests.end_to_end.processes import until
from workers.device.devices import cpu
from workers.envelope.gate import EnvelopeInterrupted
from workers.node.held_envelopes import HeldEnvelope, HeldEnvelopes
from workers.node.training import trainer_process
from workers.node.training.interruptions import MOST_IN_VAIN, Interruptions
from workers.node.training.trainings import Trainings, TrainingTimes

TRAINER = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
told, recipe = int(sys.argv[1]), Path(sys.argv[2])
os.write(told, b'{"doing": "judges", "folder": "%s"}\\n' % bytes(recipe.parent))
while not recipe.with_suffix(".judged").exists():
    time.sleep(0.01)
os.write(told, b'{"output": {}}\\n')
"""
TIMES = TrainingTimes(gap_s=0.0, patience_s=0.1, stop_s=0.1)


class Trained:
    """A node's trainings on a real store and Redis."""

    def __init__(self, folder: Path, store: Store, writer: Writer, publisher: Publisher) -> None:
        self.folder, self.store = folder, store
        self.held = HeldEnvelopes(store, worker="w", lease_s=60)
        self.publisher = publisher
        self.trainings = Trainings(
            node="w", folders=[str(folder)], device=cpu(), threads=1, held=self.held, writer=writer, store=store,
            publisher=publisher, paused=set, times=TIMES,
        )  # fmt: skip

    def submit(self) -> Named:
        recipe = self.folder / "one.toml"
        recipe.touch()
        params = {TRAINING: msgspec.to_builtins(TrainingParams(""))}
        envelope = Envelope(
            version=VERSION, id=new_id(), job=new_id(), model=TRAINING, priority=Priority.BULK, queued_at=1.0,
            items=(Item(0, PathInput(str(recipe)), (TRAINING,), params),),
        )  # fmt: skip
        job = NewJob(id=envelope.job, priority=9, created_at=1.0)
        self.store.add_envelopes([outbox_row(envelope, 0)], jobs=[job])
        return Named(id=envelope.id, job=envelope.job, model=TRAINING, priority=9)

    def run(self, message: Named) -> dict[str, Any]:
        with self.held.taking(message.id, message.job) as held:
            assert held is not None
            return self.trainings.run(message, held)

    def other_work(self) -> ExitStack:
        """Hold an envelope of a model until the stack is closed."""
        stack = ExitStack()
        other: HeldEnvelope | None = stack.enter_context(self.held.taking("other", "other"))
        assert other is not None
        other.model = "text"
        return stack

    def waits(self, message: Named) -> str:
        progress = training_progress(self.publisher.redis, message.job)
        return progress.waits if progress else ""


@pytest.fixture
def node(sqlite_url: str, broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trained]:
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER, encoding="utf-8")
    monkeypatch.setattr(trainer_process, "PROGRAM", (sys.executable, str(script)))
    Store(sqlite_url).migrate()
    with Store(sqlite_url) as store, closing(Publisher(broker_url)) as publisher:
        writer = Writer(store, worker="w", lease_s=60, max_attempts=3)
        writer.start()
        with closing(writer):
            yield Trained(tmp_path, store, writer, publisher)


def test_a_training_that_is_interrupted_in_vain_stands_still_instead(node: Trained) -> None:
    """After three times its process stays beside other work, so that its judging ends some day."""
    message = node.submit()
    with ThreadPoolExecutor(1) as slot:
        with node.other_work():
            for _ in range(MOST_IN_VAIN):
                with pytest.raises(EnvelopeInterrupted, match="waits for other work"):
                    node.run(message)
            running = slot.submit(node.run, message)
            until(lambda: "stands still" in node.waits(message))
            time.sleep(5 * TIMES.patience_s)
            assert not running.done()
        (node.folder / "one.judged").touch()
        assert running.result(60)["succeeded"] == 1


def test_a_node_runs_a_training_at_a_time(node: Trained) -> None:
    """A second one goes back to its queue, and no attempt counts."""
    first, second = node.submit(), node.submit()
    with ThreadPoolExecutor(1) as slot:
        running = slot.submit(node.run, first)
        until(lambda: training_progress(node.publisher.redis, first.job))
        with pytest.raises(EnvelopeInterrupted, match="trains already"):
            node.run(second)
        (node.folder / "one.judged").touch()
        assert running.result(60)["succeeded"] == 1
    assert node.run(second)["succeeded"] == 1


def test_a_newer_checkpoint_makes_an_interruption_worth_while(tmp_path: Path) -> None:
    """Of the training or of a part of its comparison; a trainer that has told nothing yet has none."""
    interruptions, part = Interruptions(), tmp_path / "compare" / "side"
    part.mkdir(parents=True)
    for number, file in enumerate((tmp_path / CHECKPOINT, part / CHECKPOINT), start=1):
        for folder in (str(tmp_path), "", str(tmp_path)):
            assert not interruptions.are_in_vain("e", folder)
            interruptions.note("e", folder)
        assert interruptions.are_in_vain("e", str(tmp_path))
        assert interruptions.are_in_vain("e", "")
        file.touch()
        os.utime(file, ns=(number, number))
        assert not interruptions.are_in_vain("e", str(tmp_path))
    assert not interruptions.are_in_vain("other", "")
