"""Tiny Hugging Face checkpoints of real architectures, random weights, made where they are wanted: there is no hub
here.

Each function writes one folder as transformers' own `save_pretrained` does and returns it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "a",
    "an",
    "in",
    "of",
    "to",
    "and",
    "or",
    "not",
    "is",
    "was",
    "are",
    "it",
    "this",
    "that",
    "she",
    "he",
    "they",
    "who",
    "where",
    "when",
    "what",
    "sport",
    "business",
    "politics",
    "film",
    "good",
    "bad",
    "fine",
    "dull",
    "moving",
    "shares",
    "fell",
    "cup",
    "final",
    "won",
    "lost",
    "team",
    "bank",
    "profit",
    "example",
    "about",
    "paris",
    "berlin",
    "london",
    "angela",
    "merkel",
    "apple",
    "works",
    "lives",
    "at",
    "for",
    "new",
    "year",
    "old",
    "young",
    "man",
    "woman",
    "said",
    "he",
    "she",
    "told",
    "us",
    "yesterday",
    "!",
    "?",
    ".",
    ",",
    "'",
    "-",
]

#: The parts of words that are not in `WORDS`: letters, and letters that go on.
_LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789")]

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


def wordpiece(folder: Path, *, max_tokens: int = 64) -> int:
    """Write a BERT tokenizer; return the size of its vocabulary."""
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys([*WORDS, *_LETTERS])]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=max_tokens)
    tokenizer.save_pretrained(folder)
    return len(words)


def byte_level(folder: Path, *, max_tokens: int = 128) -> int:
    """Write a RoBERTa tokenizer, byte-level BPE without words longer than a byte or two."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet])}
    vocabulary |= {"Ġt": len(vocabulary), "he": len(vocabulary) + 1}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "t"), ("h", "e")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=max_tokens,
    ).save_pretrained(folder)
    return len(vocabulary)


def bert(folder: Path, head: str = "BertForSequenceClassification", *, seed: int = 0, **config: Any) -> Path:
    """Write a BERT with the head of that class of transformers, and its tokenizer."""
    import torch
    import transformers

    vocabulary = wordpiece(folder)
    torch.manual_seed(seed)
    chosen = transformers.BertConfig(vocab_size=vocabulary, **(_SIZES | config))
    _spread(getattr(transformers, head)(chosen)).save_pretrained(folder)
    return folder


def distilbert(folder: Path, head: str, **config: Any) -> Path:
    """Write a DistilBERT, which knows no token types."""
    import torch
    import transformers

    vocabulary = wordpiece(folder)
    torch.manual_seed(1)
    chosen = transformers.DistilBertConfig(
        vocab_size=vocabulary, dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=64, **config
    )
    _spread(getattr(transformers, head)(chosen)).save_pretrained(folder)
    return folder


def roberta(folder: Path, head: str, **config: Any) -> Path:
    """Write a RoBERTa: byte-level tokens, positions that begin after the padding's number."""
    import torch
    import transformers

    vocabulary = byte_level(folder)
    torch.manual_seed(2)
    sizes = _SIZES | {"max_position_embeddings": 130}
    chosen = transformers.RobertaConfig(
        vocab_size=vocabulary, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2, **sizes, **config
    )
    _spread(getattr(transformers, head)(chosen)).save_pretrained(folder)
    return folder


def bart(folder: Path, head: str, **config: Any) -> Path:
    """Write a BART, an encoder with a decoder behind it."""
    import torch
    import transformers

    vocabulary = byte_level(folder)
    torch.manual_seed(3)
    chosen = transformers.BartConfig(
        vocab_size=vocabulary,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=128,
        **config,
    )
    _spread(getattr(transformers, head)(chosen)).save_pretrained(folder)
    return folder


#: As chat models have it: each turn between marks, and the answer after the last one.
CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] + '\\n' + message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\\n{% endif %}"
)


def llama(folder: Path, *, template: str | None = CHAT_TEMPLATE, **config: Any) -> Path:
    """Write a Llama that chats: four query heads on two of keys and values, byte-level tokens, a chat template."""
    import torch
    import transformers
    from tokenizers import Tokenizer

    vocabulary = byte_level(folder, max_tokens=256)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = None  # a prompt does not end where it is to be continued
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=256
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    torch.manual_seed(7)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    chosen = transformers.LlamaConfig(
        vocab_size=vocabulary, bos_token_id=0, pad_token_id=1, eos_token_id=2, **sizes, **config
    )
    _spread(transformers.LlamaForCausalLM(chosen)).save_pretrained(folder)
    return folder


def t5(folder: Path) -> Path:
    """Write a T5, whose tokens are whole words and begin with a mark where there was a space."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    words = ["<pad>", "</s>", "<unk>", *(f"\u2581{word}" for word in dict.fromkeys(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("$0 </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    fast.save_pretrained(folder)
    torch.manual_seed(6)
    config = T5Config(
        vocab_size=len(words), d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    _spread(T5ForConditionalGeneration(config)).save_pretrained(folder)
    return folder


def vision(folder: Path, name: str, processor: str, *, settings: dict[str, Any] | None = None, **config: Any) -> Path:
    """Write an image model of that class of transformers, with an image processor of that class."""
    import torch
    import transformers

    torch.manual_seed(4)
    network = getattr(transformers, name)
    _spread(network(network.config_class(**config))).save_pretrained(folder)
    getattr(transformers, processor)(**(settings or {})).save_pretrained(folder)
    return folder


#: A vision transformer of 16 patches.
VIT: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VIT |= {"image_size": 32, "patch_size": 8}
SMALL = {"size": {"height": 32, "width": 32}}


def vit(folder: Path, name: str = "ViTForImageClassification", **config: Any) -> Path:
    """Write a ViT for images of 32 x 32."""
    return vision(folder, name, "ViTImageProcessorPil", settings=SMALL, **VIT, **config)


def convnext(folder: Path, name: str = "ConvNextForImageClassification", **config: Any) -> Path:
    """Write a ConvNeXt, whose processor scales and then crops."""
    sizes = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}
    settings = {"size": {"shortest_edge": 48}, "crop_pct": 0.875}
    return vision(folder, name, "ConvNextImageProcessorPil", settings=settings, **sizes, **config)


def yolos(folder: Path, **config: Any) -> Path:
    """Write a YOLOS, which has no mask for padding, so that images of different shapes must not be padded together."""
    sizes = VIT | {"image_size": [48, 64], "num_detection_tokens": 6}
    settings = {"size": {"shortest_edge": 48, "longest_edge": 96}}
    return vision(folder, "YolosForObjectDetection", "YolosImageProcessorPil", settings=settings, **sizes, **config)


#: A video transformer of eight frames of 32 x 32.
VIDEO: dict[str, Any] = VIT | {"num_frames": 8}


def videomae(folder: Path, name: str = "VideoMAEForVideoClassification", **config: Any) -> Path:
    """Write a VideoMAE, which looks at pairs of frames."""
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    sizes = VIDEO | {"tubelet_size": 2}
    return vision(folder, name, "VideoMAEImageProcessorPil", settings=settings, **sizes, **config)


def timesformer(folder: Path, **config: Any) -> Path:
    """Write a TimeSformer."""
    settings = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    name = "TimesformerForVideoClassification"
    return vision(folder, name, "VideoMAEImageProcessorPil", settings=settings, **VIDEO, **config)


def vivit(folder: Path, **config: Any) -> Path:
    """Write a ViViT, whose processor takes one off between scaling and mean."""
    settings = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    sizes = {name: value for name, value in VIDEO.items() if name != "patch_size"} | {"tubelet_size": [2, 8, 8]}
    return vision(folder, "VivitForVideoClassification", "VivitImageProcessor", settings=settings, **sizes, **config)


def detr(folder: Path, name: str = "DetrForObjectDetection", **config: Any) -> Path:
    """Write a DETR on a small ResNet."""
    from transformers import ResNetConfig

    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
        layer_type="basic",
    )
    sizes = {
        "backbone_config": backbone,
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "num_queries": 6,
    }
    settings = {"size": {"shortest_edge": 64, "longest_edge": 128}}
    return vision(folder, name, "DetrImageProcessorPil", settings=settings, **sizes | config)


def segformer(folder: Path, **config: Any) -> Path:
    """Write a SegFormer."""
    sizes = {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 16,
    }
    settings = {"size": {"height": 64, "width": 64}}
    return vision(
        folder, "SegformerForSemanticSegmentation", "SegformerImageProcessorPil", settings=settings, **sizes, **config
    )


def whisper(
    folder: Path,
    head: str = "WhisperForConditionalGeneration",
    *,
    multilingual: bool = False,
    times: float = 0.3,
    **config: Any,
) -> Path:
    """Write a Whisper whose windows have 2 s, with letters for words; `times` is how gladly it writes timestamps."""
    import torch
    import transformers
    from tokenizers import pre_tokenizers

    letters = {letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    languages = ("<|en|>", "<|fr|>", "<|de|>")
    marks = ("<|endoftext|>", "<|startoftranscript|>", *languages, "<|translate|>", "<|transcribe|>")
    marks += ("<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
    tokenizer = transformers.WhisperTokenizerFast(vocab=letters | {marks[0]: len(letters)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks[1:])})
    tokenizer.save_pretrained(folder)
    number = dict(zip(marks, tokenizer.convert_tokens_to_ids(list(marks)), strict=True))
    first_time = number["<|notimestamps|>"] + 1
    ends = dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), number["<|endoftext|>"])
    ends["decoder_start_token_id"] = number["<|startoftranscript|>"]
    sizes: dict[str, Any] = {
        "d_model": 32,
        "max_source_positions": 100,
        "max_target_positions": 64,
        "median_filter_width": 7,
    }
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 2, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 48}
    torch.manual_seed(8)
    chosen = transformers.WhisperConfig(vocab_size=first_time + 101, num_mel_bins=8, **sizes, **ends, **config)
    network = _spread(getattr(transformers, head)(chosen))
    if head == "WhisperForConditionalGeneration":
        with torch.no_grad():
            network.proj_out.weight[first_time:] *= times
            for name, weights in network.named_parameters():
                if "encoder_attn" in name and weights.dim() > 1:  # it should listen to what is said
                    weights.mul_(8)
        told: dict[str, Any] = {"no_timestamps_token_id": first_time - 1, "max_initial_timestamp_index": 50}
        told |= {
            "suppress_tokens": [1, 2],
            "begin_suppress_tokens": [3, ends["eos_token_id"]],
            "alignment_heads": [[0, 1], [1, 0]],
        }
        if multilingual:
            told["lang_to_id"] = {language: number[language] for language in languages}
            told["task_to_id"] = {task: number[f"<|{task}|>"] for task in ("translate", "transcribe")}
            told["forced_decoder_ids"] = [[1, None], [2, number["<|transcribe|>"]]]
        network.generation_config = transformers.GenerationConfig(
            is_multilingual=multilingual, max_length=64, **ends, **told
        )
    network.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=2).save_pretrained(folder)
    return folder


#: Three convolutions, 200 frames a second of sound at 16 kHz.
WAVES: dict[str, Any] = {
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 4, 4),
    "num_feat_extract_layers": 3,
}
WAVES |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
WAVES |= {
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "classifier_proj_size": 16,
}


def wav2vec2(folder: Path, name: str = "Wav2Vec2ForCTC", *, norm: str = "group", **config: Any) -> Path:
    """Write a Wav2Vec2, or one of its kin, that spells: with `norm` "layer" its extractor has a mask for padding."""
    import json

    import torch
    import transformers

    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"etaonihsrdlum'"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({letter: n for n, letter in enumerate(letters)}), encoding="utf-8")
    transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    torch.manual_seed(9)
    network = getattr(transformers, name)
    chosen = network.config_class(vocab_size=len(letters), feat_extract_norm=norm, pad_token_id=0, **WAVES, **config)
    _spread(network(chosen)).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(folder)
    return folder


def ast(folder: Path, name: str = "ASTForAudioClassification", **config: Any) -> Path:
    """Write an Audio Spectrogram Transformer that hears one second."""
    import torch
    import transformers

    torch.manual_seed(10)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    chosen = transformers.ASTConfig(max_length=100, num_mel_bins=32, patch_size=16, **sizes, **config)
    _spread(getattr(transformers, name)(chosen)).save_pretrained(folder)
    transformers.ASTFeatureExtractor(max_length=100, num_mel_bins=32).save_pretrained(folder)
    return folder


def _spread(network: Any) -> Any:
    """Make random weights larger: with transformers' own, all labels would score nearly the same."""
    import torch

    with torch.no_grad():
        for name, weights in network.named_parameters():
            if weights.dim() > 1 and "embedding" not in name:
                weights.mul_(20 if "encoder" not in name else 6)
    return network.eval()
