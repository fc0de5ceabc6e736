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
        ("stages", 2, shape(model_type="t5", writes=True), "none", "split: stages of 't5' cannot be cut, only of bart"),
        ("stages", 2, shape(model_type="bart", writes=True), "none", "split: stages of an encoder with a decoder"),
        ("stages", 2, shape(model_type="llama", writes=True, tied=True), "none", "split: the first and the last stage"),
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
SIZES: dict[str, dict[str, Any]] = {"distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24}}
_SIDES = {"layers": 2, "attention_heads": 2, "ffn_dim": 24}
_BART = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in _SIDES.items()}
SIZES |= {name: {"d_model": 16, "pad_token_id": 1, **_BART} for name in ("bart", "marian", "pegasus")}
SIZES |= {name: {**TEXT_SIZES, "num_key_value_heads": 1} for name in ("llama", "mistral", "qwen2")}


class Network(nn.Module):
    """The parts of a trained network that are cut."""

    def __init__(self, backbone: nn.Module, *, writes: bool) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.backbone = backbone
        vars(self.encoder)["writes"] = writes
        self.heads = nn.ModuleList()
        self.weights = nn.Parameter(torch.zeros(1))


def network_of(model_type: str, auto: str) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, vocab_size=20, **SIZES.get(model_type, TEXT_SIZES))
    return getattr(transformers, auto).from_config(config).eval()


WHOLE = {**dict.fromkeys(layouts.LAYOUTS, "AutoModel"), "bart": "AutoModelForSeq2SeqLM"}
WHOLE |= {"marian": "AutoModelForSeq2SeqLM", "pegasus": "AutoModelForSeq2SeqLM"}
WHOLE |= dict.fromkeys(("llama", "mistral", "qwen2"), "AutoModelForCausalLM")


@pytest.mark.parametrize(("model_type", "auto"), WHOLE.items())
def test_the_table_fits_the_architectures(model_type: str, auto: str) -> None:
    """The stages of a backbone compute what the whole computes, and the matrices of a layer are all that it has."""
    whole = network_of(model_type, auto)
    layout = layouts.layout_of(Network(whole, writes=auto != "AutoModel").encoder)
    layers = [layer for stack in layout.stacks for layer in whole.get_submodule(stack)]
    matrices = {name for layer in layers for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    assert matrices == {*layout.columns, *layout.rows}
    assert {*layouts.layers_of(whole)} == {*layers}
    if len(layout.stacks) == 1:
        inputs = {"input_ids": torch.randint(3, 20, (2, 5)), "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])}
        hidden = None
        for rank in range(2):
            network, process = Network(copy.deepcopy(whole), writes=auto != "AutoModel"), Process(rank, 2)
            received = Received(None, process)
            received.tensor = hidden
            keep_own(network, received, process)
            with torch.no_grad():
                hidden = network.encoder.backbone(**inputs)[0]
        with torch.no_grad():
            expected = whole(**inputs)[0]
        assert hidden is not None
        assert torch.allclose(hidden, expected, atol=1e-6)


def test_the_table_has_all_that_is_tried() -> None:
    assert {*WHOLE} == {*layouts.LAYOUTS, *layouts.WRITING_LAYOUTS}


def test_a_shape_is_read_from_the_configuration(tmp_path: Path) -> None:
    """Without weights, which are not there."""
    transformers.DistilBertConfig(dim=8, n_layers=3, n_heads=4, hidden_dim=12).save_pretrained(tmp_path)
    found = NetworkShape.of(tmp_path, "lora")
    assert found == NetworkShape("distilbert", layers=3, attention_heads=4, inner=12, sharing="lora")
