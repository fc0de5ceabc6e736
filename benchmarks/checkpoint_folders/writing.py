"""Checkpoints that write: decoders that go on from a prompt, and networks from text to text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.checkpoint_folders import texts, tokenizers
from benchmarks.checkpoint_folders.folders import Case, config, save
from benchmarks.checkpoint_folders.texts import Row

_MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
_MLA |= {"num_key_value_heads": 4, "head_dim": 8}
_LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
_FULL = {"layer_types": ["full_attention", "full_attention"]}

DECODERS: tuple[Row, ...] = (
    ("gpt2", "GPT2", {}),
    ("opt", "Roberta", {}),
    ("gpt_neox", "GPTNeoX", {}),
    ("llama", "Llama", {}),
    ("mistral", "Llama", {"sliding_window": None}),
    ("mixtral", "Llama", {}),
    ("qwen2", "Qwen2", {}),
    ("qwen3", "Qwen2", {}),
    ("qwen3_moe", "Qwen2", {"decoder_sparse_step": 1}),
    ("qwen2_moe", "Qwen2", {"shared_expert_intermediate_size": 48}),
    ("gemma", "Gemma", {}),
    ("phi", "CodeGen", {"partial_rotary_factor": 0.5}),
    ("phi3", "Llama", {"original_max_position_embeddings": 514}),
    ("stablelm", "GPTNeoX", {}),
    ("olmo", "GPT2", {}),
    ("olmo2", "GPT2", {}),
    ("olmoe", "GPT2", {}),
    ("granite", "GPT2", {"attention_multiplier": 0.35}),
    ("granitemoe", "GPT2", {"attention_multiplier": 0.35}),
    ("cohere", "GPT2", {}),
    ("starcoder2", "GPT2", {"sliding_window": None}),
    ("smollm3", "GPT2", {}),
    ("helium", "Llama", {}),
    ("glm", "GPT2", {}),
    ("glm4", "GPT2", {}),
    ("ernie4_5", "Llama", {}),
    ("arcee", "Llama", {}),
    ("apertus", "Llama", {}),
    ("nemotron", "Llama", {}),
    ("persimmon", "Llama", {}),
    ("seed_oss", "GPT2", {}),
    ("hunyuan_v1_dense", "Qwen2", {}),
    ("dots1", "Qwen2", {"n_shared_experts": 1, "first_k_dense_replace": 1}),
    ("nanochat", "GPT2", {}),
    ("exaone4", "GPT2", {"sliding_window": None, **_FULL}),
    ("codegen", "CodeGen", {"rotary_dim": 4}),
    ("biogpt", "Roberta", {}),
    ("gpt_bigcode", "GPT2", {}),
    ("gptj", "GPT2", {"rotary_dim": 4}),
    ("gpt_neo", "GPT2", {"attention_types": [[["global", "local"], 1]], "window_size": 16}),
    ("falcon", "GPT2", {}),
    ("bloom", "GPTNeoX", {}),
    ("mpt", "GPTNeoX", {}),
    ("deepseek_v2", "Llama", _MLA | {"first_k_dense_replace": 2, "n_group": 1, "topk_group": 1}),
    ("deepseek_v3", "Llama", _MLA | {"first_k_dense_replace": 2, "n_group": 1, "topk_group": 1}),
    ("gemma2", "Gemma", {"sliding_window": 16, "query_pre_attn_scalar": 8}),
    ("gemma3_text", "Gemma", {"sliding_window": 16, "query_pre_attn_scalar": 8}),
    ("cohere2", "GPT2", {"sliding_window": 16}),
    ("olmo3", "GPT2", {"sliding_window": 16}),
    ("gpt_oss", "GPT2", {"sliding_window": 16}),
    ("qwen3_next", "Qwen2", _LINEAR | {"shared_expert_intermediate_size": 48}),
    ("qwen3_5_text", "Qwen2", _LINEAR),
    ("lfm2", "Llama", {}),
    ("mamba", "GPTNeoX", {"state_size": 8}),
    ("mamba2", "GPTNeoX", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
    ("falcon_mamba", "GPTNeoX", {"state_size": 8}),
    ("recurrent_gemma", "Gemma", {"num_hidden_layers": 3, "attention_window_size": 16}),
    ("rwkv", "GPTNeoX", {}),
    ("xlnet", "XLNet", {}),
    ("bert", "Bert", {"is_decoder": True}),
    ("roberta", "Roberta", {"is_decoder": True}),
    ("electra", "Electra", {"is_decoder": True, "embedding_size": 16}),
    ("rembert", "RemBert", {"is_decoder": True, "input_embedding_size": 16, "output_embedding_size": 24}),
    ("roformer", "Bert", {"is_decoder": True, "embedding_size": 32}),
    ("bert-generation", "Bert", {"is_decoder": True}),
    ("big_bird", "BigBird", {"is_decoder": True, "attention_type": "original_full"}),
    ("bart", "Bart", {"is_decoder": True, "is_encoder_decoder": False}),
    ("xglm", "XLMRoberta", {"attention_heads": 4}),
    ("openai-gpt", "GPT2", {}),
    ("ctrl", "GPT2", {"dff": 48}),
    ("gpt_neox_japanese", "GPTNeoX", {}),
    ("diffllama", "Llama", {}),
    ("doge", "Llama", {}),
    ("jetmoe", "Llama", {"kv_channels": 8}),
    ("jamba", "Llama", {"mamba_d_state": 8, "mamba_dt_rank": 8, "attn_layer_offset": 1, "attn_layer_period": 2}),
    ("bamba", "Llama", {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1,
                        "attn_layer_indices": [1]}),
    ("minicpm3", "Llama", _MLA),
    ("ministral", "Llama", {"sliding_window": 16}),
    ("ministral3", "Llama", {}),
    ("phimoe", "Llama", {}),
    ("bitnet", "Llama", {}),
    ("cwm", "Llama", {"sliding_window": 16}),
    ("ernie4_5_moe", "Llama", {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1}),
    ("flex_olmo", "GPT2", {}),
    ("granitemoeshared", "GPT2", {"attention_multiplier": 0.35, "shared_intermediate_size": 48}),
    ("hunyuan_v1_moe", "Qwen2", {"num_experts": 2, "moe_topk": 1}),
    ("internlm3", "Llama", {}),
    ("jais2", "GPT2", {}),
    ("vaultgemma", "Gemma", {"sliding_window": 16, "query_pre_attn_scalar": 8}),
    ("glm4_moe", "GPT2", {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}),
    ("hyperclovax", "GPT2", {}),
    ("iquestcoder", "Llama", {}),
    ("youtu", "Llama", _MLA),
    ("solar_open", "Llama", {"n_group": 1, "topk_group": 1}),
    ("minimax", "GPT2", {}),
    ("minimax_m2", "GPT2", {}),
    ("mellum", "GPT2", {}),
    ("kolibri1", "GPT2", {}),
    ("laguna", "GPT2", {}),
    ("axk1", "Llama", _MLA),
    ("exaone_moe", "GPT2", {}),
    ("nemotron_h", "Llama", {}),
    ("falcon_h1", "Llama", {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1,
                            "mamba_d_ssm": 64}),
    ("xlstm", "GPTNeoX", {}),
    ("llama4_text", "Llama", {"intermediate_size_mlp": 48}),
    ("reformer", "Albert", {"is_decoder": True, "attn_layers": ["local", "local"], "axial_pos_shape": [16, 32],
                            "axial_pos_embds_dim": [16, 16]}),
)  # fmt: skip

#: Decoders with other settings than their own.
VARIANTS: tuple[tuple[str, Row], ...] = (
    ("llama-tied", ("llama", "Llama", {"tie_word_embeddings": True})),
    ("llama3-rope", ("llama", "GPT2", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
     "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}})),
    ("llama-linear-rope", ("llama", "Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}})),
    ("mistral-window", ("mistral", "Llama", {"sliding_window": 300})),
    ("qwen2-tied", ("qwen2", "Qwen2", {"tie_word_embeddings": True})),
    ("gpt2-scaled-attention", ("gpt2", "GPT2", {"scale_attn_by_inverse_layer_idx": True})),
)  # fmt: skip

TEXT_TO_TEXT: tuple[Row, ...] = (
    ("t5", "T5", {}),
    ("mt5", "T5", {}),
    ("umt5", "T5", {}),
    ("switch_transformers", "T5", {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_experts": 2}),
    ("longt5", "T5", {"encoder_attention_type": "local", "local_radius": 8}),
    ("bart", "Bart", {}),
    ("mbart", "MBart50", {}),
    ("pegasus", "T5", {}),
    ("pegasus_x", "T5", {"block_size": 8, "num_global_tokens": 4}),
    ("led", "LED", {"attention_window": 16, "max_encoder_position_embeddings": 514,
                    "max_decoder_position_embeddings": 514}),
    ("blenderbot", "Blenderbot", {}),
    ("blenderbot-small", "Bart", {}),
    ("mvp", "Bart", {}),
    ("plbart", "Bart", {}),
    ("bigbird_pegasus", "T5", {"attention_type": "original_full"}),
    ("t5gemma", "Gemma", {"encoder": texts.T5GEMMA, "decoder": texts.T5GEMMA | {"cross_attention_hidden_size": 32}}),
    ("prophetnet", "Bert", {"num_encoder_layers": 2, "num_encoder_attention_heads": 4,
                            "num_decoder_attention_heads": 4, "disable_ngram_loss": True}),
    ("nllb-moe", "Nllb", {"num_experts": 2, "expert_capacity": 64, "encoder_sparse_step": 2, "decoder_sparse_step": 2}),
)  # fmt: skip

#: Random networks repeat themselves; this brings variety.
VARIED = {"max_new_tokens": 16, "no_repeat_ngram_size": 2}


#: Settings of a checkpoint's generation, by which its answers differ from the likeliest tokens.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "penalty": {"repetition_penalty": 1.3},
    "no-repeat": {"no_repeat_ngram_size": 2},
    "suppressed": {"suppress_tokens": [*range(40, 90)]},
    "bad-words": {"bad_words_ids": [[n] for n in range(40, 90)]},
    "forced-end": {"forced_eos_token_id": 2},
    "shortest": {"min_length": 40},
    "several-ends": {"eos_token_id": [2, *range(40, 60)]},
    "sampled": {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.8},
}


def cases() -> Iterator[Case]:
    for name, settings in SETTINGS.items():
        written = partial(_decoder_told, settings)
        yield Case(f"llama-{name}-writes", "text-generation", written, {"max_new_tokens": 12})
        if name != "several-ends":
            told = partial(text_to_text, TEXT_TO_TEXT[5], settings)
            yield Case(f"bart-{name}-text", "text2text-generation", told, {"max_new_tokens": 16})
    for row in DECODERS:
        yield Case(f"{row[0]}-writes", "text-generation", partial(_decoder, row), {"max_new_tokens": 12})
    for name, row in VARIANTS:
        yield Case(f"{name}-writes", "text-generation", partial(_decoder, row), {"max_new_tokens": 12})
    for row in TEXT_TO_TEXT:
        yield Case(f"{row[0]}-text", "text2text-generation", partial(text_to_text, row, {}), VARIED)
    gated = ("t5", "T5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False})
    yield Case("t5-gated-text", "summarization", partial(text_to_text, gated, {}), VARIED)
    beams = {"num_beams": 4, "no_repeat_ngram_size": 3, "length_penalty": 2.0, "max_new_tokens": 16}
    yield Case("bart-beams-text", "summarization", partial(text_to_text, TEXT_TO_TEXT[5], beams))
    stated = {"max_length": 20, "no_repeat_ngram_size": 2}
    yield Case("bart-stated-length-text", "summarization", partial(text_to_text, TEXT_TO_TEXT[5], stated))
    yield Case("bert2bert-text", "summarization", _bert2bert, VARIED)
    languages = {"src_lang": "fr_XX", "tgt_lang": "de_DE"}
    yield Case("mbart50-translates", "translation", partial(text_to_text, TEXT_TO_TEXT[6], {}), VARIED | languages)
    nllb = ("m2m_100", "Nllb", {})
    flores = {"src_lang": "fra_Latn", "tgt_lang": "deu_Latn"}
    yield Case("nllb-translates", "translation", partial(text_to_text, nllb, {}), VARIED | flores)
    yield Case("marian-translates", "translation", _marian, VARIED)
    yield Case("m2m100-translates", "translation", _m2m100, VARIED | {"src_lang": "__fr__", "tgt_lang": "__de__"})


def _decoder(row: Row, folder: Path) -> None:
    texts.make(folder, row=row, auto="AutoModelForCausalLM")


def _decoder_told(settings: Mapping[str, Any], folder: Path) -> None:
    texts.make(folder, row=("llama", "GPT2", {}), auto="AutoModelForCausalLM")
    _generate_as(folder, settings)


def text_to_text(row: Row, generation: Mapping[str, Any], folder: Path) -> None:
    numbers: dict[str, Any] = dict(tokenizers.write(folder, row[1]))
    start = {"decoder_start_token_id": numbers.get("eos_token_id" if "bart" in row[0] else "pad_token_id", 0)}
    settings = config(row[0], **(texts.known(row[0], numbers | start) | dict(row[2])))
    settings.decoder_start_token_id = start["decoder_start_token_id"]
    save(folder, "AutoModelForSeq2SeqLM", settings)
    _generate_as(folder, generation)


def _generate_as(folder: Path, generation: Mapping[str, Any]) -> None:
    from transformers import GenerationConfig

    if generation:
        found = GenerationConfig.from_pretrained(folder)
        found.update(**generation)
        found.save_pretrained(folder)


def _bert2bert(folder: Path) -> None:
    import transformers

    numbers = tokenizers.write(folder, "Bert")
    own = {"vocab_size": numbers["vocab_size"]}
    sides = (config("bert", **own), config("bert", is_decoder=True, add_cross_attention=True, **own))
    settings = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*sides)
    settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id = 2, 3, 0
    save(folder, "EncoderDecoderModel", settings)


def _marian(folder: Path) -> None:
    import json

    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    pieces: list[str] = []
    for name, vocabulary in (("source.spm", 500), ("target.spm", 450)):
        trained = tokenizers.sentencepiece(vocab_size=vocabulary)
        (folder / name).write_bytes(trained)
        pieces += tokenizers.pieces(trained)
    order = ["</s>", "<unk>", *sorted(set(pieces) - {"<s>", "</s>", "<unk>"}), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(order)}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"source_lang": "en", "target_lang": "fr", "tokenizer_class": "MarianTokenizer"})
    )
    tokenizer = transformers.MarianTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pad = len(order) - 1
    settings = config("marian", vocab_size=len(order), pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad,
                      forced_eos_token_id=0, static_position_embeddings=True)  # fmt: skip
    save(folder, "MarianMTModel", settings)
    _generate_as(folder, {"bad_words_ids": [[pad]], "max_length": 512})


def _m2m100(folder: Path) -> None:
    import json

    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    trained = tokenizers.sentencepiece(model_type="bpe")
    (folder / "sentencepiece.bpe.model").write_bytes(trained)
    order = ["<s>", "<pad>", "</s>", "<unk>", *sorted(set(tokenizers.pieces(trained)) - {"<s>", "</s>", "<unk>"})]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(order)}))
    tokenizer = transformers.M2M100Tokenizer(
        str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model"), src_lang="en", model_max_length=512
    )
    tokenizer.save_pretrained(folder)
    languages = list(tokenizer.lang_token_to_id)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    file = folder / "special_tokens_map.json"  # as the hub's folders name the languages
    file.write_text(json.dumps(special | {"additional_special_tokens": languages}))
    settings = config("m2m_100", vocab_size=len(order) + len(languages) + 8, decoder_start_token_id=2)
    save(folder, "M2M100ForConditionalGeneration", settings)
