"""A model's class is found by module and name, or by the name under which an installed package offers it."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoints
from pathlib import Path

import pytest

from workers.models.interface import class_lookup


def test_a_class_by_its_module() -> None:
    from workers.models.built_in.text.text_model import TextModel

    assert class_lookup.find("workers.models.built_in.text.text_model:TextModel") is TextModel
    with pytest.raises(ImportError):
        class_lookup.find("no_such_module:Model")
    with pytest.raises(AttributeError):
        class_lookup.find("workers.models.built_in.text.text_model:Missing")


def test_a_class_that_a_package_offers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "offered_model.py").write_text("class Own:\n    pass\n", encoding="utf-8")
    install(tmp_path, "offered-model", "own = offered_model:Own")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert class_lookup.find("own") is sys.modules["offered_model"].Own
    with pytest.raises(ImportError, match=r"'other' is neither .*installed: .*own"):
        class_lookup.find("other")


def test_a_name_that_two_packages_offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of installation must not decide whose network answers. The same class twice is one class."""
    install(tmp_path, "first", "own = first:Own\nsame = first:Own")
    install(tmp_path, "second", "own = second:Own\nsame = first:Own")
    (tmp_path / "first.py").write_text("class Own:\n    pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ImportError, match=r"several installed packages offer .* 'own': write one of first:Own, second:Own"
    ):
        class_lookup.find("own")
    assert class_lookup.find("same") is sys.modules["first"].Own


def test_an_installation_older_than_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """`git pull` without another `pip install --editable` leaves the entry points as they were."""
    monkeypatch.setattr(class_lookup, "entry_points", lambda group: EntryPoints())
    with pytest.raises(ImportError, match=r"'text' is neither .*older than its source: install argosy again"):
        class_lookup.find("text")


def install(folder: Path, package: str, models: str) -> None:
    """Leave the metadata of an installed package, as pip does."""
    about = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(f"[{class_lookup.GROUP}]\n{models}\n", encoding="utf-8")
