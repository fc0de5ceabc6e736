"""Decode windows with Whisper: build prompts, detect languages, and decode a window's unfinished rest again.

transformers' own code converts tokens to texts and times.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from workers.models.speech.whisper_alignment import token_times
from workers.models.speech.whisper_steps import WrittenTokens, greedy, likeliest

#: The transcript of a window: the text, and its segments as (text, start, end).
Said: TypeAlias = tuple[str, list[Any]]

#: Spectrum frames per second, and per step of a timestamp.
_FRAMES_PER_S = 100
_FRAMES_PER_STEP = 2
_STEP_S = _FRAMES_PER_STEP / _FRAMES_PER_S

#: A shorter rest of a window after its last complete segment is not decoded again.
_REST_FRAMES = 50


@dataclass(frozen=True)
class Passage:
    """A window `(bands, frames)`, or its rest from `frame` on, with its recording, its number in the recording, its
    frames of sound, and its settings.

    `tokens` are the decoded tokens without the end; `times_s`, for word timestamps, has the time of each token;
    `figures` are the details of the decoding, if they are requested.
    """

    spectrum: torch.Tensor
    recording: int
    window: int
    frames: int
    settings: Mapping[str, Any]
    frame: int = 0
    tokens: Sequence[int] = field(default=())
    times_s: Sequence[float] = field(default=())
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def timestamps(self) -> bool | str:
        found: bool | str = self.settings["timestamps"]
        return found


class WhisperDecoder:
    """Transcribes windows. Not thread-safe."""

    def __init__(self, network: Any, folder: Path, most_tokens: int) -> None:
        from transformers import AutoTokenizer

        self._network = network
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self._most_tokens = most_tokens

    def write(self, windows: Sequence[Passage], languages: dict[int, str]) -> list[Said]:
        """Return each window's transcript. `languages` keeps a recording's detected language for its later windows."""
        said: list[list[Said]] = [[] for _ in windows]
        waiting = list(enumerate(windows))
        while waiting:
            written = self._written([passage for _, passage in waiting], languages)
            places = [place for place, _ in waiting]
            for place, passage in zip(places, written, strict=True):
                said[place].append(self._read(passage))
            rests = [(place, self._rest(passage)) for place, passage in zip(places, written, strict=True)]
            waiting = [(place, rest) for place, rest in rests if rest]
        return [("".join(text for text, _ in own), [chunk for _, chunks in own for chunk in chunks]) for own in said]

    # --- writing ---

    def _written(self, passages: Sequence[Passage], languages: dict[int, str]) -> list[Passage]:
        """Return passages with their tokens. Equally long prompts with equal rules are decoded together."""
        encoded = self._network.model.encoder(torch.stack([one.spectrum for one in passages])).last_hidden_state
        self._hear_languages(passages, encoded, languages)
        prompts = [self._prompt(one, languages) for one in passages]
        alike: dict[tuple[int, bool, bool], list[int]] = {}
        for n, one in enumerate(passages):
            alike.setdefault((len(prompts[n]), bool(one.timestamps), "details" in one.settings), []).append(n)
        found = list(passages)
        for (_, timestamps, measured), group in alike.items():
            own, most = torch.tensor([prompts[n] for n in group], device=encoded.device), self._most_tokens
            every = greedy(self._network, own, encoded[group], most, timestamps=timestamps, measured=measured)
            for n, written in zip(group, every, strict=True):
                times_s = self._times_s(passages[n], prompts[n], written.tokens, encoded[n])
                figures = self._figures(passages[n], written, languages) if measured else {}
                found[n] = replace(passages[n], tokens=written.tokens, times_s=times_s, figures=figures)
        return found

    def _figures(self, one: Passage, written: WrittenTokens, languages: Mapping[int, str]) -> dict[str, Any]:
        """Return the details of a passage's decoding. Words have none but the language."""
        from transformers.models.whisper.tokenization_whisper import LANGUAGES

        code = (one.settings["language"] or languages.get(one.recording, "en")).strip("<|>")
        figures: dict[str, Any] = {"language": LANGUAGES.get(code, code)}
        if one.timestamps != "word":
            figures |= {"seek": one.frame, "no_speech_prob": written.no_speech_prob, "avg_logprob": written.avg_logprob}
        return figures

    def _prompt(self, one: Passage, languages: Mapping[int, str]) -> list[int]:
        config = self._network.generation_config
        prompt = [int(config.decoder_start_token_id)]
        if known := getattr(config, "lang_to_id", None):
            language = one.settings["language"] or languages[one.recording]
            prompt += [int(known[language]), int(config.task_to_id[one.settings["task"]])]
        if self._no_timestamps is not None and not one.timestamps:
            prompt.append(self._no_timestamps)
        return prompt

    @property
    def _no_timestamps(self) -> int | None:
        found: int | None = getattr(self._network.generation_config, "no_timestamps_token_id", None)
        return found

    def _hear_languages(self, passages: Sequence[Passage], encoded: torch.Tensor, languages: dict[int, str]) -> None:
        """Detect the languages of recordings without a given language, from their first windows."""
        known = getattr(self._network.generation_config, "lang_to_id", None)
        unknown = [
            n for n, one in enumerate(passages) if not one.settings["language"] and one.recording not in languages
        ]
        first = {passages[n].recording: n for n in reversed(unknown)}
        if known and first:
            names = list(known)
            best = likeliest(self._network, encoded[list(first.values())], [int(known[name]) for name in names])
            languages.update(zip(first, (names[n] for n in best), strict=True))

    def _times_s(
        self, one: Passage, prompt: Sequence[int], tokens: Sequence[int], encoded: torch.Tensor
    ) -> Sequence[float]:
        if one.timestamps != "word":
            return ()
        places = (one.frames - one.frame) // _FRAMES_PER_STEP
        if len(tokens) < self._most_tokens:
            return token_times(self._network, prompt, tokens, encoded, places)
        # cut off: as in transformers, the last token has no attention of its own
        times_s = token_times(self._network, prompt, tokens[:-1], encoded, places)
        return [*times_s, *times_s[-1:]]

    # --- reading what was written ---

    def _rest(self, one: Passage) -> Passage | None:
        """Return the unfinished rest of a window, or None.

        Two timestamps in a row mark the end of a segment and the start of the next. The tokens after the last such pair
        were cut off, so the rest is decoded again from there.
        """
        pair = self._last_pair(one)
        if pair is None:
            return None
        skipped = (one.tokens[pair] - self._first_timestamp) * _FRAMES_PER_STEP
        if not skipped or one.frames - one.frame - skipped < _REST_FRAMES:
            return None
        spectrum = torch.nn.functional.pad(one.spectrum[:, skipped:], (0, skipped))
        return replace(one, spectrum=spectrum, frame=one.frame + skipped, tokens=(), times_s=())

    def _last_pair(self, one: Passage) -> int | None:
        """Return the index of the last two timestamps in a row, or None if the tokens end with a single timestamp."""
        if not one.timestamps:
            return None
        are = [token >= self._first_timestamp for token in one.tokens]
        if are[-2:] == [False, True]:
            return None
        return next((n for n in range(len(are) - 2, -1, -1) if are[n] and are[n + 1]), None)

    @property
    def _first_timestamp(self) -> int:
        assert self._no_timestamps is not None, "only called with timestamps"
        return self._no_timestamps + 1

    def _read(self, one: Passage) -> Said:
        """Return a passage's text and segments, with times relative to the window."""
        pair = self._last_pair(one)
        tokens = one.tokens if pair is None else one.tokens[: pair + 1]
        output: dict[str, Any] = {"tokens": torch.tensor([list(tokens)], dtype=torch.long)}
        if one.timestamps == "word":
            output["token_timestamps"] = torch.tensor([list(one.times_s[: len(tokens)])])
        text, more = self._tokenizer._decode_asr(  # noqa: SLF001 - transformers' pipeline calls it, too
            [output], return_timestamps=one.timestamps, return_language=None, time_precision=_STEP_S
        )
        begins_s = one.frame / _FRAMES_PER_S
        return text, [
            (
                chunk["text"],
                *(None if at is None else round(at + begins_s, 2) for at in chunk["timestamp"]),
                *self._details(one, text, chunk["text"]),
            )
            for chunk in more.get("chunks", ())
        ]

    def _details(self, one: Passage, text: str, own: str) -> list[dict[str, Any]]:
        """Return the details of a segment with its `own` text, in a passage with this text, if they are requested."""
        if "seek" not in one.figures:
            return [dict(one.figures)] if one.figures else []
        data = text.encode()
        tokens = self._tokenizer.encode(own, add_special_tokens=False)
        return [{**one.figures, "tokens": tokens, "compression_ratio": len(data) / len(zlib.compress(data))}]
