"""What people write by hand: a Celery application with one item a task. The other side of the comparisons.

Written the way Celery's documentation recommends: prefork, the model loaded once a worker process, results in Celery's
own SQL backend, acknowledged early as is the default. It is started as ``celery -A benchmarks.plain_celery worker``.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_process_init

app = Celery(
    "plain",
    broker=os.environ.get("PLAIN_BROKER_URL", "redis://"),
    backend=os.environ.get("PLAIN_BACKEND_URL") or None,
)
app.conf.update(worker_prefetch_multiplier=4, broker_connection_retry_on_startup=True)

_model: Any = None


@worker_process_init.connect
def _load(**_: Any) -> None:
    """Load the text model in each worker process, once, with one thread each: the processes share the cores, or the
    GPU.
    """
    if not os.environ.get("PLAIN_MODEL"):
        return
    import torch

    torch.set_num_threads(1)
    global _model  # noqa: PLW0603 - as in Celery's own examples
    _model = text_model()
    _model.load("cuda:0" if torch.cuda.is_available() else "cpu")


def text_model() -> Any:
    """Return our own text model, constructed: the comparison is of the ways to serve it, not of models."""
    from workers import settings
    from workers.device.device_process import ModelToLoad
    from workers.models.interface.model import ModelSpec
    from workers.models.sources import model_source

    chosen = settings.load(environment={})
    model = chosen.models["text"]
    pulled = model_source.pull(
        model_source.parse(model.source, where="models.text.source"), model_source.cache_folder()
    )
    tasks = {task.name: task for task in chosen.catalogue.tasks.values() if task.model == "text"}
    spec = ModelSpec("text", pulled.folder, pulled.revision, tasks, model.options)
    return ModelToLoad.from_spec(model.class_, spec).build()


@app.task(ignore_result=True)
def nothing(_: str) -> None:
    """A task that does nothing: what is measured is Celery."""


@app.task
def echo(text: str) -> str:
    """A task that returns what it is given: what is measured is the way there and back."""
    return text


@app.task
def classify(text: str) -> dict[str, Any]:
    """One text, two tasks, one forward: the loop of the documentation's examples."""
    return forward(_model, [text])[0]


def forward(model: Any, texts: list[str], tasks: tuple[str, ...] = ("sentiment", "topic")) -> list[dict[str, Any]]:
    """Run texts as one batch through the model and return their outputs by task."""
    import numpy as np

    catalogue_tasks = [model.spec.tasks[name] for name in tasks]
    params = {task.name: task.kind.params(truncation=True) for task in catalogue_tasks}
    rows = [model.prepare(text, params) for text in texts]
    wanted = {task.name: np.arange(len(rows)) for task in catalogue_tasks}
    outputs = model.forward(model.collate(rows), wanted)
    return [
        {task.name: model.finish(task, outputs[task.name][n], params[task.name], rows[n]) for task in catalogue_tasks}
        for n in range(len(rows))
    ]


@contextlib.contextmanager
def worker(broker_url: str, *, processes: int, backend_url: str = "", model: bool = False) -> Iterator[Celery]:
    """Run a prefork worker of this application, ready to take tasks; yields an application to send them with."""
    environment = os.environ | {
        "PLAIN_BROKER_URL": broker_url,
        "PLAIN_BACKEND_URL": backend_url,
        "PLAIN_MODEL": "1" if model else "",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "benchmarks.plain_celery",
        "worker",
        "-c",
        str(processes),
        "-l",
        "ERROR",
    ]
    process = subprocess.Popen(command, env=environment, cwd=Path(__file__).parent.parent, stderr=subprocess.DEVNULL)
    sender = Celery("plain", broker=broker_url, backend=backend_url or None)
    sender.conf.broker_connection_retry_on_startup = True
    try:
        deadline = time.monotonic() + 120
        while not sender.control.ping(timeout=0.5):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the plain Celery worker did not come up")
        yield sender
    finally:
        sender.close()
        process.terminate()
        process.wait()
