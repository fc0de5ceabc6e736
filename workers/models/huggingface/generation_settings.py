"""A checkpoint's own settings of generation, in ``generation_config.json``, or without that file in ``config.json``.

Some of them choose another token than the likeliest. Settings that our decoders do not obey are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from producers.wire.errors import ConfigurationError
from workers.models.huggingface.checkpoint import Checkpoint

FILE = "generation_config.json"

#: Settings that choose another token than the likeliest, with the value at which they do not.
_NEUTRAL: Mapping[str, Any] = {
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
    **dict.fromkeys(("num_beams", "num_beam_groups", "encoder_repetition_penalty", "guidance_scale"), 1),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"), ()),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), None),
    **dict.fromkeys(("stop_strings", "watermarking_config", "dola_layers"), None),
    **dict.fromkeys(("force_words_ids", "constraints"), None),
    **dict.fromkeys(("token_healing", "return_timestamps"), False),
    "repetition_penalty": 1,
    "penalty_alpha": 0,
}


def read(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return the settings, as transformers finds them."""
    return checkpoint.read(FILE) if (checkpoint.folder / FILE).is_file() else checkpoint.config


def check(checkpoint: Checkpoint, *, obeyed: Collection[str]) -> None:
    """Raise ConfigurationError if a setting changes greedy answers and is not among the `obeyed` ones."""
    settings = read(checkpoint)
    for name, neutral in _NEUTRAL.items():
        value = settings.get(name)
        value = tuple(value) if isinstance(value, list) else value
        if name not in obeyed and value is not None and value != neutral:
            problem = f"the checkpoint sets {name} = {str(settings[name])[:40]}, which is not served"
            remedy = f"remove it from {FILE} (without that file, from config.json)"
            raise ConfigurationError(f"{checkpoint.where}: {problem}; {remedy}")
