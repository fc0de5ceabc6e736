"""Which splits of a training are refused, by name, from the configuration alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from producers.wire.errors import ConfigurationError
from workers.training.loop.processes import Process
from workers.training.loop.recipe import Compression, Split
from workers.training.splits import layouts
from workers.training.splits.layouts import NetworkShape
from workers.training.splits.stages import Received, keep_own

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
        ("stages", 2, shape(lower_layers=True), "none", "split: the heads of this training read layers"),
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


TEXT_SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
SIZES = {"distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24}}


class Network(nn.Module):
    """The parts of a trained network that are cut."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.backbone = backbone
        self.heads = nn.ModuleList()
        self.weights = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize("model_type", layouts.LAYOUTS)
def test_the_table_fits_the_architectures(model_type: str) -> None:
    """The stages of a backbone compute what the whole computes, and the matrices of a layer are all that it has."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, vocab_size=20, **SIZES.get(model_type, TEXT_SIZES))
    whole: Any = transformers.AutoModel.from_config(config).eval()
    inputs = {"input_ids": torch.randint(3, 20, (2, 5)), "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])}
    hidden = None
    for rank in range(2):
        network, process = Network(copy.deepcopy(whole)), Process(rank, 2)
        received = Received(None, process)
        received.tensor = hidden
        keep_own(network, received, process)
        with torch.no_grad():
            hidden = network.encoder.backbone(**inputs).last_hidden_state
    with torch.no_grad():
        expected = whole(**inputs).last_hidden_state
    assert hidden is not None
    assert torch.allclose(hidden, expected, atol=1e-6)
    layout = layouts.LAYOUTS[model_type]
    layer = whole.get_submodule(layout.layers)[0]
    matrices = {name for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    assert matrices == {*layout.columns, *layout.rows}
    assert layouts.layers_of(whole) is whole.get_submodule(layout.layers)


def test_a_shape_is_read_from_the_configuration(tmp_path: Path) -> None:
    """Without weights, which are not there."""
    transformers.DistilBertConfig(dim=8, n_layers=3, n_heads=4, hidden_dim=12).save_pretrained(tmp_path)
    found = NetworkShape.of(tmp_path, "lora")
    assert found == NetworkShape("distilbert", layers=3, attention_heads=4, inner=12, sharing="lora")
