"""A Celery application that calls the fleet by name: nothing of ours is imported, two URLs and a queue's name are all
it knows.

    export ARGOSY_BROKER_URL=redis://… ARGOSY_STORE_URL=postgresql://…
    python -m examples.celery_application "A fine film." "A dull one."

The result backend ``argosy+…`` is found by Celery itself where this distribution is installed; the broker is the
fleet's. Other models and tasks are named by MODEL and TASK. An envelope may hold up to 64 items, which share
micro-batches with everybody's.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from celery import Celery, group

MODEL, TASK = os.environ.get("MODEL", "text"), os.environ.get("TASK", "sentiment")

app = Celery(
    "application",
    broker=os.environ.get("ARGOSY_BROKER_URL"),
    backend=f"argosy+{os.environ.get('ARGOSY_STORE_URL')}",
    set_as_current=False,
)


def envelope(texts: list[str]) -> dict[str, Any]:
    """What the fleet's one task takes."""
    return {"model": MODEL, "items": [{"seq": n, "input": text, "tasks": [TASK]} for n, text in enumerate(texts)]}


def ask(text: str) -> Any:
    """One text, one answer."""
    sent = app.send_task("argosy.envelope", [envelope([text])], queue=f"argosy.{MODEL}")
    return sent.get(timeout=60)["results"][0]["output"]


def ask_all(texts: list[str], portion: int = 64) -> list[Any]:
    """Many texts as a Celery group, an envelope each 64 of them; the answers in their order."""
    portions = [texts[start : start + portion] for start in range(0, len(texts), portion)]
    calls = [app.signature("argosy.envelope", [envelope(some)], queue=f"argosy.{MODEL}") for some in portions]
    answers = group(calls, app=app).apply_async().get(timeout=600)
    return [row["output"] for answer in answers for row in answer["results"]]


def main(texts: list[str]) -> None:
    with app:  # which closes its connections
        print(f"one: {ask(texts[0])}")
        for text, answer in zip(texts, ask_all(texts), strict=True):
            print(f"{text}: {answer}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["A fine, moving film.", "Two hours I will never get back."])
