"""Checkpoints that hear: letters by CTC, Whisper, and classifiers of sounds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.checkpoint_folders.folders import Case, config, save
from tests import tiny_checkpoints as tiny

_SPEECH, _SOUNDS = "automatic-speech-recognition", "audio-classification"

#: The feature extractor of tiny networks that read samples: 200 frames a second.
_WAVES = {
    name: value for name, value in tiny.WAVES.items() if name.startswith(("conv_", "num_", "mask_", "classifier"))
}
_WAVES |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 3}
_DATA2VEC = {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 7}
_SEW_D = {"max_position_embeddings": 64, "position_buckets": 16, "squeeze_factor": 2, "feature_layer_norm_eps": 1e-5}

#: Networks that read samples: a name, the architecture, and settings.
READERS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("wav2vec2", "wav2vec2", {"feat_extract_norm": "group"}),
    ("wav2vec2-layer", "wav2vec2", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    ("wav2vec2-adapter", "wav2vec2", {"feat_extract_norm": "layer", "add_adapter": True, "output_hidden_size": 32}),
    ("hubert", "hubert", {"feat_extract_norm": "group"}),
    ("hubert-layer", "hubert", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    ("wavlm", "wavlm", {"feat_extract_norm": "group"}),
    ("wavlm-layer", "wavlm", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    ("sew", "sew", {"feat_extract_norm": "group", "squeeze_factor": 2}),
    ("sew-d", "sew-d", {"feat_extract_norm": "group", **_SEW_D}),
    ("unispeech", "unispeech", {"feat_extract_norm": "group", "num_ctc_classes": 18}),
    ("unispeech-sat", "unispeech-sat", {"feat_extract_norm": "layer"}),
    ("data2vec-audio", "data2vec-audio", _DATA2VEC),
    ("wav2vec2-conformer", "wav2vec2-conformer", {"feat_extract_norm": "layer"}),
    ("wav2vec2-conformer-rotary", "wav2vec2-conformer",
     {"feat_extract_norm": "layer", "position_embeddings_type": "rotary"}),
)  # fmt: skip


def cases() -> Iterator[Case]:
    for name, model_type, settings in READERS:
        yield Case(f"{name}-ctc", _SPEECH, partial(_reader, model_type, "AutoModelForCTC", settings))
    for name, model_type, settings in [row for row in READERS if not row[2].get("add_adapter")]:
        classifies = partial(_reader, model_type, "AutoModelForAudioClassification", settings)
        yield Case(f"{name}-sounds", _SOUNDS, classifies)
    yield Case("wav2vec2-words-ctc", _SPEECH, partial(_reader, "wav2vec2", "AutoModelForCTC", READERS[0][2]),
               {"return_timestamps": "word"})  # fmt: skip
    yield Case("wav2vec2-processor-ctc", _SPEECH, _processor_only)
    yield Case("wavlm-xvector", _SOUNDS, partial(_reader, "wavlm", "WavLMForXVector", READERS[5][2]))
    yield Case("ast-sounds", _SOUNDS, partial(tiny.ast, num_labels=3))
    yield Case("whisper-sounds", _SOUNDS, partial(_whisper, head="WhisperForAudioClassification", num_labels=3))
    many = partial(_whisper, multilingual=True)
    yield Case("whisper-english", _SPEECH, _whisper)
    yield Case("whisper-segments", _SPEECH, _whisper, {"return_timestamps": True})
    yield Case("whisper-words", _SPEECH, _whisper, {"return_timestamps": "word"})
    yield Case("whisper-heard", _SPEECH, many)
    yield Case("whisper-french", _SPEECH, many, {"language": "french"})
    yield Case("whisper-translates", _SPEECH, many, {"language": "de", "task": "translate"})
    yield Case("whisper-told-language", _SPEECH, partial(_told, {"language": "<|de|>", "task": "translate"}))
    yield Case(
        "whisper-forced-ids", _SPEECH, partial(_told, {"forced_decoder_ids": [[1, "<|fr|>"], [2, "<|transcribe|>"]]})
    )
    yield Case("whisper-suppressed", _SPEECH, partial(_told, {"suppress_tokens": [*range(40, 90)]}))
    yield Case("clap-sounds", _SOUNDS, _clap)
    yield Case("moonshine-speech", _SPEECH, _moonshine)
    yield Case("speech2text-speech", _SPEECH, _speech_to_text)
    for name, auto, kind in (
        ("ctc", "AutoModelForCTC", _SPEECH),
        ("sounds", "AutoModelForAudioClassification", _SOUNDS),
    ):
        yield Case(f"wav2vec2-bert-{name}", kind, partial(_wav2vec2_bert, auto))


_LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"etaonihsrdlum'"]


def _spelling(folder: Path) -> Any:
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({letter: n for n, letter in enumerate(_LETTERS)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    tokenizer.save_pretrained(folder)
    return tokenizer


def _reader(model_type: str, auto: str, settings: Mapping[str, Any], folder: Path) -> None:
    import transformers

    _spelling(folder)
    labels = {} if auto == "AutoModelForCTC" else {"num_labels": 3}
    if auto.endswith("XVector"):
        labels |= {
            "tdnn_dim": [32, 32, 32],
            "tdnn_kernel": [5, 3, 1],
            "tdnn_dilation": [1, 2, 1],
            "xvector_output_dim": 16,
        }
    own = _WAVES | {"vocab_size": len(_LETTERS), "pad_token_id": 0, **labels} | dict(settings)
    save(folder, auto, config(model_type, **own))
    layer = own.get("feat_extract_norm") == "layer"
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=layer).save_pretrained(folder)


def _processor_only(folder: Path) -> None:
    import transformers

    _reader("wav2vec2", "AutoModelForCTC", READERS[0][2], folder)
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    (folder / "preprocessor_config.json").unlink()
    transformers.Wav2Vec2Processor(extractor, _spelling(folder)).save_pretrained(folder)


def _whisper(folder: Path, **settings: Any) -> None:
    tiny.whisper(folder, **settings)


def _told(told: Mapping[str, Any], folder: Path) -> None:
    """Write a multilingual Whisper whose generation config says more."""
    _whisper(folder, multilingual=True)
    file = folder / "generation_config.json"
    config_ = json.loads(file.read_text())
    numbers = {**config_["lang_to_id"], **{f"<|{name}|>": number for name, number in config_["task_to_id"].items()}}
    told = dict(told)
    if forced := told.get("forced_decoder_ids"):
        told["forced_decoder_ids"] = [[place, numbers[token]] for place, token in forced]
    file.write_text(json.dumps(config_ | told))


def _clap(folder: Path) -> None:
    import transformers

    audio = {"hidden_size": 32, "patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [2, 2],
             "num_hidden_layers": 2, "spec_size": 64, "num_mel_bins": 16}  # fmt: skip
    text = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 99,
    }
    save(folder, "ClapModel", config("clap", audio_config=audio, text_config=text, projection_dim=16))
    transformers.ClapFeatureExtractor().save_pretrained(folder)


def _moonshine(folder: Path) -> None:
    import transformers

    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in
             (("num_hidden_layers", 1), ("num_attention_heads", 4), ("num_key_value_heads", 4))}  # fmt: skip
    save(folder, "MoonshineForConditionalGeneration", config("moonshine", vocab_size=99, **sizes))
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)


def _speech_to_text(folder: Path) -> None:
    own = {"vocab_size": 99, "max_source_positions": 400, "max_target_positions": 64, "input_feat_per_channel": 16}
    save(folder, "Speech2TextForConditionalGeneration", config("speech_to_text", **own))
    told = {"feature_extractor_type": "Speech2TextFeatureExtractor", "feature_size": 16, "num_mel_bins": 16}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))


def _wav2vec2_bert(auto: str, folder: Path) -> None:
    import transformers

    _spelling(folder)
    own = {"vocab_size": len(_LETTERS), "feature_projection_input_dim": 32, "conv_depthwise_kernel_size": 3}
    save(folder, auto, config("wav2vec2-bert", **own))
    transformers.SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16).save_pretrained(folder)
