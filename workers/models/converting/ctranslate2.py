"""Convert a Whisper model from CTranslate2's file to a transformers folder.

The file (``model.bin``, CTranslate2's binary version 6) has the format's version, the specification's name and
revision, and the number of variables; then each variable's name, shape, type and bytes; then the aliases. All numbers
are little-endian.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from workers.models.interface.model import Array
from workers.models.speech.voice import WEIGHTS as VOICE

if TYPE_CHECKING:
    import torch

#: CTranslate2's types by number; numpy has no bfloat16 (5).
_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}

_END_OF_TEXT = "<|endoftext|>"

#: The smallest vocabulary of multilingual Whisper models; English models have fewer tokens.
_MULTILINGUAL_TOKENS = 51865


def variables(file: BinaryIO) -> Iterator[tuple[str, Array]]:
    """Yield the variables of a model file. Raises ValueError for another format."""
    version, specification, _ = _number(file, "I"), _name(file), _number(file, "I")
    if version != 6 or specification != "WhisperSpec":
        raise ValueError(f"not a Whisper model of CTranslate2's format 6, but {specification!r} of format {version}")
    for _ in range(_number(file, "I")):
        name = _name(file)
        shape = [_number(file, "I") for _ in range(_number(file, "B"))]
        type_ = _number(file, "B")
        if type_ not in _TYPES:
            raise ValueError(f"{name} has the unsupported type {type_}")
        yield name, np.frombuffer(file.read(_number(file, "I")), _TYPES[type_]).reshape(shape)


def _number(file: BinaryIO, form: str) -> int:
    return int(struct.unpack(f"<{form}", file.read(struct.calcsize(form)))[0])


def _name(file: BinaryIO) -> str:
    return file.read(_number(file, "H")).rstrip(b"\0").decode()


def convert(source: Path, target: Path) -> None:
    """Convert the model in `source` to a transformers folder; copy the voice detector's weights, if they are there.

    The weights keep their 16 bits.
    """
    import torch
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    with (source / "model.bin").open("rb") as file:
        theirs = {name: torch.from_numpy(array.copy()) for name, array in variables(file)}
    told = json.loads((source / "config.json").read_text("utf-8"))
    vocabulary = json.loads((source / "tokenizer.json").read_text("utf-8"))
    special = {token["content"]: int(token["id"]) for token in vocabulary["added_tokens"]}
    model = WhisperForConditionalGeneration(_config(theirs, special)).half()
    state = dict(_renamed(theirs))
    missing = set(model.state_dict()) - set(state) - {"proj_out.weight"}
    if missing or set(state) - set(model.state_dict()):
        raise ValueError(f"its tensors are not those of transformers' Whisper: {sorted(missing)[:3]} are missing")
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    model.generation_config = _generation_config(told, special)
    model.eval().save_pretrained(target)
    WhisperFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(target)
    _save_tokenizer(source / "tokenizer.json", special, target)
    if (source / VOICE).is_file():
        shutil.copy(source / VOICE, target)


def _config(theirs: Mapping[str, torch.Tensor], special: Mapping[str, int]) -> Any:
    from transformers import WhisperConfig

    tokens, width = theirs["decoder/embeddings/weight"].shape
    if tokens >= _MULTILINGUAL_TOKENS:
        raise ValueError("a multilingual model: load it from the hub, whose folder lists its languages")
    sizes: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        sizes[f"{side}_layers"] = _layers(theirs, side)
        sizes[f"{side}_attention_heads"] = int(theirs[f"{side}/num_heads"])
        sizes[f"{side}_ffn_dim"] = len(theirs[f"{side}/layer_0/ffn/linear_0/bias"])
    end = special[_END_OF_TEXT]
    return WhisperConfig(
        vocab_size=tokens,
        d_model=width,
        num_mel_bins=theirs["encoder/conv1/weight"].shape[1],
        max_source_positions=len(theirs["encoder/position_encodings/encodings"]),
        max_target_positions=len(theirs["decoder/position_encodings/encodings"]),
        decoder_start_token_id=special["<|startoftranscript|>"],
        eos_token_id=end,
        pad_token_id=end,
        bos_token_id=end,
        **sizes,
    )


def _layers(theirs: Mapping[str, torch.Tensor], side: str) -> int:
    return sum(f"{side}/layer_{n}/ffn/linear_0/bias" in theirs for n in range(len(theirs)))


def _generation_config(told: Mapping[str, Any], special: Mapping[str, int]) -> Any:
    """Return the generation settings of OpenAI's own folders."""
    from transformers import GenerationConfig

    end = special[_END_OF_TEXT]
    return GenerationConfig(
        alignment_heads=told["alignment_heads"],
        begin_suppress_tokens=told["suppress_ids_begin"],
        suppress_tokens=told["suppress_ids"],
        decoder_start_token_id=special["<|startoftranscript|>"],
        eos_token_id=end,
        pad_token_id=end,
        bos_token_id=end,
        prev_sot_token_id=special["<|startofprev|>"],
        no_timestamps_token_id=special["<|notimestamps|>"],
        max_initial_timestamp_index=50,
        max_length=448,
        is_multilingual=False,
        return_timestamps=False,
    )


def _save_tokenizer(file: Path, special: Mapping[str, int], target: Path) -> None:
    from transformers import WhisperTokenizerFast

    tokenizer = WhisperTokenizerFast(tokenizer_file=str(file), pad_token=_END_OF_TEXT)
    # this class does not read from the file that the tokens are special; they would appear in transcripts
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(special, key=special.__getitem__)})
    if tokenizer.convert_tokens_to_ids(list(special)) != list(special.values()):
        raise ValueError(f"{file.name}: transformers gives its special tokens other ids")
    tokenizer.save_pretrained(target)


# --- the weights' names ---------------------------------------------------------------------------


def _renamed(theirs: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights under transformers' names."""
    for side in ("encoder", "decoder"):
        yield from _norm(theirs, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for layer in range(_layers(theirs, side)):
            yield from _layer(theirs, f"{side}/layer_{layer}", f"model.{side}.layers.{layer}")
    for name in ("conv1", "conv2"):
        yield from _linear(theirs, f"encoder/{name}", f"model.encoder.{name}")
    yield "model.encoder.embed_positions.weight", theirs["encoder/position_encodings/encodings"]
    yield "model.decoder.embed_positions.weight", theirs["decoder/position_encodings/encodings"]
    yield "model.decoder.embed_tokens.weight", theirs["decoder/embeddings/weight"]


def _layer(theirs: Mapping[str, torch.Tensor], prefix: str, target: str) -> Iterator[tuple[str, torch.Tensor]]:
    yield from _norm(theirs, f"{prefix}/self_attention/layer_norm", f"{target}.self_attn_layer_norm")
    yield from _norm(theirs, f"{prefix}/ffn/layer_norm", f"{target}.final_layer_norm")
    yield from _split(theirs, f"{prefix}/self_attention/linear_0", f"{target}.self_attn", "qkv")
    yield from _linear(theirs, f"{prefix}/self_attention/linear_1", f"{target}.self_attn.out_proj")
    for number in (1, 2):
        yield from _linear(theirs, f"{prefix}/ffn/linear_{number - 1}", f"{target}.fc{number}")
    if f"{prefix}/attention/linear_0/weight" in theirs:
        yield from _norm(theirs, f"{prefix}/attention/layer_norm", f"{target}.encoder_attn_layer_norm")
        yield from _linear(theirs, f"{prefix}/attention/linear_0", f"{target}.encoder_attn.q_proj")
        yield from _split(theirs, f"{prefix}/attention/linear_1", f"{target}.encoder_attn", "kv")
        yield from _linear(theirs, f"{prefix}/attention/linear_2", f"{target}.encoder_attn.out_proj")


def _norm(theirs: Mapping[str, torch.Tensor], prefix: str, target: str) -> Iterator[tuple[str, torch.Tensor]]:
    yield f"{target}.weight", theirs[f"{prefix}/gamma"]
    yield f"{target}.bias", theirs[f"{prefix}/beta"]


def _linear(theirs: Mapping[str, torch.Tensor], prefix: str, target: str) -> Iterator[tuple[str, torch.Tensor]]:
    for part in ("weight", "bias"):
        yield f"{target}.{part}", theirs[f"{prefix}/{part}"]


def _split(
    theirs: Mapping[str, torch.Tensor], prefix: str, target: str, parts: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parts of a fused matrix; keys have no bias (CTranslate2 stores zeros for it)."""
    weights, biases = (theirs[f"{prefix}/{name}"].chunk(len(parts)) for name in ("weight", "bias"))
    for part, weight, bias in zip(parts, weights, biases, strict=True):
        yield f"{target}.{part}_proj.weight", weight.clone()
        if part != "k":
            yield f"{target}.{part}_proj.bias", bias.clone()
