"""A model's class is found by module and name, or by the name under which an installed package offers it."""

from __future__ import annotations

import sys
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
    """As pip leaves an installed package: a module, and its metadata beside it."""
    (tmp_path / "offered_model.py").write_text("class Own:\n    pass\n", encoding="utf-8")
    about = tmp_path / "offered_model-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: offered-model\nVersion: 1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(f"[{class_lookup.GROUP}]\nown = offered_model:Own\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert class_lookup.find("own") is sys.modules["offered_model"].Own
    with pytest.raises(ImportError, match=r"'other' is neither .*installed: .*own"):
        class_lookup.find("other")
