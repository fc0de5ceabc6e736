"""What benchmarks.catalogue measures of text and image together: held-out digits, and what is said of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from producers import Client
from workers.models.sources import model_source

_JUDGED = 500


def sayings(count: int) -> list[Any]:
    """Return so many held-out digits, each with a statement in a phrasing that was trained on."""
    return [item for item, _ in _pairs(count, new_phrasings=False)]


def _pairs(count: int, *, new_phrasings: bool) -> list[tuple[dict[str, Any], bool]]:
    from PIL import Image

    from workers.shipped_heads.vision import digits, statements

    _, held_out = digits.read(model_source.cache_folder())
    of = statements.statements(held_out=new_phrasings)
    chances = statements.chances(of)
    random = np.random.default_rng(0)
    found = []
    for place in random.choice(chances.size, count, p=chances.ravel()):
        digit, statement = divmod(int(place), len(of))
        image = held_out.images[random.choice(np.flatnonzero(held_out.numbers == digit))]
        made = io.BytesIO()
        Image.fromarray((image * 255).round().astype(np.uint8)).save(made, "PNG")
        item = {"text": of[statement].text, "image": made.getvalue()}
        found.append((item, of[statement].true_of[digit]))
    return found


def by_hand(folder: Path) -> Callable[[Sequence[Any], int], object]:
    """The loop that one writes around two networks and a head; transformers has no pipeline for this kind any more."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoModelForImageClassification, AutoTokenizer

    from workers import settings
    from workers.batching.serving import served_models
    from workers.models.built_in.fused.fused_network import FusedHead
    from workers.models.built_in.multitask import head_file
    from workers.models.pictures import pixels

    chosen = settings.load(environment={})
    text, vision = (Path(served_models.model_to_load(chosen, name).folder) for name in ("text", "vision"))
    tokenizer, encoder = AutoTokenizer.from_pretrained(text), AutoModel.from_pretrained(text).eval()
    network = AutoModelForImageClassification.from_pretrained(vision).mobilenet_v2.eval()
    tensors = load_file(folder / head_file.FILE)
    fused = FusedHead.of_shape(tensors)
    fused.load_state_dict(tensors)
    fused.eval()
    mean, std = (torch.tensor(own).view(1, 3, 1, 1) for own in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def run(inputs: Sequence[Any], batch_size: int) -> object:
        found: list[str] = []
        for start in range(0, len(inputs), batch_size):
            own = inputs[start : start + batch_size]
            encoded = tokenizer([one["text"] for one in own], padding=True, return_tensors="pt")
            images = np.stack([pixels.decode(one["image"]) for one in own])
            values = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
            with torch.inference_mode():
                tokens = encoder(**encoded).last_hidden_state
                places = network(values).last_hidden_state.flatten(2).transpose(1, 2)
                scores = fused(tokens, encoded["attention_mask"].bool(), fused.seen(places))
            found += [("false", "true")[best] for best in scores.argmax(-1).tolist()]
        return found

    return run


def statements_judged(client: Client) -> tuple[str, float, float]:
    """Judge statements about held-out digits; who sees text or image alone is right half of the time."""
    pairs = _pairs(_JUDGED, new_phrasings=False)
    job = client.submit_many("holds", [item for item, _ in pairs])
    job.wait(timeout_s=600)
    best = {row.seq: row.output[0]["answer"] for row in job.results()}
    right = sum(best[place] == str(holds).lower() for place, (_, holds) in enumerate(pairs))
    return f"accuracy, {_JUDGED} statements about held-out digits:", right / len(pairs), 0.5
