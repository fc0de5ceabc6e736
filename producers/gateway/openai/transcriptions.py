"""/v1/audio/transcriptions: the text of an audio file, by tasks of the kind `automatic-speech-recognition`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import PlainTextResponse, Response

from producers.client.request import NewItem
from producers.gateway.answers import Events, Json, event
from producers.gateway.gateway import Here, Member
from producers.gateway.openai.endpoint_calls import Call, Names, answered, checked, output_of, task_of
from producers.gateway.openai.openai_answers import TranscriptText, VerboseTranscript
from producers.gateway.openai.request_bodies import FORM_LIMITS, check_form
from producers.gateway.openapi.schema_of import EVENT, answer_of
from producers.wire.errors import InputTooLarge, InvalidInput
from producers.wire.messages import InlineBytes
from results_store.records import Result

router = APIRouter(prefix="/v1/audio/transcriptions", tags=["openai"], form_limits=FORM_LIMITS)

KIND = "automatic-speech-recognition"

FORM = "multipart/form-data"


#: The details of a segment of a model that has none.
NO_DETAILS = {
    "seek": 0,
    "tokens": [],
    "temperature": 0.0,
    "avg_logprob": 0.0,
    "compression_ratio": 0.0,
    "no_speech_prob": 0.0,
}

Format = Literal["json", "text", "verbose_json", "srt", "vtt"]

Granularity = Literal["segment", "word"]


class TranscriptionForm(BaseModel):
    """A recording to transcribe. Decoding is greedy, as at the temperature 0."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile
    model: str
    response_format: Format = "json"
    language: str | None = None
    granularities: list[Granularity] | None = Field(
        None, alias="timestamp_granularities[]", description="For `verbose_json`; by default segments."
    )
    stream: bool | None = Field(None, description="Send the text as events, once it is known. For `json`.")
    temperature: Annotated[float, Field(ge=0, le=0)] | None = None
    prompt: Literal[""] | None = Field(None, description="Not available here.")
    chunking_strategy: Literal["auto"] | None = None


_OTHER_FORMS = {
    "text/plain": {"type": "string", "description": "`text`, `srt` or `vtt`."},
    "text/event-stream": {**EVENT, "description": "With `stream`."},
}


@router.post(
    "", dependencies=[Depends(check_form)], responses=answer_of(TranscriptText, VerboseTranscript, also=_OTHER_FORMS)
)
async def transcriptions(
    request: Request, gateway: Here, caller: Member, form: Annotated[TranscriptionForm, Form(media_type=FORM)]
) -> Response:
    """Return the text of an audio file."""
    check_forms(form)
    catalogue = await gateway.client.catalogue()
    task = task_of(catalogue, form.model, KIND)
    limit = catalogue.limits.max_input_bytes
    if form.file.size is not None and form.file.size > limit:
        raise InputTooLarge(
            "file", f"has {form.file.size:,} bytes, over {limit:,}", "send a shorter clip, or a compressed one"
        )
    wanted = timestamps(form.response_format, form.granularities or ())
    told = {"language": form.language} if form.language else {}
    details = {"return_details": True} if form.response_format == "verbose_json" else {}
    content = InlineBytes(await form.file.read())
    params = [{"return_timestamps": times, **told, **details} for times in wanted]
    names = names_of(granularities=bool(form.granularities))
    call = Call(task.name, [NewItem(content, params=own) for own in params], partial(_heard, wanted, names))
    answer = await answered(request, gateway, caller, checked(catalogue, call, lambda _: names))
    return streamed(answer["text"]) if form.stream else shown(answer, form.response_format)


def names_of(*, granularities: bool) -> Names:
    """Return the caller's names of an item's fields. The granularities ask for times, or else the format does."""
    times = "timestamp_granularities[]" if granularities else "response_format"
    return {"params.language": "language", "params.return_timestamps": times, "input": "file"}


def check_forms(form: TranscriptionForm) -> None:
    """Raise InvalidInput for a field that the answer's format does not have."""
    if form.granularities and form.response_format != "verbose_json":
        problem, remedy = f"are not in the format {form.response_format}", "ask for response_format=verbose_json"
        raise InvalidInput("timestamp_granularities[]", problem, remedy)
    if form.stream and form.response_format != "json":
        raise InvalidInput("response_format", "must be json if stream is true", "leave one of them out")


def timestamps(form: Format, granularities: Sequence[Granularity]) -> list[bool | str]:
    """Return the `return_timestamps` values of a format: one item each, as the model makes their times differently."""
    if form in ("json", "text"):
        return [False]
    if form != "verbose_json" or not granularities:
        return [True]
    return ["word" if granularity == "word" else True for granularity in dict.fromkeys(granularities)]


def _heard(wanted: Sequence[bool | str], names: Names, rows: Sequence[Result]) -> dict[str, Any]:
    """Return the text, with details, `segments` and `words` as requested. Raises Problem."""
    heard = [output_of(row, names) for row in rows]
    found: dict[str, Any] = {**heard[0], "text": heard[0]["text"].strip()}
    for times, own in zip(wanted, heard, strict=True):
        if times == "word":
            found["words"] = [
                {"word": part["text"].strip(), "start": part["start"], "end": part["end"]} for part in segments_of(own)
            ]
        elif times:
            found["segments"] = segments_of(own)
    return found


def streamed(text: str) -> Response:
    """Return a transcription as OpenAI's events: the whole text, and its end."""

    async def events() -> AsyncIterator[bytes]:
        if text:
            yield event(None, {"type": "transcript.text.delta", "delta": text})
        yield event(None, {"type": "transcript.text.done", "text": text})

    return Events(events())


def shown(heard: Mapping[str, Any], form: Format) -> Response:
    """Return a transcription in the requested format."""
    if form == "json":
        return Json(TranscriptText(text=heard["text"]))
    if form == "text":
        return PlainTextResponse(f"{heard['text']}\n")
    if form == "verbose_json":
        return Json(verbose(heard))
    return PlainTextResponse(subtitles(heard["segments"], form))


def verbose(heard: Mapping[str, Any]) -> VerboseTranscript:
    """Return a transcription with all fields of OpenAI's schema. A language that no model named is `unknown`."""
    found: VerboseTranscript = {
        "task": "transcribe",
        "language": heard.get("language") or "unknown",
        "duration": heard["duration"],
        "text": heard["text"],
        "usage": {"type": "duration", "seconds": heard["duration"]},
    }
    if "words" in heard:
        found["words"] = heard["words"]
    if "segments" in heard:
        found["segments"] = [{**NO_DETAILS, **segment} for segment in heard["segments"]]  # type: ignore[typeddict-item] # together they are whole
    return found


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
        details = {name: chunk[name] for name in NO_DETAILS if name in chunk}
        segments.append({"id": number, "start": start, "end": end, "text": chunk["text"], **details})
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
