"""Which splits of a training are refused, by name, from the configuration alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from producers.wire.errors import ConfigurationError
from workers.training.joint.recipe import Compression, Split
from workers.training.splits import layouts
from workers.training.splits.layouts import NetworkShape

BERT = NetworkShape("bert", layers=6, attention_heads=12, inner=1536)


def shape(**changes: object) -> NetworkShape:
    return NetworkShape(**{**{name: getattr(BERT, name) for name in BERT.__slots__}, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("split", "processes", "own", "compression", "message"),
    [
        ("states", 1, BERT, "none", "split: one process has nobody to share states with"),
        ("states", 2, BERT, "powersgd", "compression: is of gradients that whole networks exchange"),
        ("layers", 5, BERT, "none", "split: 12 attention heads and 1536 inner features cannot be divided among 5"),
        ("layers", 2, shape(model_type="deberta-v2"), "none", "split: layers of 'deberta-v2' cannot be cut, only of"),
        ("layers", 2, shape(sharing="lora"), "none", "split: layers with LoRA's matrices cannot be cut"),
        ("stages", 2, shape(model_type="t5"), "none", "split: stages of 't5' cannot be cut, only of bert"),
        ("stages", 7, BERT, "none", "split: 6 layers cannot be 7 stages"),
        ("stages", 2, shape(sharing="frozen"), "none", "split: stages of a frozen backbone have nothing to learn"),
        ("stages", 2, shape(lower_layers=True), "none", "split: stages: the heads of this training read layers"),
    ],
)
def test_a_split_is_refused(
    split: Split, processes: int, own: NetworkShape, compression: Compression, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        layouts.check(split, processes, own, compression)


@pytest.mark.parametrize("split", ["rows", "states"])
@pytest.mark.parametrize("sharing", ["full", "lora", "frozen"])
def test_rows_and_states_of_any_network_are_split(split: Split, sharing: str) -> None:
    layouts.check(split, 5, shape(model_type="any", sharing=sharing), "none")


def test_a_shape_is_read_from_the_configuration(tmp_path: Path) -> None:
    """Without weights, which are not there."""
    transformers.DistilBertConfig(dim=8, n_layers=3, n_heads=4, hidden_dim=12).save_pretrained(tmp_path)
    found = NetworkShape.of(tmp_path, "lora")
    assert found == NetworkShape("distilbert", layers=3, attention_heads=4, inner=12, sharing="lora")
