"""Rows of a table: trained, served, explained; what a row lacks or has too much is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from producers.wire.catalogue import Catalogue
from producers.wire.errors import ConfigurationError, InvalidInput
from tests.serving import Served
from workers.models.built_in.tables.tabular import TabularModel
from workers.models.interface.model import ModelSpec
from workers.training import train_tabular

SERVED = {"screening": "tabular-classification"}


class ServedTable(Served):
    """As a fleet serves it: by class and folder."""

    def __init__(self, folder: Path) -> None:
        self.catalogue = Catalogue({}).with_models({"own": {"tasks": SERVED}}, where="fleet.toml")
        self.model: Any = TabularModel(ModelSpec("own", folder, "1", self.catalogue.tasks, {}))


@pytest.fixture(scope="module")
def biopsies() -> train_tabular.Table:
    return train_tabular.breast_cancer()


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, biopsies: train_tabular.Table
) -> tuple[Path, train_tabular.TableScore]:
    folder = tmp_path_factory.mktemp("screening")
    return folder, train_tabular.train(biopsies, folder)


@pytest.fixture(scope="module")
def served(trained: tuple[Path, train_tabular.TableScore]) -> ServedTable:
    table = ServedTable(trained[0])
    table.load()
    return table


def test_it_knows_what_it_has_not_seen(trained: tuple[Path, train_tabular.TableScore]) -> None:
    """Far over the majority, and its probabilities mean what they say, on rows that were held out."""
    score = trained[1]
    assert score.rows == 114
    assert score.accuracy >= 0.95
    assert score.majority < 0.64
    assert score.calibration_error <= 0.06
    assert score.auc is not None
    assert score.auc >= 0.97


def test_an_explanation_adds_up_to_the_decision(served: ServedTable, biopsies: train_tabular.Table) -> None:
    """The columns' contributions are the whole of it: with the average row's odds they give the probability exactly."""
    for answer in served.ask("screening", biopsies.rows[:8], top_k=None, explain=True):
        for label in answer:
            why = label["explanation"]
            total = sum(part.contribution for part in why.columns)
            assert why.base + total == pytest.approx(why.value, abs=1e-4)
            # a score is kept to six digits, and one of 0.999999 has odds that are known to a few tenths only
            if 1e-4 < label["score"] < 1 - 1e-4:
                assert why.value == pytest.approx(log_odds(label["score"]), abs=0.02)
        weights = [abs(part.contribution) for part in answer[0]["explanation"].columns]
        assert weights == sorted(weights, reverse=True)


def log_odds(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def test_answers_do_not_depend_on_company(served: ServedTable, biopsies: train_tabular.Table) -> None:
    """A row alone and the row among others: the same labels and scores. A processor may round the last digit kept by
    the batch's size.
    """
    together = served.ask("screening", biopsies.rows[:20])
    for row, among in zip(biopsies.rows[:20], together, strict=True):
        [alone] = served.ask("screening", [row])
        assert [label | {"score": None} for label in alone] == [label | {"score": None} for label in among]
        assert [label["score"] for label in alone] == pytest.approx([label["score"] for label in among], abs=2e-6)


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"mean_radius": "large"}, "input.mean_radius", "must be a number, not str"),
        ({"shoe_size": 43}, "input.shoe_size", "is not a column of the model"),
        ({"mean_radius": float("nan")}, "input.mean_radius", "is nan"),
        ({"mean_radius": [1]}, "input.mean_radius", "must be a number or text, not list"),
    ],
)
def test_a_wrong_row_is_told_what_is_wrong(
    served: ServedTable, biopsies: train_tabular.Table, change: dict[str, Any], field: str, problem: str
) -> None:
    """By column, so that the one who sent a thousand of them finds it."""
    refused = served.refusal("screening", {**biopsies.rows[0], **change})
    assert field in str(refused)
    assert problem in str(refused)


def test_a_column_that_is_missing_is_not_made_up(served: ServedTable, biopsies: train_tabular.Table) -> None:
    """Null says "unknown" and counts as average; nothing at all may be a mistake in the pipeline."""
    row = {name: value for name, value in biopsies.rows[0].items() if name != "mean_area"}
    assert "input.mean_area: is missing" in str(served.refusal("screening", row))
    served.ask("screening", [{**row, "mean_area": None}])
    with pytest.raises(InvalidInput, match="must be an object of columns and values"):
        served.catalogue.check_input(served.task("screening"), {}, field="input")


def test_a_table_of_ones_own_with_words_in_it(tmp_path: Path) -> None:
    """A CSV file with numbers, words and gaps is all it takes; words that training never saw are named."""
    lines = ["amount,country,risk"]
    for number in range(60):
        risky = number % 3 == 0
        lines.append(
            f"{900 + number if risky else 40 + number},{'' if number % 7 == 0 else 'XX' if risky else 'DE'},{'bad' if risky else 'good'}"
        )
    (tmp_path / "payments.csv").write_text("\n".join(lines), encoding="utf-8")
    score = train_tabular.train(train_tabular.read_csv(tmp_path / "payments.csv", "risk"), tmp_path / "model")
    assert score.accuracy == 1.0
    own = ServedTable(tmp_path / "model")
    own.load()
    answers = own.ask("screening", [{"amount": 950, "country": "XX"}, {"amount": 50, "country": None}], explain=True)
    assert [answer[0]["label"] for answer in answers] == ["bad", "good"]
    assert {part.column for part in answers[0][0]["explanation"].columns} == {"amount", "country"}
    assert "unknown to the model" in str(own.refusal("screening", {"amount": 1, "country": "FR"}))


def test_a_table_as_spreadsheets_write_it(tmp_path: Path) -> None:
    """A mark in front, semicolons, an id, unknown numbers, numbers that are words because one of them is."""
    lines = ["\ufeffsep=;", "customer;age;plan;churn"]
    for number in range(60):
        age, plan = "NA" if number % 7 == 0 else str(20 + number % 9), ("1", "2", "3+")[number % 3]
        lines.append(f"{number};{age};{plan};{'yes' if plan == '3+' else 'no'}")
    (tmp_path / "churn.csv").write_text("\r\n".join(lines), encoding="utf-8", newline="")
    whole = train_tabular.read_csv(tmp_path / "churn.csv", "churn")
    assert list(train_tabular.doubtful(whole)) == [
        "column 'customer' counts up from row to row, like an id; leave it out with --drop 'customer'",
        "column 'plan' is read as words, as it has '3+' among numbers",
    ]
    table = train_tabular.read_csv(tmp_path / "churn.csv", "churn", drop=["customer"])
    assert table.rows[0] == {"age": None, "plan": "1"}
    assert train_tabular.train(table, tmp_path / "model").accuracy == 1.0
    model = ServedTable(tmp_path / "model").model
    columns = {"age": {"type": ["number", "null"]}, "plan": {"enum": ["1", "2", "3+", None]}}
    assert model.declared_schemas()["input"]["properties"] == columns


def test_the_command_says_what_is_wrong_in_a_line(tmp_path: Path) -> None:
    """And no traceback."""
    (tmp_path / "t.csv").write_text("a,label\n1,x\n2\n", encoding="utf-8")
    command = [sys.executable, "-m", "workers.training.train_tabular", "out", "--csv", "t.csv", "--label", "label"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    told, said = ran.stderr.splitlines()
    assert "argosy train RECIPE, kind = 'tabular-classification'" in told
    assert said == "argosy: t.csv:3: has 1 columns where the header has 2; quote cells that contain the separator"
    assert ran.returncode == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,x\n", "no column 'label'"),
        ("a,label\n1,\n2,x\n", "t.csv:2: label is empty"),
        ("a,label\n1,x\n2\n", "t.csv:3: has 1 columns where the header has 2"),
        ("a,a,label\n1,1,x\n", "names the column 'a' twice"),
        ('a,label\n1,"x\n', "t.csv:2: opens a quotation mark that is never closed"),
        ("a;label\n1,5;x\n2;y\n", "column 'a' has numbers with commas, like '1,5'; write them with a decimal point"),
        ("\n", "has no header"),
        ("a,label\n", "has a header and no row below it"),
        ("a,label\n1,x\na,label\n2,y\n", "t.csv:3: is the header again, as in joined files"),
        ("label\nx\n", "has no column but the label"),
        ("a,label\n1,x\n", "needs two labels"),
    ],
)
def test_a_table_that_teaches_nothing_is_refused(tmp_path: Path, content: str, message: str) -> None:
    """Before anything is trained or written."""
    (tmp_path / "t.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message):
        train_tabular.train(train_tabular.read_csv(tmp_path / "t.csv", "label"), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    """At the start of a worker."""
    with pytest.raises(ConfigurationError, match="train it again"):
        ServedTable(tmp_path).load()


def test_outputs_are_of_their_kinds_type(served: ServedTable, biopsies: train_tabular.Table) -> None:
    """What the catalogue promises a client is what comes."""
    answer = served.ask("screening", biopsies.rows[:1], explain=True)[0]
    msgspec.convert(msgspec.to_builtins(answer), served.task("screening").kind.output)


def test_phishing_pages_are_told_with_a_probability(tmp_path: Path) -> None:
    """Real pages, of which a fifth is held out: far better than the labels' shares, and no row of them is learnt
    from.
    """
    table = train_tabular.phishing()
    score = train_tabular.train(table, tmp_path)
    held = train_tabular.held_out(table)
    assert len(held.rows) == score.rows == 250
    assert score.auc is not None
    assert score.auc >= 0.95
    assert score.brier < score.brier_of_shares / 3
    assert score.calibration_error <= 0.08
    own = ServedTable(tmp_path)
    own.load()
    [answer] = own.ask("screening", held.rows[:1], explain=True)
    assert answer[0]["explanation"].columns[0].column in table.rows[0]
