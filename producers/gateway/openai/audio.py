"""/v1/audio/transcriptions: what is said in a clip, by tasks of the kind `automatic-speech-recognition`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, UploadFile
from starlette.responses import PlainTextResponse, Response

from producers.errors import InputTooLarge
from producers.gateway.answers import Json
from producers.gateway.gateway import Here, Who
from producers.gateway.openai.calls import Call, answered, task_of
from producers.handles import value
from producers.messages import InlineBytes
from producers.request import NewItem
from results_store.records import Result

router = APIRouter(prefix="/v1/audio/transcriptions", tags=["openai"])

KIND = "automatic-speech-recognition"

Format = Literal["json", "text", "verbose_json", "srt", "vtt"]


@router.post("")
async def transcriptions(
    request: Request,
    gateway: Here,
    caller: Who,
    file: Annotated[UploadFile, File()],
    model: Annotated[str, Form()],
    response_format: Annotated[Format, Form()] = "json",
) -> Response:
    """Return what is said in an audio file. Fields of OpenAI's that steer their own models are left unread."""
    catalogue = await gateway.client.catalogue()
    task = task_of(catalogue, model, KIND)
    limit = catalogue.limits.max_input_bytes
    if file.size is not None and file.size > limit:
        raise InputTooLarge(
            "file", f"has {file.size:,} bytes, over {limit:,}", "send a shorter clip, or a compressed one"
        )
    item = NewItem(InlineBytes(await file.read()))
    answer = await answered(request, gateway, caller, Call(task.name, [item], _heard))
    return shown(answer, response_format)


def _heard(rows: Sequence[Result]) -> dict[str, Any]:
    (row,) = rows
    heard: dict[str, Any] = value(row)
    return heard


def shown(heard: Mapping[str, Any], form: Format) -> Response:
    """Return a transcription in the form asked for."""
    if form == "json":
        return Json({"text": heard["text"]})
    if form == "text":
        return PlainTextResponse(f"{heard['text']}\n")
    segments = segments_of(heard)
    if form == "verbose_json":
        duration_s = segments[-1]["end"] if segments else 0.0
        return Json({"task": "transcribe", "duration": duration_s, "text": heard["text"], "segments": segments})
    return PlainTextResponse(subtitles(segments, form))


def segments_of(heard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the chunks of a transcription with their times in seconds."""
    return [
        {"id": number, "start": chunk["timestamp"][0], "end": chunk["timestamp"][1], "text": chunk["text"]}
        for number, chunk in enumerate(heard.get("chunks") or ())
    ]


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
