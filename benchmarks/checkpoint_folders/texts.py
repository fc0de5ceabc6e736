"""Checkpoints that read texts: classifiers, taggers, answers, masks, vectors, of encoders and decoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.checkpoint_folders import tokenizers
from benchmarks.checkpoint_folders.folders import LEAVE_OUT, Case, config, save

#: An architecture: its name in transformers, its tokenizer, and settings beside the small sizes.
Row = tuple[str, str, Mapping[str, Any]]

T5GEMMA = {"model_type": "t5_gemma_module", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
T5GEMMA |= {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8, "vocab_size": 1100}
T5GEMMA |= {"layer_types": ["full_attention"] * 2}

#: Architectures that classify texts.
CLASSIFIERS: tuple[Row, ...] = (
    ("bert", "Bert", {}),
    ("distilbert", "DistilBert", {}),
    ("roberta", "Roberta", {}),
    ("roberta-prelayernorm", "Roberta", {}),
    ("deberta", "Deberta", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    (
        "deberta-v2",
        "DebertaV2",
        {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 64, "share_att_key": True}
        | {"norm_rel_ebd": "layer_norm", "position_biased_input": False, "max_relative_positions": -1},
    ),
    ("albert", "Albert", {"embedding_size": 16}),
    ("electra", "Electra", {"embedding_size": 16}),
    ("mpnet", "MPNet", {}),
    ("xlm-roberta", "XLMRoberta", {}),
    ("xlm-roberta-xl", "XLMRoberta", {}),
    ("camembert", "Camembert", {}),
    ("modernbert", "Roberta", {"local_attention": 16, "num_hidden_layers": 3}),
    ("eurobert", "Roberta", {}),
    ("nomic_bert", "Bert", {}),
    ("gte", "XLMRoberta", {}),
    ("jina_embeddings_v3", "XLMRoberta", {}),
    ("big_bird", "BigBird", {"attention_type": "original_full"}),
    ("longformer", "Roberta", {"attention_window": 32}),
    ("funnel", "Funnel", {"block_sizes": [1, 1], "d_head": 8, "num_decoder_layers": 1}),
    ("squeezebert", "Bert", {}),
    ("layoutlm", "LayoutLM", {}),
    ("convbert", "Bert", {"conv_kernel_size": 3}),
    ("ernie", "Bert", {}),
    ("megatron-bert", "Bert", {}),
    (
        "mobilebert",
        "Bert",
        {"embedding_size": 16, "intra_bottleneck_size": 16, "num_attention_heads": 4, "num_feedforward_networks": 1}
        | {"true_hidden_size": 16, "normalization_type": "layer_norm"},
    ),
    ("nystromformer", "Albert", {"segment_means_seq_len": 64, "num_landmarks": 64, "conv_kernel_size": 3}),
    ("rembert", "RemBert", {"input_embedding_size": 16, "output_embedding_size": 24}),
    ("roformer", "Bert", {"embedding_size": 32}),
    ("data2vec-text", "Roberta", {}),
    ("ibert", "Roberta", {}),
    ("xmod", "XLMRoberta", {"default_language": "en_XX"}),
    ("yoso", "Roberta", {}),
    ("mra", "Roberta", {}),
    ("lilt", "Roberta", {"hidden_size": 48}),
    ("luke", "Roberta", {"entity_vocab_size": 8, "entity_emb_size": 8}),
    ("esm", "Bert", {"token_dropout": False}),
    (
        "roc_bert",
        "Bert",
        {"pronunciation_embed_dim": 8, "shape_embed_dim": 8, "pronunciation_vocab_size": 605}
        | {"shape_vocab_size": 605},
    ),
    (
        "perceiver",
        "Bert",
        {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 1}
        | {"num_self_attention_heads": 4, "num_cross_attention_heads": 4},
    ),
    ("xlnet", "XLNet", {"d_head": LEAVE_OUT}),
    ("fnet", "FNet", {}),
    ("flaubert", "Bert", {}),
    ("xlm", "Bert", {}),
    ("bart", "Bart", {}),
    ("mbart", "MBart50", {}),
    ("mvp", "Bart", {}),
    ("plbart", "Bart", {}),
    ("t5", "T5", {"decoder_start_token_id": 0}),
    ("mt5", "T5", {}),
    ("umt5", "T5", {}),
    ("t5gemma", "Gemma", {"encoder": T5GEMMA, "decoder": T5GEMMA | {"cross_attention_hidden_size": 32}}),
    ("llama", "Llama", {}),
    ("qwen2", "Qwen2", {}),
    ("qwen3", "Qwen2", {}),
    ("mistral", "Llama", {}),
    ("gemma", "Gemma", {}),
    ("gemma2", "Gemma", {"sliding_window": 16, "query_pre_attn_scalar": 8}),
    ("gemma3_text", "Gemma", {"sliding_window": 16, "query_pre_attn_scalar": 8}),
    ("gpt2", "GPT2", {}),
    ("gpt_neox", "GPTNeoX", {}),
    ("gpt_neo", "GPT2", {"attention_types": [[["global", "local"], 1]], "window_size": 16}),
    ("gptj", "GPT2", {"rotary_dim": 4}),
    ("gpt_bigcode", "GPT2", {}),
    ("opt", "Roberta", {}),
    ("bloom", "GPTNeoX", {}),
    ("falcon", "GPT2", {}),
    ("phi", "CodeGen", {}),
    ("phi3", "Llama", {"original_max_position_embeddings": 514}),
    ("smollm3", "GPT2", {}),
    ("stablelm", "GPTNeoX", {}),
    ("starcoder2", "GPT2", {}),
    ("olmo2", "GPT2", {}),
    ("helium", "Llama", {}),
    ("glm", "GPT2", {}),
    ("biogpt", "Roberta", {}),
    ("mpt", "GPTNeoX", {}),
    ("modernbert-decoder", "Roberta", {"local_attention": 16}),
    ("qwen3_moe", "Qwen2", {"decoder_sparse_step": 1}),
    ("mixtral", "Llama", {}),
    ("arcee", "Llama", {}),
    ("diffllama", "Llama", {}),
    ("doge", "Llama", {}),
    ("exaone4", "GPT2", {"sliding_window": 16}),
    ("jetmoe", "Llama", {"kv_channels": 8}),
    ("minicpm3", "Llama", {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}),
    ("ministral", "Llama", {}),
    ("ministral3", "Llama", {}),
    ("nemotron", "Llama", {}),
    ("olmo", "GPT2", {}),
    ("olmo3", "GPT2", {"sliding_window": 16}),
    ("openai-gpt", "GPT2", {}),
    ("persimmon", "Llama", {}),
    ("phimoe", "Llama", {}),
    ("qwen2_moe", "Qwen2", {"shared_expert_intermediate_size": 48}),
    ("seed_oss", "GPT2", {}),
    ("hunyuan_v1_dense", "Qwen2", {}),
    ("hunyuan_v1_moe", "Qwen2", {"num_experts": 2, "moe_topk": 1}),
    ("ctrl", "GPT2", {"dff": 48}),
    ("reformer", "Albert", {"attn_layers": ["local", "local"], "axial_pos_shape": [16, 32], "axial_pos_embds_dim": [16, 16]}),
    ("bigbird_pegasus", "T5", {"attention_type": "original_full"}),
    ("ultrabert", "Bert", {}),
    ("esmc", "Bert", {"num_key_value_heads": 4}),
    ("markuplm", "Roberta", {}),
    ("jamba", "Llama", {"mamba_d_state": 8, "mamba_dt_rank": 8, "attn_layer_offset": 1, "attn_layer_period": 2}),
    ("qwen3_next", "Qwen2", {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
                             "linear_num_value_heads": 4, "shared_expert_intermediate_size": 48}),
    ("gpt_oss", "GPT2", {"sliding_window": 16}),
    ("deepseek_v3", "Llama", {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
                              "v_head_dim": 16, "num_key_value_heads": 4, "head_dim": 8, "first_k_dense_replace": 2,
                              "n_group": 1, "topk_group": 1}),
)  # fmt: skip

#: Architectures that answer questions, and do not classify.
OTHER_ANSWERERS: tuple[Row, ...] = (
    ("led", "LED", {"attention_window": 16, "max_encoder_position_embeddings": 514,
                    "max_decoder_position_embeddings": 514}),
    ("splinter", "Bert", {}),
)  # fmt: skip

#: Architectures of other kinds; their settings are those of `CLASSIFIERS`.
TAGGERS = ("bert", "distilbert", "roberta", "electra", "deberta-v2", "xlm-roberta", "modernbert", "camembert", "albert",
           "big_bird", "mpnet", "qwen3", "gpt2", "xlnet", "t5", "layoutlm", "roformer", "deberta", "convbert", "rembert", "luke",
           "longformer", "funnel", "bloom", "llama", "gemma2", "nomic_bert", "eurobert", "esm", "markuplm", "ultrabert")  # fmt: skip
ANSWERERS = ("bert", "distilbert", "roberta", "electra", "deberta-v2", "mpnet", "longformer", "bart", "modernbert",
             "funnel", "albert", "xlm-roberta", "big_bird", "convbert", "rembert", "roformer", "luke", "xlnet", "t5", "llama",
             "qwen2", "gpt2", "fnet", "ultrabert")  # fmt: skip
FILLERS = ("bert", "distilbert", "roberta", "electra", "deberta-v2", "albert", "xlm-roberta", "mpnet", "modernbert",
           "camembert", "longformer", "bart", "squeezebert", "convbert", "rembert", "nomic_bert", "eurobert",
           "roformer", "fnet", "esm", "deberta", "big_bird", "funnel", "luke", "mobilebert", "perceiver", "reformer",
           "ultrabert", "xlm", "flaubert", "mbart", "data2vec-text")  # fmt: skip
EMBEDDERS = ("bert", "roberta", "modernbert", "mpnet", "xlm-roberta", "distilbert", "electra", "deberta-v2", "qwen3",
             "t5", "bart", "funnel", "nomic_bert", "gte", "llama", "fnet", "xlnet", "albert", "longformer", "big_bird",
             "camembert", "eurobert", "jina_embeddings_v3", "gemma3_text", "mistral", "gpt2", "ultrabert", "umt5",
             "t5gemma")  # fmt: skip

NLI = {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}
NLI |= {"label2id": {"contradiction": 0, "neutral": 1, "entailment": 2}}
_TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "I-LOC"}
_AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "zero-shot-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "fill-mask": "AutoModelForMaskedLM",
    "feature-extraction": "AutoModel",
}
_SHORT = {"text-classification": "cls", "token-classification": "ner", "question-answering": "qa", "fill-mask": "mlm",
          "feature-extraction": "vectors", "zero-shot-classification": "zero-shot"}  # fmt: skip


def make(folder: Path, *, row: Row, auto: str, tokenizer: Mapping[str, Any] | None = None, **own: Any) -> None:
    """Write an architecture's folder."""
    model_type, named, settings = row
    if (model_type, auto) == ("funnel", "AutoModel"):
        auto = "FunnelModel"  # the auto class knows two, and chooses by the folder
    numbers: dict[str, Any] = {"pad_token_id": None} | tokenizers.write(folder, named, **(tokenizer or {}))
    save(folder, auto, config(model_type, **known(model_type, numbers) | dict(settings) | own))


def known(model_type: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out numbers of tokens that a config has no place for: it would keep any name."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    fields = CONFIG_MAPPING[model_type].__dataclass_fields__
    return {name: number for name, number in numbers.items() if name in fields or name == "pad_token_id"}


def of(kind: str, row: Row, *, name: str = "", params: Mapping[str, Any] | None = None, **own: Any) -> Case:
    labels = {"num_labels": 3} if kind == "text-classification" else {}
    usual = {"top_k": None} if kind == "text-classification" else {}
    if kind == "feature-extraction":
        usual = {"normalize": False}
    if kind == "token-classification":
        labels, usual = {"id2label": _TAGS}, {"aggregation_strategy": "simple"}
    if kind == "zero-shot-classification":
        labels, usual = NLI, {"candidate_labels": ["sport", "a film", "the news"]}
    written = partial(make, row=row, auto=_AUTO[kind], **labels | own)
    return Case(name or f"{row[0]}-{_SHORT[kind]}", kind, written, usual | dict(params or {}))


def cases() -> Iterator[Case]:
    rows = {row[0]: row for row in CLASSIFIERS}
    yield from (of("text-classification", row) for row in CLASSIFIERS)
    for kind, names in (
        ("token-classification", TAGGERS),
        ("question-answering", ANSWERERS),
        ("fill-mask", FILLERS),
        ("feature-extraction", EMBEDDERS),
    ):
        yield from (of(kind, rows[name]) for name in names)
    yield from (of("question-answering", row) for row in OTHER_ANSWERERS)
    for name in ("bert", "roberta", "deberta-v2", "bart", "distilbert", "qwen3", "t5"):
        yield of("zero-shot-classification", rows[name])
    yield from _labelled(rows)
    yield from _saved(rows)


def _labelled(rows: Mapping[str, Row]) -> Iterator[Case]:
    """Classifiers with other labels and functions than one of several."""
    kind, bert = "text-classification", rows["bert"]
    yield of(kind, bert, name="bert-multi-label", problem_type="multi_label_classification")
    yield of(kind, bert, name="bert-regression", num_labels=1, problem_type="regression")
    yield of(kind, bert, name="bert-one-label", num_labels=1)
    yield of(kind, rows["llama"], name="llama-reward", num_labels=1, pad_token_id=None)
    yield of(kind, rows["gpt2"], name="gpt2-no-padding", pad_token_id=None)
    yield of("token-classification", rows["bert"], name="bert-cased-ner", tokenizer={"do_lower_case": False})
    bilou = dict(enumerate(("O", "B-PER", "I-PER", "L-PER", "U-PER")))
    yield of("token-classification", rows["electra"], name="electra-bilou-ner", id2label=bilou)
    two = {"id2label": {0: "not_entailment", 1: "entailment"}, "label2id": {"not_entailment": 0, "entailment": 1}}
    yield of("zero-shot-classification", rows["roberta"], name="roberta-nli-2-labels", **two)


def _saved(rows: Mapping[str, Row]) -> Iterator[Case]:
    """Folders that were saved in other ways."""
    yield Case("bert-fp16-cls", "text-classification", partial(saved_as, "float16"), {"top_k": None})
    yield Case("bert-bf16-cls", "text-classification", partial(saved_as, "bfloat16"), {"top_k": None})
    yield Case("bert-sharded-cls", "text-classification", partial(saved_as, "sharded"), {"top_k": None})
    yield Case("bert-pretraining-mlm", "fill-mask", partial(make, row=rows["bert"], auto="BertForPreTraining"))
    yield Case("bert-bin-only-cls", "text-classification", _as_pickle)
    yield Case("remote-code-cls", "text-classification", _remote_code)
    yield Case("canine-cls", "text-classification", _canine, {"top_k": None})
    yield Case("deberta-v3-spm-only-cls", "text-classification", partial(_sentencepiece, "deberta-v2"), {"top_k": None})
    yield Case("xlmr-spm-only-cls", "text-classification", partial(_sentencepiece, "xlm-roberta"), {"top_k": None})


def _classifier(folder: Path) -> Any:
    import transformers

    make(folder, row=CLASSIFIERS[0], auto=_AUTO["text-classification"], num_labels=3)
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder)


def saved_as(form: str, folder: Path) -> None:
    import torch

    network = _classifier(folder)
    (folder / "model.safetensors").unlink()
    if form == "sharded":
        network.save_pretrained(folder, max_shard_size="40KB")
    else:
        network.to(getattr(torch, form)).save_pretrained(folder)


def _as_pickle(folder: Path) -> None:
    import torch

    torch.save(_classifier(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _remote_code(folder: Path) -> None:
    import json

    _classifier(folder)
    file = folder / "config.json"
    own = {"model_type": "someones_own", "auto_map": {"AutoModelForSequenceClassification": "own_code.OwnModel"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    (folder / "own_code.py").write_text("raise SystemExit('this code is never run')\n")


def _canine(folder: Path) -> None:
    import transformers

    transformers.CanineTokenizer(model_max_length=256).save_pretrained(folder)
    settings = config("canine", num_labels=3, num_hash_buckets=64, local_transformer_stride=16)
    save(folder, _AUTO["text-classification"], settings)


def _sentencepiece(model_type: str, folder: Path) -> None:
    """Leave the folder with SentencePiece's own file in place of ``tokenizer.json``."""
    row = next(row for row in CLASSIFIERS if row[0] == model_type)
    make(folder, row=row, auto=_AUTO["text-classification"], num_labels=3, vocab_size=650)
    (folder / "tokenizer.json").unlink()
    if model_type == "deberta-v2":
        special = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
        special |= {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
        (folder / "spm.model").write_bytes(tokenizers.sentencepiece(**special))
    else:
        (folder / "sentencepiece.bpe.model").write_bytes(tokenizers.sentencepiece())
