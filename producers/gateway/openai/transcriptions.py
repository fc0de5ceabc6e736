"""/v1/audio/transcriptions: the text of an audio file, by tasks of the kind `automatic-speech-recognition`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, UploadFile
from starlette.responses import PlainTextResponse, Response

from producers.client.handles import value
from producers.client.request import NewItem
from producers.gateway.answers import Json
from producers.gateway.gateway import Here, Who
from producers.gateway.openai.endpoint_calls import Call, answered, task_of
from producers.wire.errors import InputTooLarge
from producers.wire.messages import InlineBytes
from results_store.records import Result

router = APIRouter(prefix="/v1/audio/transcriptions", tags=["openai"])

KIND = "automatic-speech-recognition"

Format = Literal["json", "text", "verbose_json", "srt", "vtt"]

Granularity = Literal["segment", "word"]


@router.post("")
async def transcriptions(
    request: Request,
    gateway: Here,
    caller: Who,
    file: Annotated[UploadFile, File()],
    model: Annotated[str, Form()],
    response_format: Annotated[Format, Form()] = "json",
    language: Annotated[str | None, Form()] = None,
    granularities: Annotated[list[Granularity] | None, Form(alias="timestamp_granularities[]")] = None,
) -> Response:
    """Return the text of an audio file. Fields that control OpenAI's own models are ignored."""
    catalogue = await gateway.client.catalogue()
    task = task_of(catalogue, model, KIND)
    limit = catalogue.limits.max_input_bytes
    if file.size is not None and file.size > limit:
        raise InputTooLarge(
            "file", f"has {file.size:,} bytes, over {limit:,}", "send a shorter clip, or a compressed one"
        )
    wanted = timestamps(response_format, granularities or ())
    told = {"language": language} if language else {}
    content = InlineBytes(await file.read())
    items = [NewItem(content, params={"return_timestamps": times, **told}) for times in wanted]
    answer = await answered(request, gateway, caller, Call(task.name, items, partial(_heard, wanted)))
    return shown(answer, response_format)


def timestamps(form: Format, granularities: Sequence[Granularity]) -> list[bool | str]:
    """Return the `return_timestamps` values of a format: one item each, as the model makes their times differently."""
    if form in ("json", "text"):
        return [False]
    if form != "verbose_json" or not granularities:
        return [True]
    return ["word" if granularity == "word" else True for granularity in dict.fromkeys(granularities)]


def _heard(wanted: Sequence[bool | str], rows: Sequence[Result]) -> dict[str, Any]:
    """Return the text, with `segments` and `words` as requested."""
    heard = [value(row) for row in rows]
    found: dict[str, Any] = {"text": heard[0]["text"].strip()}
    for times, own in zip(wanted, heard, strict=True):
        if times == "word":
            found["words"] = [
                {"word": part["text"].strip(), "start": part["start"], "end": part["end"]} for part in segments_of(own)
            ]
        elif times:
            found["segments"] = segments_of(own)
    return found


def shown(heard: Mapping[str, Any], form: Format) -> Response:
    """Return a transcription in the requested format."""
    if form == "json":
        return Json({"text": heard["text"]})
    if form == "text":
        return PlainTextResponse(f"{heard['text']}\n")
    if form == "verbose_json":
        parts = heard.get("segments") or heard.get("words")
        return Json({"task": "transcribe", "duration": parts[-1]["end"] if parts else 0.0, **heard})
    return PlainTextResponse(subtitles(heard["segments"], form))


def segments_of(heard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a transcription's chunks with times in seconds. A missing time is taken from a neighbour."""
    chunks = heard.get("chunks") or []
    starts = [chunk["timestamp"][0] for chunk in chunks]
    segments: list[dict[str, Any]] = []
    for number, chunk in enumerate(chunks):
        start, end = chunk["timestamp"]
        if start is None:
            start = segments[-1]["end"] if segments else 0.0
        if end is None:
            end = next((after for after in starts[number + 1 :] if after is not None), start)
        segments.append({"id": number, "start": start, "end": end, "text": chunk["text"]})
    return segments


def subtitles(segments: Sequence[Mapping[str, Any]], form: Literal["srt", "vtt"]) -> str:
    """Return segments as SubRip or WebVTT."""
    mark = "," if form == "srt" else "."
    cues = []
    for segment in segments:
        times = f"{_clock(segment['start'], mark)} --> {_clock(segment['end'], mark)}"
        number = f"{segment['id'] + 1}\n" if form == "srt" else ""
        cues.append(f"{number}{times}\n{segment['text'].strip()}\n")
    return "\n".join(["WEBVTT\n", *cues] if form == "vtt" else cues)


def _clock(at_s: float, mark: str) -> str:
    whole_ms = round(at_s * 1000)
    minutes, ms = divmod(whole_ms, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{ms // 1000:02}{mark}{ms % 1000:03}"
