"""Checkpoints with odd but legal settings, and folders that lack a part: each was once answered otherwise, or failed."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.checkpoint_folders import texts, writing
from benchmarks.checkpoint_folders.folders import Case
from benchmarks.checkpoint_folders.texts import Row

#: Chat templates: with a block that marks what is learnt, with a question for tools, and with special tokens.
TEMPLATES = {
    "generation": "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}assistant:",
    "tools": "{% if tools is not none %}TOOLS {{ tools | tojson(separators=(',', ':')) }}{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content | tojson(sort_keys=true) }}\n{% endfor %}assistant:",
    "special": "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}[assistant]",
}

_LLAMA: Row = ("llama", "GPT2", {})


def long_rope(most: int) -> Row:
    """Return a row of Phi-3 that turns all tokens of a text of more than `most` tokens by other angles."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": most}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    return "phi3", "Llama", {"original_max_position_embeddings": most, "rope_parameters": rope}


_CLASSIFIES, _WRITES = "text-classification", "text-generation"


def cases() -> Iterator[Case]:
    rows = {row[0]: row for row in texts.CLASSIFIERS}
    yield texts.of(_CLASSIFIES, rows["llama"], name="llama-pad-below-0-cls", pad_token_id=-1)
    yield texts.of(_CLASSIFIES, long_rope(64), name="phi3-longrope-cls")
    yield _writes("phi3-longrope-writes", long_rope(200))
    for name, left_out in (("head", "lm_head."), ("layer", "layers.1.mlp.")):
        yield _writes(f"llama-no-{name}-writes", _LLAMA, partial(without_weights, beginning=left_out))
    yield _writes("llama-gptq-writes", _LLAMA, _gptq)
    yield Case("bert-other-name-cls", _CLASSIFIES, partial(_changed, _classifier, _renamed), {"top_k": None})
    yield _writes("llama-prefixed-writes", _LLAMA, _prefixed)
    yield Case("bert-lost-shard-cls", _CLASSIFIES, partial(_changed, partial(texts.saved_as, "sharded"), _lost))
    yield texts.of(_CLASSIFIES, rows["bert"], name="bert-other-tokenizer-cls", vocab_size=300)
    cleaned = {"clean_up_tokenization_spaces": True}
    told = partial(changed_json, name="tokenizer_config.json", values=cleaned)
    t5 = partial(writing.text_to_text, writing.TEXT_TO_TEXT[0], {})
    yield Case("t5-cleaned-up-text", "text2text-generation", partial(_changed, t5, told), writing.VARIED)
    masked = partial(texts.make, row=rows["bert"], auto="AutoModelForMaskedLM")
    yield Case("bert-cleaned-up-mlm", "fill-mask", partial(_changed, masked, told))
    bart = partial(writing.text_to_text, writing.TEXT_TO_TEXT[5], {})
    yield Case("bart-length-in-config-text", "summarization", partial(_changed, bart, _as_of_2020))
    for name, template in TEMPLATES.items():
        chats = partial(_chats, template, apart=name == "special")
        yield Case(f"llama-chat-{name}-writes", _WRITES, partial(_changed, partial(_decoder, _LLAMA), chats),
                   {"max_new_tokens": 8, "as_message": True}, {}, "chat")  # fmt: skip


def _writes(name: str, row: Row, change: Callable[[Path], None] | None = None) -> Case:
    make = partial(_decoder, row)
    return Case(name, _WRITES, partial(_changed, make, change) if change else make, {"max_new_tokens": 12})


def _decoder(row: Row, folder: Path) -> None:
    texts.make(folder, row=row, auto="AutoModelForCausalLM")


def _classifier(folder: Path) -> None:
    texts.make(folder, row=texts.CLASSIFIERS[0], auto="AutoModelForSequenceClassification", num_labels=3)


def _changed(make: Callable[[Path], object], change: Callable[[Path], None], folder: Path) -> None:
    make(folder)
    change(folder)


def changed_json(folder: Path, *, name: str, values: Mapping[str, Any], left_out: Collection[str] = ()) -> None:
    """Change a settings file of a folder."""
    file = folder / name
    there = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({key: value for key, value in (there | values).items() if key not in left_out}))


def _resaved(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], name: str = "model.safetensors") -> None:
    from safetensors.torch import load_file, save_file

    tensors = change(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / name, metadata={"format": "pt"})


def without_weights(folder: Path, *, beginning: str) -> None:
    """Leave out the weights whose name has this part."""
    _resaved(folder, lambda tensors: {name: own for name, own in tensors.items() if beginning not in name})


def _renamed(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.safetensors")


def _prefixed(folder: Path) -> None:
    """Name the weights as torch.nn.DataParallel does."""
    _resaved(folder, lambda tensors: {f"module.{name}": own for name, own in tensors.items()})


def _lost(folder: Path) -> None:
    max(folder.glob("model-*.safetensors")).unlink()


def _gptq(folder: Path) -> None:
    """Write what AutoGPTQ wrote: four bits in whole numbers, in a file of its own name."""

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        import torch

        return {
            name.replace("proj.weight", "proj.qweight"): torch.zeros(len(own) // 8, own.shape[1], dtype=torch.int32)
            if name.endswith("proj.weight")
            else own
            for name, own in tensors.items()
        }

    _resaved(folder, change, "gptq_model-4bit-128g.safetensors")
    changed_json(folder, name="quantize_config.json", values={"bits": 4, "group_size": 128})


def _as_of_2020(folder: Path) -> None:
    """Have the settings of generation in ``config.json``, as before there was a file for them."""
    (folder / "generation_config.json").unlink()
    own = {"max_length": 20, "min_length": 10, "num_beams": 2, "no_repeat_ngram_size": 3, "early_stopping": True}
    changed_json(folder, name="config.json", values=own)


def _chats(template: str, folder: Path, *, apart: bool) -> None:
    """Give a folder a chat template; `apart` moves the special tokens into the earlier form's own file."""
    file = folder / "tokenizer_config.json"
    names = [name for name in json.loads(file.read_text()) if name.endswith("_token")] if apart else []
    if apart:
        special = {name: json.loads(file.read_text())[name] for name in names}
        changed_json(folder, name="special_tokens_map.json", values=special)
    changed_json(folder, name=file.name, values={"chat_template": template}, left_out=names)
