"""Checkpoints that see: classifiers, vectors, detectors and segmenters of images, and networks for videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.checkpoint_folders import tokenizers
from benchmarks.checkpoint_folders.folders import Case, config, save

#: An architecture: its name, its image processor, the processor's settings, and settings of its config.
Row = tuple[str, str, Mapping[str, Any], Mapping[str, Any]]

_SQUARE = {"size": {"height": 32, "width": 32}}
_CROPPED = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
_LARGER = {"size": {"height": 64, "width": 64}}
_EDGE = {"size": {"shortest_edge": 64, "longest_edge": 128}}
_PATCHES = {"image_size": 32, "patch_size": 8}
_SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
_STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
_PYRAMID = _STAGES | {"num_attention_heads": [1, 1, 2, 2]}

CLASSIFIERS: tuple[Row, ...] = (
    ("vit", "ViT", _SQUARE, _PATCHES),
    ("deit", "DeiT", _CROPPED | {"size": {"height": 40, "width": 40}}, _PATCHES),
    ("beit", "Beit", _SQUARE, _PATCHES | {"use_relative_position_bias": True}),
    ("swin", "ViT", _SQUARE, _SWIN),
    ("swinv2", "ViT", _SQUARE, _SWIN),
    ("convnext", "ConvNext", {"size": {"shortest_edge": 48}, "crop_pct": 0.875}, _STAGES | {"layer_scale_init_value": 1.0}),
    ("convnextv2", "ConvNext", {"size": {"shortest_edge": 384}}, _STAGES),
    ("resnet", "ConvNext", {"size": {"shortest_edge": 48}, "crop_pct": 0.875}, _STAGES | {"embedding_size": 8}),
    ("regnet", "ConvNext", {"size": {"shortest_edge": 48}, "crop_pct": 0.875},
     _STAGES | {"embedding_size": 8, "groups_width": 8}),
    ("dinov2", "Bit", _CROPPED, _PATCHES),
    ("dinov2_with_registers", "Bit", _CROPPED, _PATCHES),
    ("mobilenet_v1", "MobileNetV1", _CROPPED, {"image_size": 32, "depth_multiplier": 0.25}),
    ("mobilenet_v2", "MobileNetV2", _CROPPED, {"image_size": 32, "depth_multiplier": 0.35}),
    ("segformer", "Segformer", _LARGER, _PYRAMID),
    ("siglip", "Siglip", _SQUARE, {"vision_config": {"hidden_size": 32, "num_hidden_layers": 2,
     "num_attention_heads": 4, "intermediate_size": 48, **_PATCHES}, "text_config": {"hidden_size": 32,
     "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99}}),
    ("clip", "CLIP", _CROPPED, {"vision_config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
     "intermediate_size": 48, **_PATCHES}, "text_config": {"hidden_size": 32, "num_hidden_layers": 1,
     "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99}, "projection_dim": 16}),
    ("data2vec-vision", "Beit", _SQUARE, _PATCHES),
    ("ijepa", "ViT", _SQUARE, _PATCHES),
    ("vit_msn", "ViT", _SQUARE, _PATCHES),
    ("bit", "Bit", _CROPPED, _STAGES | {"embedding_size": 8, "num_groups": 2}),
    ("cvt", "ConvNext", {"size": {"shortest_edge": 48}, "crop_pct": 0.875},
     {"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]}),
    ("focalnet", "Bit", _CROPPED, {"embed_dim": 8, "depths": [1, 1], "focal_levels": [1, 1], "focal_windows": [3, 3],
     "hidden_sizes": [16, 16], "image_size": 32}),
    ("hiera", "Bit", _CROPPED | {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
     {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "image_size": [64, 64],
      "masked_unit_size": [8, 8]}),
    ("hgnet_v2", "ViT", _LARGER, {}),
    ("pvt", "Pvt", _SQUARE, _PYRAMID | {"image_size": 32, "num_labels": 5}),
    ("pvt_v2", "Pvt", _LARGER, _PYRAMID | {"image_size": 64}),
    ("swiftformer", "ViT", _LARGER, {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "image_size": 64}),
    ("textnet", "TextNet", {"size": {"shortest_edge": 64}}, {"image_size": [64, 64], "stem_out_channels": 8,
     "hidden_sizes": [8, 8, 8, 16, 16]}),
    ("efficientnet", "EfficientNet", _SQUARE | {"crop_size": {"height": 32, "width": 32}},
     {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 32}),
    ("levit", "Levit", {}, {}),
    ("mobilevit", "MobileViT", {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}},
     {"image_size": 64, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32]}),
    ("mobilevitv2", "MobileViT", {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}},
     {"image_size": 64, "n_attn_blocks": [1, 1, 1], "base_attn_unit_dims": [16, 16, 16], "width_multiplier": 0.25}),
    ("poolformer", "PoolFormer", {}, _STAGES),
    ("imagegpt", "ImageGPT", {"clusters": [[-1.0, -1.0, -1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], **_SQUARE}, {}),
)  # fmt: skip

#: Backbones whose vectors are served; by another network of the same family where the classifier's has more to it.
EMBEDDERS = ("vit", "deit", "beit", "swin", "convnext", "resnet", "dinov2", "dinov2_with_registers", "regnet", "hiera",
             "mobilenet_v2", "ijepa", "focalnet", "segformer", "efficientnet")  # fmt: skip

_RESNET = {"model_type": "resnet", **_STAGES, "embedding_size": 8, "layer_type": "basic",
           "out_features": ["stage1", "stage2", "stage3", "stage4"]}  # fmt: skip
_DETR = {"backbone_config": _RESNET, "num_queries": 6, "num_labels": 4}
_RT_RESNET = {"model_type": "rt_detr_resnet", **_STAGES, "embedding_size": 8, "layer_type": "basic",
              "out_features": ["stage2", "stage3", "stage4"]}  # fmt: skip
_RT = {"backbone_config": _RT_RESNET, "encoder_in_channels": [8, 16, 16], "encoder_hidden_dim": 32, "num_queries": 8,
       "decoder_in_channels": [32, 32, 32], "num_labels": 4}  # fmt: skip
_SWIN_BACKBONE = _SWIN | {"model_type": "swin", "depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 2], "image_size": 64,
                          "out_features": ["stage1", "stage2", "stage3", "stage4"]}  # fmt: skip
_HG = {"model_type": "hgnet_v2", "embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "out_features": ["stage2", "stage3", "stage4"], "stem_channels": [3, 8, 8],
       "stage_in_channels": [8, 8, 16, 16], "stage_mid_channels": [8, 8, 8, 8], "stage_out_channels": [8, 16, 16, 16],
       "stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [1, 1, 1, 1]}  # fmt: skip

DETECTORS: tuple[Row, ...] = (
    ("detr", "Detr", _EDGE, _DETR),
    ("conditional_detr", "ConditionalDetr", _EDGE, _DETR),
    ("deformable_detr", "DeformableDetr", _EDGE, _DETR | {}),
    ("table-transformer", "Detr", _EDGE, _DETR),
    ("dab-detr", "ConditionalDetr", _EDGE, _DETR),
    ("rt_detr", "RTDetr", _LARGER, _RT),
    ("rt_detr_v2", "RTDetr", _LARGER, _RT),
    ("d_fine", "RTDetr", _LARGER, _RT | {"backbone_config": _HG, "encoder_in_channels": [16, 16, 16]}),
    ("yolos", "Yolos", {"size": {"shortest_edge": 48, "longest_edge": 96}},
     {"image_size": [48, 64], "patch_size": 8, "num_detection_tokens": 6, "num_labels": 4}),
)  # fmt: skip

SEGMENTERS: tuple[Row, ...] = (
    ("segformer", "Segformer", _LARGER, _PYRAMID | {"decoder_hidden_size": 16, "num_labels": 4}),
    ("beit", "Beit", _LARGER, {"image_size": 64, "patch_size": 16, "num_hidden_layers": 4, "out_indices": [0, 1, 2, 3],
     "num_labels": 4, "auxiliary_channels": 16}),
    ("data2vec-vision", "Beit", _LARGER, {"image_size": 64, "patch_size": 16, "num_hidden_layers": 4,
     "out_indices": [0, 1, 2, 3], "num_labels": 4, "auxiliary_channels": 16}),
    ("dpt", "DPT", _LARGER, {"image_size": 64, "patch_size": 16, "backbone_out_indices": [0, 1, 2, 3],
     "num_hidden_layers": 4, "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16, "num_labels": 4}),
    ("upernet", "Segformer", _LARGER, {"backbone_config": _SWIN_BACKBONE, "hidden_size": 16, "auxiliary_channels": 16,
     "auxiliary_in_channels": 32, "num_labels": 4}),
    ("mobilevit", "MobileViT", {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}},
     {"image_size": 64, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32],
      "aspp_out_channels": 16, "num_labels": 4}),
    ("mask2former", "Mask2Former", _LARGER | {"size_divisor": 0, "do_reduce_labels": False},
     {"backbone_config": _SWIN_BACKBONE, "feature_size": 32, "mask_feature_size": 32, "encoder_feedforward_dim": 48,
      "encoder_layers": 1, "decoder_layers": 2, "dim_feedforward": 48, "num_queries": 6, "num_labels": 4,
      "hidden_dim": 32}),
    ("mask2former-padded", "Mask2Former", _EDGE, {"backbone_config": _SWIN_BACKBONE, "feature_size": 32,
      "mask_feature_size": 32, "encoder_feedforward_dim": 48, "encoder_layers": 1, "decoder_layers": 2,
      "dim_feedforward": 48, "num_queries": 6, "num_labels": 4, "hidden_dim": 32}),
    ("maskformer", "MaskFormer", _LARGER | {"size_divisor": 0},
     {"backbone_config": _SWIN_BACKBONE, "fpn_feature_size": 32, "mask_feature_size": 32, "num_labels": 4,
      "decoder_config": {"model_type": "detr", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
                         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
                         "decoder_ffn_dim": 48, "num_queries": 6, "backbone_config": _RESNET}}),
)  # fmt: skip

_ONE_OF_TWO = {
    ("deit", "AutoModelForImageClassification"): "DeiTForImageClassification",
    ("levit", "AutoModelForImageClassification"): "LevitForImageClassification",
}

_FRAMES = _PATCHES | {"num_frames": 8}


def cases() -> Iterator[Case]:
    for row in CLASSIFIERS:
        yield Case(f"{row[0]}-images", "image-classification", partial(_classifier, row, {}))
    several = {"problem_type": "multi_label_classification"}
    yield Case("vit-multi-label-images", "image-classification", partial(_classifier, CLASSIFIERS[0], several))
    rows = {row[0]: row for row in CLASSIFIERS}
    for name in EMBEDDERS:
        row = rows[name]
        yield _vectors(name, row)
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, **_PATCHES}
    yield _vectors("siglip-vision", ("siglip_vision_model", "Siglip", _SQUARE, vision))
    yield _vectors("clip-vision", ("clip_vision_model", "CLIP", _CROPPED, vision))
    yield _vectors("vit_mae", ("vit_mae", "ViT", _SQUARE, _PATCHES))
    yield Case("dinov3-vectors", "image-feature-extraction", _dinov3, {"normalize": False})
    yield _vectors("yolos", DETECTORS[-1])
    yield Case("clip-whole-vectors", "image-feature-extraction", clip, {"normalize": False})
    yield Case("siglip-whole-vectors", "image-feature-extraction", partial(_whole, "siglip"), {"normalize": False})
    for row in DETECTORS:
        detects = partial(_make, row, "AutoModelForObjectDetection")
        yield Case(f"{row[0]}-detects", "object-detection", detects, {"threshold": 0.05})
    yield Case("owlvit-detects", "object-detection", _owlvit, {"threshold": 0.05})
    for row in SEGMENTERS:
        yield Case(f"{row[0]}-segments", "image-segmentation", partial(_segmenter, row))
    panoptic = _DETR | {"d_model": 128, "encoder_attention_heads": 8, "decoder_attention_heads": 8}
    detr = partial(_make, ("detr", "Detr", _EDGE, panoptic), "DetrForSegmentation")
    for subtask in ("panoptic", "instance"):
        yield Case(f"detr-{subtask}", "image-segmentation", detr, {"threshold": 0.1, "subtask": subtask})
    yield from _others()
    yield from _videos()


def _vectors(name: str, row: Row) -> Case:
    return Case(f"{name}-vectors", "image-feature-extraction", partial(_make, row, "AutoModel"), {"normalize": False})


def _others() -> Iterator[Case]:
    """Networks for other kinds than the one that they are given to."""
    yield Case("sam-segments", "image-segmentation", partial(_strange, "sam", "Sam", "SamModel"))
    yield Case("superpoint-vectors", "image-feature-extraction",
               partial(_strange, "superpoint", "SuperPoint", "SuperPointForKeypointDetection"))  # fmt: skip
    yield Case("vitpose-vectors", "image-feature-extraction", _vitpose)
    yield Case("glpn-vectors", "image-feature-extraction", partial(_strange, "glpn", "GLPN", "GLPNForDepthEstimation"))
    yield Case("timm-images", "image-classification", _timm)
    yield Case("blip-images", "image-classification", partial(_strange, "blip", "Blip", "BlipForConditionalGeneration"))
    yield Case("vit-processor-only", "image-classification", _processor_only)
    yield Case("llava-images", "image-classification", _llava)


def _videos() -> Iterator[Case]:
    cropped = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    networks = (
        ("videomae", "VideoMAE", _FRAMES | {"tubelet_size": 2}),
        ("timesformer", "VideoMAE", _FRAMES),
        ("vivit", "Vivit", {"image_size": 32, "num_frames": 8, "tubelet_size": [2, 8, 8]}),
    )
    for name, processor, settings in networks:
        row = (name, processor, cropped, settings)
        labels = partial(_make, row, "AutoModelForVideoClassification", num_labels=6)
        yield Case(f"{name}-videos", "video-classification", labels, {"frame_sampling_rate": 1, "top_k": 6})
        single = partial(_make, row, "AutoModelForVideoClassification", num_labels=1)
        yield Case(f"{name}-one-label-videos", "video-classification", single, {"frame_sampling_rate": 1})
        yield Case(f"{name}-video-vectors", "video-feature-extraction", partial(_make, row, "AutoModel"))


def _classifier(row: Row, more: Mapping[str, Any], folder: Path) -> None:
    labels = {f"LABEL_{number}": number for number in range(5)}
    named = {"id2label": {number: name for name, number in labels.items()}, "label2id": labels}
    _make(row, "AutoModelForImageClassification", folder, **named, **more)


def _segmenter(row: Row, folder: Path) -> None:
    universal = row[0].startswith("mask")
    _make(row, "AutoModelForUniversalSegmentation" if universal else "AutoModelForSemanticSegmentation", folder)


def _make(row: Row, auto: str, folder: Path, **own: Any) -> None:
    name, processor, prepared, settings = row
    # of some architectures the auto class knows two classes, and chooses by the folder
    auto = _ONE_OF_TWO.get((name, auto), auto)
    # detectors choose places by the output of a layer: with large weights, the last bit of a pixel moves a box
    gain = 0.7 if auto == "AutoModelForObjectDetection" else 1.5
    save(folder, auto, config(name.removesuffix("-padded"), **(dict(settings) | own)), gain)
    _processor(processor)(**prepared).save_pretrained(folder)


def _processor(name: str) -> Any:
    import transformers

    return getattr(transformers, f"{name}ImageProcessorPil", None) or getattr(transformers, f"{name}ImageProcessor")


def clip(folder: Path) -> None:
    """Write a whole CLIP with its tokenizer and image processor, as its hub folders have them."""
    _whole("clip", folder)


def _whole(name: str, folder: Path) -> None:
    numbers = tokenizers.write(folder, "Roberta")
    row = next(row for row in CLASSIFIERS if row[0] == name)
    text = dict(row[3]["text_config"]) | numbers | {"max_position_embeddings": 64}
    _make(row, "AutoModel", folder, text_config=text)


def _owlvit(folder: Path) -> None:
    sides = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    own = {"text_config": sides | {"vocab_size": 99}, "vision_config": sides | _PATCHES, "projection_dim": 16}
    row = ("owlvit", "OwlViT", _SQUARE, own)
    _make(row, "OwlViTForObjectDetection", folder)


def _strange(model_type: str, processor: str, network: str, folder: Path) -> None:
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, **_PATCHES}
    small: dict[str, dict[str, Any]] = {
        "sam": {"vision_config": vision | {"global_attn_indexes": [0], "mlp_dim": 48, "output_channels": 16},
                "prompt_encoder_config": {"hidden_size": 16, "image_size": 32, "patch_size": 8},
                "mask_decoder_config": {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2,
                                        "iou_head_hidden_dim": 16, "num_hidden_layers": 1}},
        "blip": {"vision_config": vision, "text_config": {"hidden_size": 32, "num_hidden_layers": 1,
                 "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99, "encoder_hidden_size": 32}},
        "glpn": _PYRAMID,
    }  # fmt: skip
    save(folder, network, config(model_type, **small.get(model_type, {})))
    _processor(processor)().save_pretrained(folder)


def _dinov3(folder: Path) -> None:
    import json

    save(folder, "AutoModel", config("dinov3_vit", **_PATCHES))
    told = {"image_processor_type": "DINOv3ViTImageProcessorFast", **_SQUARE}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))


def _vitpose(folder: Path) -> None:
    backbone = {"model_type": "vitpose_backbone", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                "image_size": [64, 48], "patch_size": [16, 16], "out_features": ["stage2"]}  # fmt: skip
    save(folder, "VitPoseForPoseEstimation", config("vitpose", backbone_config=backbone, num_labels=3))
    _processor("VitPose")(size={"height": 64, "width": 48}).save_pretrained(folder)


def _timm(folder: Path) -> None:
    """Write timm's own form of a folder, whose config names no type of transformers."""
    import json

    _classifier(CLASSIFIERS[0], {}, folder)
    (folder / "preprocessor_config.json").unlink()
    (folder / "config.json").write_text(
        json.dumps(
            {"architecture": "resnet18", "num_classes": 5, "num_features": 512, "pretrained_cfg": {"tag": "a1_in1k"}}
        )
    )


def _processor_only(folder: Path) -> None:
    """Leave the image settings in ``processor_config.json`` alone, as processors of several inputs save them."""
    import json

    _classifier(CLASSIFIERS[0], {}, folder)
    own = folder / "preprocessor_config.json"
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(own.read_text())}))
    own.unlink()


def _llava(folder: Path) -> None:
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
              "intermediate_size": 48, **_PATCHES}  # fmt: skip
    text = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
            "intermediate_size": 48, "vocab_size": 99}  # fmt: skip
    save(folder, "LlavaForConditionalGeneration", config("llava", vision_config=vision, text_config=text))
    _processor("CLIP")(**_CROPPED).save_pretrained(folder)
