"""A checkpoint is tried before it serves: it answers alone as with neighbours, or the worker does not start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from producers.wire.errors import ConfigurationError
from tests import tiny_checkpoints as tiny
from tests.integration.test_huggingface_text import assert_alike
from tests.serving import Served
from workers.models.huggingface import trial

TEXTS = ["the film was fine and the team won the cup", "dull", "shares fell in london, she said!"]


def xlnet(folder: Path) -> Path:
    size = tiny.wordpiece(folder)
    config = transformers.XLNetConfig(vocab_size=size, d_model=32, n_layer=2, n_head=2, d_inner=48, num_labels=3)
    tiny._spread(transformers.XLNetForSequenceClassification(config)).save_pretrained(folder)
    return folder


def fnet(folder: Path) -> Path:
    size = tiny.wordpiece(folder)
    config = transformers.FNetConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, intermediate_size=48)
    tiny._spread(transformers.FNetForSequenceClassification(config)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("maker", [xlnet, fnet])
def test_a_network_that_padding_changes_gets_none(tmp_path: Path, maker: Callable[[Path], Path]) -> None:
    """One reads its last position, the other takes no mask."""
    folder = maker(tmp_path / "model")
    for _ in range(2):  # the second time it is known
        served = Served(folder, {"mood": "text-classification"}).load()
        assert served.model.equal_lengths
        alone = [served.ask("mood", [text], top_k=None)[0] for text in TEXTS]
        assert_alike(served.ask("mood", TEXTS, top_k=None), alone)


def test_a_usual_network_is_padded(tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path / "model", "BertForSequenceClassification")
    assert not Served(folder, {"mood": "text-classification"}).load().model.equal_lengths


def test_a_network_whose_padding_gives_no_numbers_gets_none(tmp_path: Path) -> None:
    """As of an attention that divides by the sum of its masked scores."""
    served = Served(tiny.bert(tmp_path / "model", "BertForSequenceClassification"), {"mood": "text-classification"})
    served.model.load("cpu")

    def spoil(_: Any, args: Any, given: dict[str, Any], output: Any) -> None:
        if not given["attention_mask"].all():
            output.logits[:] = float("nan")

    served.model.networks.only.register_forward_hook(spoil, with_kwargs=True)
    served.model.try_out()
    assert served.model.equal_lengths
    assert all(score["score"] > 0 for scores in served.ask("mood", TEXTS) for score in scores)


def test_a_network_that_fails_on_every_input_is_refused(tmp_path: Path) -> None:
    """CLIP wants a text beside each image; its worker was ready, and all its items failed."""
    folder = tmp_path / "clip"
    size = tiny.wordpiece(folder)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": size, "max_position_embeddings": 64},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    with pytest.raises(
        ConfigurationError, match=r"^models\.own: the network cannot compute a sample input: ValueError"
    ):
        Served(folder, {"vector": "image-feature-extraction"}).load()


def test_a_network_that_gives_no_numbers_is_refused(tmp_path: Path) -> None:
    """Its vectors failed one by one, and its scores were null."""
    folder = tiny.bert(tmp_path / "model", "BertForSequenceClassification")
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    network.bert.encoder.layer[0].output.dense.weight.data[:] = float("nan")
    network.save_pretrained(folder)
    for kind in ("text-classification", "feature-extraction"):
        with pytest.raises(ConfigurationError, match=r"not numbers \(NaN\) for every sample input.*; pull it again"):
            Served(folder, {"task": kind}).load()


def test_a_trial_that_was_passed_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart costs nothing; other weights are tried again."""
    runs: list[Any] = []
    ran = trial.run
    monkeypatch.setattr(trial, "run", lambda *given, **named: (runs.append(given), ran(*given, **named)))
    folder = tiny.bert(tmp_path / "model", "BertForSequenceClassification")
    for _ in range(2):
        Served(folder, {"mood": "text-classification"}).load()
    assert len(runs) == 1
    other = tiny.bert(tmp_path / "other", "BertForSequenceClassification", seed=1)
    Served(other, {"mood": "text-classification"}).load()
    assert len(runs) == 2
