"""Train a calibrated, explainable model on a table:
``python -m workers.training.train_tabular OUT [--data NAME | --csv FILE --label COLUMN [--drop COLUMN]]``.

Without a file, the data are scikit-learn's breast cancer table (569 biopsies, 30 measurements each, benign or
malignant), or with ``--data phishing`` 1,250 web pages. The model is a logistic regression, its strength chosen by
cross-validation; one temperature, fitted to out-of-fold predictions, calibrates its probabilities. A fifth of the rows
is held out; the printed scores, also written beside the model, are of that part. `argosy train` takes the place of
``--csv`` (docs/training.md).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_score, train_test_split

from producers.wire.command_line import one_line_errors, say
from producers.wire.errors import ConfigurationError, InvalidInput
from workers.models.built_in.described_file import write_described
from workers.models.built_in.tables.tabular import FILE, LINEAR_FORMAT, Column
from workers.models.sources import model_source
from workers.training import data
from workers.training.data import SEED
from workers.training.recipes import labelled_rows, table_columns

_STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_FOLDS = 5
_BINS = 10

_KIND = "tabular-classification"

Values = NDArray[np.float64]
Row = dict[str, float | str | None]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with their labels; every row has the same columns."""

    name: str
    rows: list[Row]
    labels: list[str]


@dataclass(frozen=True, slots=True)
class TableScore:
    """The score on the held-out rows. `majority` and `brier_of_shares` are the scores of a model that knows only the
    labels' shares. `calibration_error` is the expected calibration error, over ten bins; `auc` is None for more than
    two labels.
    """

    rows: int
    accuracy: float
    majority: float
    brier: float
    brier_of_shares: float
    calibration_error: float
    auc: float | None


def breast_cancer() -> Table:
    """Return the Wisconsin diagnostic data (Street, Wolberg and Mangasarian, 1993) from scikit-learn."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in found.feature_names]
    rows: list[Row] = [dict(zip(names, map(float, values), strict=True)) for values in found.data]
    return Table("breast cancer, Wisconsin", rows, [str(found.target_names[target]) for target in found.target])


def phishing() -> Table:
    """Return 1,250 web pages by their features, ``phishing`` or ``honest``, after pulling them if needed."""
    file = data.pull("phishing", model_source.cache_folder()) / "phishing.csv.gz"
    read = [{**row} for _, row in _read(file)]
    labels = ["phishing" if row.pop("is_phishing") == "1" else "honest" for row in read]
    rows: list[Row] = [{name: float(value) for name, value in row.items()} for row in read]
    return Table("phishing pages", rows, labels)


#: The tables available without a file.
TABLES: Mapping[str, Callable[[], Table]] = {"biopsies": breast_cancer, "phishing": phishing}


def held_out(table: Table) -> Table:
    """Return the held-out rows of a table, on which `train` judges its model."""
    _, held = _split(table.labels, SEED)
    return Table(table.name, [table.rows[n] for n in held], [table.labels[n] for n in held])


def _split(labels: Sequence[str], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    known, held = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=seed, stratify=labels)
    return known, held


def read_csv(path: Path, label: str, *, drop: Sequence[str] = ()) -> Table:
    """Return a CSV file's rows without the columns `drop`; empty cells are unknown.

    Raises ConfigurationError with the place of the fault.
    """
    read = dict(_read(path))
    if not read:
        raise ConfigurationError(f"{path}: has a header and no row below it; check that it is the right file")
    columns = [*next(iter(read.values()))]
    if wrong := [name for name in (label, *drop) if name not in columns]:
        raise ConfigurationError(f"{path}: no column {wrong[0]!r}; there are {', '.join(columns)}")
    if label in drop:
        raise ConfigurationError(f"{path}: the label {label!r} cannot be dropped")
    for origin, row in read.items():
        if not row[label].strip():
            raise ConfigurationError(f"{origin}: {label} is empty; drop the row, or label it")
    kept = [name for name in columns if name not in (label, *drop)]
    if not kept:
        raise ConfigurationError(f"{path}: has no column but the label")
    described = [table_columns.column(name, [row[name] for row in read.values()], _drop(name)) for name in kept]
    rows: list[Row] = [
        {column.name: table_columns.value(column, row[column.name], origin) for column in described}
        for origin, row in read.items()
    ]
    return Table(path.stem, rows, [row[label].strip() for row in read.values()])


def _read(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each row's origin and cells."""
    try:
        for origin, row in labelled_rows.plain_rows([str(path)], "csv"):
            if isinstance(row, InvalidInput):
                raise row
            yield origin, row
    except InvalidInput as error:
        raise ConfigurationError(str(error)) from error


def _drop(name: str) -> str:
    return f"leave it out with --drop {name!r}"


def doubtful(table: Table) -> Iterator[str]:
    """Yield a sentence for each doubtful column: an id, or numbers with some words in between."""
    for name in table.rows[0]:
        yield from table_columns.doubts(name, [row[name] for row in table.rows], _drop(name))


def train(table: Table, out: Path) -> TableScore:
    """Write the model of a table, with its card, to the folder `out`, and return its score on the held-out rows."""
    fitted = _Fitted.to(table, SEED)
    weight, bias = fitted.calibrated
    score = fitted.score(weight, bias)
    tensors = {"weight": weight, "bias": bias, "average": fitted.encoded[fitted.known].mean(axis=0)}
    about = {
        "format": LINEAR_FORMAT,
        "columns": msgspec.json.encode(fitted.columns).decode(),
        "labels": json.dumps(fitted.labels),
        "trained_on": f"{table.name}, {len(fitted.known)} rows",
        "held_out": msgspec.json.encode(score).decode(),
    }
    found = {name: torch.from_numpy(tensor.astype(np.float32)) for name, tensor in tensors.items()}
    write_described(out / FILE, found, about)
    return score


def judge(table: Table, seed: int) -> tuple[TableScore, TableScore]:
    """Return the score on the held-out rows of a model trained on the others, with and without calibration."""
    fitted = _Fitted.to(table, seed)
    return fitted.score(*fitted.calibrated), fitted.score(*fitted.weights)


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A model fitted to the `known` rows of a table: its weights, and their divisor."""

    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    encoded: Values
    wanted: NDArray[np.int64]
    known: NDArray[np.int64]
    held: NDArray[np.int64]
    weights: tuple[Values, Values]
    temperature: float

    @classmethod
    def to(cls, table: Table, seed: int) -> _Fitted:
        if len(set(table.labels)) < 2 or min(Counter(table.labels).values()) < 2 * _FOLDS:
            raise ConfigurationError(f"{table.name}: needs two labels or more, and {2 * _FOLDS} rows of each")
        labels = tuple(sorted(set(table.labels)))
        wanted = np.array([labels.index(label) for label in table.labels])
        known, held = _split(table.labels, seed)
        cells = {name: [table.rows[n][name] for n in known] for name in table.rows[0]}
        columns = tuple(table_columns.column(name, own, _drop(name)) for name, own in cells.items())
        encoded = np.array([_encoded(columns, row) for row in table.rows])
        strength = _strength(encoded[known], wanted[known])
        temperature = _temperature(encoded[known], wanted[known], strength)
        weights = _weights(_fit(encoded[known], wanted[known], strength), 1.0)
        return cls(labels, columns, encoded, wanted, known, held, weights, temperature)

    @property
    def calibrated(self) -> tuple[Values, Values]:
        weight, bias = self.weights
        return weight / self.temperature, bias / self.temperature

    def score(self, weight: Values, bias: Values) -> TableScore:
        return _score(softmax(self.encoded[self.held] @ weight.T + bias, axis=1), self.wanted[self.held])


def _encoded(columns: Sequence[Column], row: Row) -> list[float]:
    encoded: list[float] = []
    for column in columns:
        try:
            encoded += column.encode(row[column.name], column.name)
        except InvalidInput:  # a word found only in held-out rows is unknown to the model
            encoded += column.encode(None, column.name)
    return encoded


def _fit(values: Values, wanted: NDArray[np.int64], strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=5000).fit(values, wanted)


def _strength(values: Values, wanted: NDArray[np.int64]) -> float:
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=SEED)
    scores = {
        strength: float(
            cross_val_score(
                LogisticRegression(C=strength, max_iter=5000), values, wanted, cv=folds, scoring="neg_log_loss"
            ).mean()
        )
        for strength in _STRENGTHS
    }
    return max(scores, key=lambda strength: scores[strength])


def _weights(fitted: LogisticRegression, temperature: float) -> tuple[Values, Values]:
    weight, bias = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # one row of weights serves both classes: softmax over ±half of it is its sigmoid
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight / temperature, bias / temperature


def _temperature(values: Values, wanted: NDArray[np.int64], strength: float) -> float:
    """Return the divisor of the scores of unseen rows that makes their probabilities right (Guo et al. 2017)."""
    scores = np.zeros((len(wanted), len(set(wanted.tolist()))))
    for known, unseen in StratifiedKFold(_FOLDS, shuffle=True, random_state=SEED).split(values, wanted):
        weight, bias = _weights(_fit(values[known], wanted[known], strength), 1.0)
        scores[unseen] = values[unseen] @ weight.T + bias

    def loss(temperature: float) -> float:
        return -float(log_softmax(scores / temperature, axis=1)[np.arange(len(wanted)), wanted].mean())

    return float(minimize_scalar(loss, bounds=(0.1, 10.0), method="bounded").x)


def calibration_error(sure: Values, right: NDArray[np.bool_]) -> float:
    """Return the expected calibration error: the mean gap between the scores and the share that is right, by bins."""
    bins = np.minimum((sure * _BINS).astype(int), _BINS - 1)
    gaps = [abs(right[bins == n].mean() - sure[bins == n].mean()) * (bins == n).mean() for n in set(bins.tolist())]
    return float(sum(gaps))


def _score(probabilities: Values, wanted: NDArray[np.int64]) -> TableScore:
    best = probabilities.argmax(axis=1)
    sure = probabilities.max(axis=1)
    right = np.eye(probabilities.shape[1])[wanted]
    return TableScore(
        rows=len(wanted),
        accuracy=float((best == wanted).mean()),
        majority=max(Counter(wanted.tolist()).values()) / len(wanted),
        brier=float(((probabilities - right) ** 2).sum(axis=1).mean()),
        brier_of_shares=float(((right.mean(axis=0) - right) ** 2).sum(axis=1).mean()),
        calibration_error=calibration_error(sure, best == wanted),
        auc=float(roc_auc_score(wanted, probabilities[:, 1])) if probabilities.shape[1] == 2 else None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the model's folder: the `source` of a model in fleet.toml")
    parser.add_argument(
        "--data", choices=list(TABLES), default="biopsies", help="a public table (default: %(default)s)"
    )
    parser.add_argument("--csv", type=Path, help="your own table, with a header")
    parser.add_argument("--label", help="the column of the CSV file that is to be predicted")
    parser.add_argument("--drop", action="append", default=[], metavar="COLUMN", help="leave out a column, as an id")
    asked = parser.parse_args()
    if bool(asked.csv) != bool(asked.label):
        parser.error("--csv and --label go together")
    if asked.drop and not asked.csv:
        parser.error("--drop is for --csv")
    if asked.csv:
        say(f"train_tabular --csv goes away: argosy train RECIPE, kind = {_KIND!r} (docs/training.md)", err=True)
    table = read_csv(asked.csv, asked.label, drop=asked.drop) if asked.csv else TABLES[asked.data]()
    for sentence in doubtful(table) if asked.csv else ():
        say(f"{asked.csv}: {sentence}", err=True)
    score = train(table, asked.out)
    auc = "" if score.auc is None else f", area under ROC {score.auc:.3f}"
    Console().print(
        f"{table.name}: {score.accuracy:.1%} of {score.rows} held-out rows (majority {score.majority:.1%}){auc}, "
        f"Brier {score.brier:.3f} (by the labels' shares alone {score.brier_of_shares:.3f}), "
        f"expected calibration error {score.calibration_error:.3f}; in {asked.out}"
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
