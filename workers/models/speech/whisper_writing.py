"""Whisper's decoder on the device: windows are written down together, greedily, and those that have ended leave the batch.

What may be written when (suppressed tokens, timestamps in pairs and in order) is transformers' own code, as is what makes texts and
times of tokens; the steps are ours, since `generate` goes on with all windows until the longest one ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from workers.models.speech.recordings import Window

Rule: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

#: What is said in a window: the text, and (text, start, end) of its stretches.
Said: TypeAlias = tuple[str, list[Any]]

#: The batch is made smaller when this part of its windows has ended: each time, all keys and values are copied.
_GONE = 0.25

#: Frames of the spectrum in a second, and for each step of a timestamp.
_FRAMES_PER_S = 100
_FRAMES_PER_STEP = 2

#: What is left of a window behind the last stretch that ended, and is not worth a pass of its own.
_REST_FRAMES = 50


@dataclass
class _Passage:
    """A window, or what is left of it from `frame` on, that is being written down; `tokens` are without the end."""

    place: int
    frame: int
    spectrum: torch.Tensor
    prompt: tuple[int, ...]
    timestamps: bool | str
    tokens: list[int] = field(default_factory=list)


class Writer:
    """Writes down what is said in windows. One network, one thread."""

    def __init__(self, network: Any, folder: Path, most_tokens: int) -> None:
        from transformers import AutoTokenizer

        self._network = network
        self._told = network.generation_config
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self._most_tokens = most_tokens
        self._no_timestamps = getattr(self._told, "no_timestamps_token_id", None)

    def write(
        self,
        spectra: torch.Tensor,
        windows: Sequence[Window],
        settings: Sequence[Mapping[str, Any]],
        languages: dict[int, str],
    ) -> list[Said]:
        """Return what is said in each window, `spectra` `(windows, bands, frames)`. What language a row is in is kept in `languages`."""
        encoded = self._encode(spectra)
        self._hear_languages(encoded, windows, settings, languages)
        said: list[list[Said]] = [[] for _ in windows]
        waiting = [
            _Passage(n, 0, spectra[n], self._prompt(own, languages.get(window.row)), own["timestamps"])
            for n, (window, own) in enumerate(zip(windows, settings, strict=True))
        ]
        while waiting:
            self._write_down(waiting, encoded)
            for one in waiting:
                said[one.place].append(self._read(one, windows[one.place].length))
            waiting = [rest for one in waiting if (rest := self._rest(one, windows[one.place].length))]
            encoded = self._encode(torch.stack([one.spectrum for one in waiting])) if waiting else encoded
        return [("".join(text for text, _ in own), [chunk for _, chunks in own for chunk in chunks]) for own in said]

    def _encode(self, spectra: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self._network.model.encoder(spectra).last_hidden_state
        return hidden

    # --- prompts ---

    def _prompt(self, settings: Mapping[str, Any], heard: str | None) -> tuple[int, ...]:
        prompt = [int(self._told.decoder_start_token_id)]
        if known := getattr(self._told, "lang_to_id", None):
            prompt.append(int(known[settings["language"] or heard]))
            prompt.append(int(self._told.task_to_id[settings["task"]]))
        if self._no_timestamps is not None and not settings["timestamps"]:
            prompt.append(int(self._no_timestamps))
        return tuple(prompt)

    def _hear_languages(
        self,
        encoded: torch.Tensor,
        windows: Sequence[Window],
        settings: Sequence[Mapping[str, Any]],
        languages: dict[int, str],
    ) -> None:
        """Find the language of rows that nobody gave one for, by the likeliest of its tokens after the first window."""
        known = getattr(self._told, "lang_to_id", None)
        if not known:
            return
        unknown = [n for n, own in enumerate(settings) if not own["language"] and windows[n].number == 0]
        if not unknown:
            return
        start = torch.full((len(unknown), 1), int(self._told.decoder_start_token_id), device=encoded.device)
        hidden = self._network.model.decoder(input_ids=start, encoder_hidden_states=encoded[unknown], use_cache=False)
        names = list(known)
        scores = self._network.proj_out(hidden.last_hidden_state[:, -1])[:, [known[name] for name in names]]
        for n, best in zip(unknown, scores.argmax(-1).tolist(), strict=True):
            languages[windows[n].row] = names[best]

    # --- writing ---

    def _write_down(self, passages: Sequence[_Passage], encoded: torch.Tensor) -> None:
        """Fill in all passages' tokens. Those with prompts of one length and under one rule go together."""
        alike: dict[tuple[int, bool], list[int]] = {}
        for n, one in enumerate(passages):
            alike.setdefault((len(one.prompt), bool(one.timestamps)), []).append(n)
        for (_, timestamps), group in alike.items():
            prompts = torch.tensor([passages[n].prompt for n in group], device=encoded.device)
            for n, tokens in zip(group, self._greedy(prompts, encoded[group], timestamps=timestamps), strict=True):
                passages[n].tokens = tokens

    def _greedy(self, ids: torch.Tensor, encoded: torch.Tensor, *, timestamps: bool) -> list[list[int]]:
        """Return the likeliest tokens after each prompt, up to the end or to the most that may be."""
        rules = self._rules(ids.shape[1], timestamps=timestamps)
        begun, cache = ids.shape[1], self._cache()
        written: list[list[int]] = [[] for _ in ids]
        places = list(range(len(ids)))  # whose tokens the batch's rows are
        ended: set[int] = set()
        new = ids
        most = min(self._most_tokens, int(self._network.config.max_target_positions) - begun)
        for _ in range(most):
            scores = self._step(new, encoded, cache)
            for rule in rules:
                scores = rule(ids, scores)
            new = scores.argmax(-1, keepdim=True)
            ids = torch.cat([ids, new], dim=-1)
            for place, token in zip(places, new[:, 0].tolist(), strict=True):
                if place in ended or token in self._ends:
                    ended.add(place)
                else:
                    written[place].append(token)
            left = [row for row, place in enumerate(places) if place not in ended]
            if not left:
                break
            if len(places) - len(left) >= _GONE * len(places):
                kept = torch.tensor(left, device=ids.device)
                cache.batch_select_indices(kept)
                ids, new, encoded = ids[kept], new[kept], encoded[kept]
                places = [places[row] for row in left]
        return written

    def _step(self, new: torch.Tensor, encoded: torch.Tensor, cache: Any) -> torch.Tensor:
        hidden = self._network.model.decoder(
            input_ids=new, encoder_hidden_states=encoded, past_key_values=cache, use_cache=True
        ).last_hidden_state
        scores: torch.Tensor = self._network.proj_out(hidden[:, -1]).float()
        return scores

    def _cache(self) -> Any:
        from transformers import DynamicCache, EncoderDecoderCache

        return EncoderDecoderCache(DynamicCache(), DynamicCache())

    @property
    def _ends(self) -> tuple[int, ...]:
        ends = self._told.eos_token_id
        return tuple(ends) if isinstance(ends, list | tuple) else (ends,)

    def _rules(self, begun: int, *, timestamps: bool) -> list[Rule]:
        from transformers.generation.logits_process import (
            SuppressTokensAtBeginLogitsProcessor,
            SuppressTokensLogitsProcessor,
            WhisperTimeStampLogitsProcessor,
        )

        told, device = self._told, self._network.device
        rules: list[Rule] = []
        if told.begin_suppress_tokens:
            rules.append(SuppressTokensAtBeginLogitsProcessor(told.begin_suppress_tokens, begun, device=device))
        if told.suppress_tokens:
            rules.append(SuppressTokensLogitsProcessor(told.suppress_tokens, device=device))
        if timestamps:
            rules.append(WhisperTimeStampLogitsProcessor(told, begin_index=begun))
        return rules

    # --- reading what was written ---

    def _rest(self, one: _Passage, length: int) -> _Passage | None:
        """Return what is left of a window where its tokens end amid it: with a timestamp twice, the end of a stretch and the next one's
        beginning. What follows the last such pair was cut off, and is heard anew."""
        pair = self._last_pair(one)
        if pair is None:
            return None
        frame = one.frame + (one.tokens[pair] - self._first_timestamp) * _FRAMES_PER_STEP
        if frame == one.frame or length - frame < _REST_FRAMES:
            return None
        skipped = frame - one.frame
        silence = one.spectrum[:, -1:].expand(-1, skipped)
        spectrum = torch.cat([one.spectrum[:, skipped:], silence], dim=-1)
        return _Passage(one.place, frame, spectrum, one.prompt, one.timestamps)

    def _last_pair(self, one: _Passage) -> int | None:
        """Return where the last two timestamps in a row begin, unless the tokens end with a single one."""
        if not one.timestamps:
            return None
        are = [token >= self._first_timestamp for token in one.tokens]
        if are[-2:] == [False, True]:
            return None
        return next((n for n in range(len(are) - 2, -1, -1) if are[n] and are[n + 1]), None)

    @property
    def _first_timestamp(self) -> int:
        assert self._no_timestamps is not None, "asked for only where there are timestamps"
        return int(self._no_timestamps) + 1

    def _read(self, one: _Passage, length: int) -> Said:
        """Return a passage's text and stretches, with times in the window."""
        tokens = one.tokens
        pair = self._last_pair(one)
        if pair is not None and self._rest(one, length):
            tokens = tokens[: pair + 1]
        output: dict[str, Any] = {"tokens": torch.tensor([tokens], dtype=torch.long)}
        text, more = self._tokenizer._decode_asr(  # noqa: SLF001 - what transformers' pipeline calls
            [output],
            return_timestamps=one.timestamps,
            return_language=None,
            time_precision=_FRAMES_PER_STEP / _FRAMES_PER_S,
        )
        begins_s = one.frame / _FRAMES_PER_S
        return text, [(chunk["text"], *_times(chunk["timestamp"], begins_s)) for chunk in more.get("chunks", ())]


def _times(timestamp: Sequence[float | None], begins_s: float) -> tuple[float | None, float | None]:
    start, end = timestamp
    return (
        None if start is None else float(np.round(start + begins_s, 2)),
        None if end is None else float(np.round(end + begins_s, 2)),
    )
