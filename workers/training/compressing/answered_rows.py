"""Rows with labels: from a file, or from a job's results in the store (the fleet's own answers)."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from producers.wire.errors import ConfigurationError
from producers.wire.messages import QuestionInput, decode, decode_bytes
from results_store.records import ResultState
from results_store.store import Store

#: Fewer rows than this neither teach nor judge a model.
LEAST_ROWS = 8


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """An input, and by task the right answer, in the form of the fleet's answers. A task may be missing."""

    content: str | QuestionInput
    answers: Mapping[str, Any] = field(default_factory=dict)

    def best_label(self, task: str) -> str:
        """Return the row's label in a classification, or an empty string."""
        answer = self.answers.get(task)
        return str(answer[0].get("label", "")) if isinstance(answer, list) and answer else ""


def from_file(path: Path, tasks: Collection[str]) -> list[AnsweredRow]:
    """Return the rows of a CSV or JSONL file: its column ``text`` (or ``question`` and ``context``), and a column of
    labels for each task that has one.

    Raises ConfigurationError that names the file, the line and the field.
    """
    found = []
    for line, record in _records(path):
        where = f"{path}:{line}"
        asked = isinstance(record.get("question"), str) and isinstance(record.get("context"), str)
        content = QuestionInput(record["question"], record["context"]) if asked else record.get("text")
        if not isinstance(content, str | QuestionInput) or not content:
            raise ConfigurationError(f"{where}: text: is missing or no text; name the column of the inputs `text`")
        labels = {task: record[task] for task in tasks if record.get(task) not in (None, "")}
        found.append(AnsweredRow(content, {task: _answer(label, f"{where}: {task}") for task, label in labels.items()}))
    return _enough(found, str(path))


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                reader = csv.DictReader(file)
                yield from ((reader.line_num, record) for record in reader)
                return
            for number, line in enumerate(file, 1):
                record = json.loads(line) if line.strip() else None
                if isinstance(record, dict):
                    yield number, record
                elif record is not None:
                    raise ConfigurationError(f"{path}:{number}: is not a JSON object; write one for each row")
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigurationError(f"{path}: {error}; give rows as CSV with a header, or as JSONL") from error


def _answer(label: Any, where: str) -> Any:
    """Return a label in the form of an answer: a name, several names, a number, or spans as they are."""
    match label:
        case str() | bool():
            return [{"label": str(label), "score": 1.0}]
        case int() | float():
            return [{"label": "", "score": float(label)}]
        case [*names] if all(isinstance(name, str) for name in names):
            return [{"label": name, "score": 1.0} for name in names]
        case [*spans] if all(isinstance(span, dict) and {"start", "end"} <= span.keys() for span in spans):
            return [{"score": 1.0, **span} for span in spans]
    raise ConfigurationError(f"{where}: is neither a label, labels, a number nor spans with `start` and `end`")


def of_job(store: Store, job: str, tasks: Collection[str]) -> list[AnsweredRow]:
    """Return the inputs of a stored job with the fleet's answers to them as labels.

    Raises UnknownJob, or ConfigurationError if the job has no texts with answers of these tasks.
    """
    id_ = store.job_id(job)
    inputs: dict[int, str | QuestionInput] = {}
    answers: dict[int, dict[str, Any]] = {}
    envelopes: set[str] = set()
    after: tuple[int, str] | None = None
    while page := store.results(id_, after=after):
        after = (page[-1].seq, page[-1].task)
        kept = store.inputs({row.envelope for row in page} - envelopes)
        envelopes |= kept.keys()
        for payload in kept.values():
            items = decode(decode_bytes(*payload))[0].items
            inputs |= {item.seq: item.input for item in items if isinstance(item.input, str | QuestionInput)}
        for row in page:
            if row.state is ResultState.SUCCEEDED and row.task in tasks and row.output:
                answers.setdefault(row.seq, {})[row.task] = row.output
    found = [AnsweredRow(inputs[seq], own) for seq, own in answers.items() if seq in inputs]
    return _enough(found, f"job {id_}")


def _enough(rows: Sequence[AnsweredRow], where: str) -> list[AnsweredRow]:
    if len(rows) < LEAST_ROWS:
        problem = f"has {len(rows)} rows of use, fewer than {LEAST_ROWS}"
        raise ConfigurationError(f"{where}: {problem}; take a file, or a job with kept inputs, that has more")
    return list(rows)


def split(rows: Sequence[AnsweredRow], held_out: float) -> tuple[list[AnsweredRow], list[AnsweredRow]]:
    """Return the rows to learn from, and every n-th as the rows to judge by. Equal inputs stay on one side."""
    every = max(2, round(1 / held_out))
    places = {content: n for n, content in enumerate(dict.fromkeys(row.content for row in rows))}
    judged = [row for row in rows if places[row.content] % every == 0]
    return [row for row in rows if places[row.content] % every], judged
