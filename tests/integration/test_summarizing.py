"""The summary of docs/models.md is a task by its TOML alone: what the document shows runs, on a model that knows
nothing.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from tests import tiny_checkpoints
from tests.end_to_end.documents import ROOT, blocks
from tests.serving import Served


def test_the_documented_summary_is_json_of_its_schema(tmp_path: Path) -> None:
    shown = (tomllib.loads(block.text) for block in blocks(ROOT / "docs" / "models.md") if block.language == "toml")
    [tasks] = [own for one in shown if "summary" in (own := one.get("models", {}).get("chat", {}).get("tasks", {}))]
    folder = with_room(tiny_checkpoints.llama(tmp_path / "llama"))
    served = Served(folder, {"summary": tasks["summary"]}).load()
    for answer in served.ask("summary", ["The cup final was lost.", "Profits rose."], max_new_tokens=800):
        assert set(answer) == {"summary"}
        assert len(answer["summary"]) <= 160


def with_room(folder: Path) -> Path:
    """Let the tiny model, whose tokens are bytes, read and write more of them."""
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        settings = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps(settings | {key: 1024}), encoding="utf-8")
    return folder
