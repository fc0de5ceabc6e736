"""What transformers and sentence-transformers answer to an input alone, in the form of our answers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.checkpoint_folders.comparison import Boxes, Pixels, Ranking
from benchmarks.checkpoint_folders.folders import Case

#: The answer to an input.
Answering = Callable[[Any], Any]

#: The limits of a tiny Whisper; its pipeline would search with five beams.
WHISPER_TOKENS = 20


def of(case: Case, folder: Path) -> Answering:
    """Return the reference of a case."""
    make: Callable[[Path, Mapping[str, Any]], Answering] = _BY_NAME[case.reference or case.kind]
    return make(folder, case.params)


def _pipeline(kind: str, folder: Path, **options: Any) -> Any:
    import transformers

    return transformers.pipeline(kind, model=str(folder), device="cpu", dtype="float32", **options)


def _plain(kind: str) -> Callable[[Path, Mapping[str, Any]], Answering]:
    def make(folder: Path, params: Mapping[str, Any]) -> Answering:
        pipe = _pipeline(kind, folder)

        def answer(value: Any) -> Any:
            # a copy: pipelines of sounds write into what they are given
            found = pipe(value.copy() if isinstance(value, np.ndarray) else value, **params)
            return found[0] if kind == "text-classification" and found and isinstance(found[0], list) else found

        return answer

    return make


def _zero_shot(folder: Path, params: Mapping[str, Any]) -> Answering:
    pipe = _pipeline("zero-shot-classification", folder)

    def answer(text: str) -> Any:
        found = pipe(text, batch_size=1, **params)
        return [{"label": a, "score": b} for a, b in zip(found["labels"], found["scores"], strict=True)]

    return answer


def _entities(folder: Path, params: Mapping[str, Any]) -> Answering:
    """Answer as the pipeline does; without aggregation with the scores of all labels of each token."""
    pipe = _pipeline("token-classification", folder, **params)
    if params["aggregation_strategy"] != "none":
        return pipe
    import torch

    labels = pipe.model.config.id2label

    def answer(text: str) -> Any:
        tokens = pipe(text)
        encoded = pipe.tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            scores = pipe.model(**encoded).logits[0].softmax(-1)
        return [
            Ranking(sorted(({**token, "entity": labels[n], "score": float(score)}
                            for n, score in enumerate(scores[token["index"]])), key=_score), 1)
            for token in tokens
        ]  # fmt: skip

    return answer


def _score(one: Mapping[str, Any]) -> float:
    """Return the place of a choice in a ranking, best first."""
    return -float(one["score"])


def _filled(folder: Path, params: Mapping[str, Any]) -> Answering:
    pipe = _pipeline("fill-mask", folder)
    return lambda text: Ranking(pipe(text, top_k=len(pipe.tokenizer)), params.get("top_k", 5))


def _question(folder: Path, params: Mapping[str, Any]) -> Answering:
    """Score every span: transformers no longer has a pipeline."""
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForQuestionAnswering.from_pretrained(folder).eval()

    def answer(value: Mapping[str, str]) -> Any:
        context = value["context"]
        encoded = tokenizer(value["question"], context, return_tensors="pt")
        with torch.inference_mode():
            output = network(**encoded)
        inside = [place == 1 for place in encoded.sequence_ids()]
        allowed = torch.tensor([n == 0 or own for n, own in enumerate(inside)])
        starts, ends = (
            logits[0].masked_fill(~allowed, -torch.inf).softmax(-1)
            for logits in (output.start_logits, output.end_logits)
        )
        spans: dict[tuple[int, int], float] = {}
        for first in [n for n, own in enumerate(inside) if own]:
            for last in [n for n in range(first, min(len(inside), first + 15)) if inside[n]]:
                begin = encoded.word_to_chars(0, encoded.token_to_word(first), 1)[0]
                end = encoded.word_to_chars(0, encoded.token_to_word(last), 1)[1]
                spans[begin, end] = max(spans.get((begin, end), 0.0), float(starts[first] * ends[last]))
        ranked = [
            {"score": score, "start": begin, "end": end, "answer": context[begin:end]}
            for (begin, end), score in spans.items()
        ]
        return Ranking(sorted(ranked, key=_score), 1)

    return answer


def _mean(folder: Path, params: Mapping[str, Any]) -> Answering:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def answer(text: str) -> Any:
        with torch.inference_mode():
            return network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()

    return answer


def _sentences(folder: Path, params: Mapping[str, Any]) -> Answering:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return lambda text: model.encode([text])[0]


def _text_to_text(folder: Path, params: Mapping[str, Any]) -> Answering:
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    languages = set(getattr(tokenizer, "lang_token_to_id", {}).values())  # M2M-100 shows them: they are not special
    settings = dict(params)
    if source := settings.pop("src_lang", None):
        tokenizer.src_lang = source.strip("_")
    if target := settings.pop("tgt_lang", None):
        settings["forced_bos_token_id"] = tokenizer.convert_tokens_to_ids(target)

    def answer(text: str) -> Any:
        encoded = tokenizer(text, return_tensors="pt")
        encoded.pop("token_type_ids", None)
        with torch.inference_mode():
            [made] = network.generate(**encoded, do_sample=False, **settings)
        kept = [token for token in made.tolist() if token not in languages]
        return {"text": tokenizer.decode(kept, skip_special_tokens=True)}

    return answer


def _chat(folder: Path, params: Mapping[str, Any]) -> Answering:
    """Answer a user's message in the folder's chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    told = {name: value for name, value in params.items() if name != "as_message"}
    plain = _generation(folder, told, add_special_tokens=False)

    def answer(text: str) -> Any:
        turns = [{"role": "user", "content": text}]
        return plain(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    return answer


def _generation(folder: Path, params: Mapping[str, Any], *, add_special_tokens: bool = True) -> Answering:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    ends = network.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])

    def answer(text: str) -> Any:
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=add_special_tokens)["input_ids"]
        with torch.inference_mode():
            made = network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **params)
        tokens = made[0, ids.shape[1] :].tolist()
        if tokens[-1:] and tokens[-1] in ends:  # it ends the text, and is no part of it, special or not
            tokens.pop()
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        return {"text": text.replace("\0", "\ufffd")}  # the store cannot hold NUL

    return answer


def _image_vector(folder: Path, params: Mapping[str, Any]) -> Answering:
    import torch
    from transformers import AutoImageProcessor, AutoModel

    processor, network = AutoImageProcessor.from_pretrained(folder, backend="pil"), _quiet(AutoModel, folder)
    made_up = network[1]

    def answer(image: Any) -> Any:
        with torch.inference_mode():
            output = network[0](pixel_values=processor(images=[image], return_tensors="pt")["pixel_values"])
        pooled = None if made_up else getattr(output, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)[0].numpy()
        hidden = output.last_hidden_state
        return (hidden.flatten(2).transpose(1, 2) if hidden.dim() == 4 else hidden).mean(1)[0].numpy()

    return answer


def _quiet(auto: Any, folder: Path) -> tuple[Any, bool]:
    """Return a network, and whether its pooler is one of random numbers."""
    network, report = auto.from_pretrained(folder, output_loading_info=True)
    return network.eval(), any(name.startswith("pooler.") for name in report["missing_keys"])


def _detection(folder: Path, params: Mapping[str, Any]) -> Answering:
    pipe = _pipeline("object-detection", folder)
    return lambda image: Boxes(pipe(image, threshold=0.0), params["threshold"])


def _segmentation(folder: Path, params: Mapping[str, Any]) -> Answering:
    pipe = _pipeline("image-segmentation", folder)
    if type(pipe.model).__name__.endswith("ForSemanticSegmentation"):
        return _pixels(pipe)

    def answer(image: Any) -> Any:
        return [
            {"label": one["label"], "score": one["score"], "mask": np.array(one["mask"]) > 0}
            for one in pipe(image, **params)
        ]

    return answer


def _pixels(pipe: Any) -> Answering:
    """Score each pixel of the image, as transformers' image processors do before they take the best label."""
    import torch

    names = pipe.model.config.id2label

    def answer(image: Any) -> Any:
        inputs = pipe.image_processor(images=[image], return_tensors="pt")
        with torch.inference_mode():
            logits = pipe.model(**inputs).logits
        size = (image.height, image.width)
        scores = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0]
        best = scores.argmax(0).numpy()
        for one in pipe(image):
            assert ((np.array(one["mask"]) > 0) == (best == pipe.model.config.label2id[one["label"]])).all()
        return Pixels({names[number]: own.numpy() for number, own in enumerate(scores)})

    return answer


def _video(folder: Path, params: Mapping[str, Any]) -> Answering:
    pipe = _pipeline("video-classification", folder)

    def answer(data: bytes) -> Any:
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            Path(file.name).write_bytes(data)
            return pipe(file.name, **params)

    return answer


def _video_vector(folder: Path, params: Mapping[str, Any]) -> Answering:
    """Spread the frames over the video, as transformers' video processors do."""
    import torch
    from transformers import AutoImageProcessor, AutoModel

    from tests import videos

    processor, (network, made_up) = AutoImageProcessor.from_pretrained(folder), _quiet(AutoModel, folder)

    def answer(data: bytes) -> Any:
        frames = videos.plain(data)
        count = network.config.num_frames
        chosen = [frames[int(place * len(frames) / count)] for place in range(count)]
        with torch.inference_mode():
            output = network(**processor(chosen, return_tensors="pt"))
        pooled = None if made_up else getattr(output, "pooler_output", None)
        vector = (output.last_hidden_state.mean(1) if pooled is None else pooled)[0].numpy()
        return vector / np.linalg.norm(vector)

    return answer


def _speech(folder: Path, params: Mapping[str, Any]) -> Answering:
    pipe = _pipeline("automatic-speech-recognition", folder)
    asked: dict[str, Any] = {name: value for name, value in params.items() if name == "return_timestamps"}
    if pipe.model.config.model_type == "whisper":
        told = {name: value for name, value in params.items() if name in ("language", "task")}
        # the pipeline would go on listening to the silence behind a recording
        once = {} if asked.get("return_timestamps") == "word" else {"force_unique_generate_call": True}
        asked["generate_kwargs"] = {"num_beams": 1, "max_new_tokens": WHISPER_TOKENS, **told, **once}
    return lambda samples: pipe(samples.copy(), **asked)


_BY_NAME: Mapping[str, Callable[[Path, Mapping[str, Any]], Answering]] = {
    "text-classification": _plain("text-classification"),
    "zero-shot-classification": _zero_shot,
    "token-classification": _entities,
    "question-answering": _question,
    "fill-mask": _filled,
    "feature-extraction": _mean,
    "sentences": _sentences,
    "text2text-generation": _text_to_text,
    "summarization": _text_to_text,
    "translation": _text_to_text,
    "text-generation": _generation,
    "chat": _chat,
    "image-classification": _plain("image-classification"),
    "image-feature-extraction": _image_vector,
    "object-detection": _detection,
    "image-segmentation": _segmentation,
    "video-classification": _video,
    "video-feature-extraction": _video_vector,
    "automatic-speech-recognition": _speech,
    "audio-classification": _plain("audio-classification"),
}
