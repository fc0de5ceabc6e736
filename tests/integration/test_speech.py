"""Models that listen, by their folders and kinds alone: the answers of plain transformers, whoever shares the batch."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from producers.wire.errors import ConfigurationError, InputTooLarge
from tests import tiny_checkpoints as tiny
from tests.integration.conftest import Made
from tests.serving import Served, assert_alike, pipeline
from workers.models.speech.voice import Samples

RATE = 16_000
SPEECH = "automatic-speech-recognition"
SOUNDS = "audio-classification"

#: Tokens that the tiny Whisper writes at most; and what its pipeline is told, which would search with five beams.
MOST = 20
GREEDY = {"num_beams": 1, "max_new_tokens": MOST}


def clip(seconds: float, seed: int) -> Samples:
    """Something that hums and hisses."""
    random = np.random.default_rng(seed)
    at = np.arange(int(seconds * RATE)) / RATE
    hum = sum(
        0.1 * np.sin(2 * np.pi * pitch * at * (1 + 0.1 * np.sin(3 * at))) for pitch in random.uniform(100, 3000, 4)
    )
    return np.asarray(hum + random.normal(size=len(at)) * 0.01, dtype=np.float32)


def encoded(samples: Any, rate: int = RATE) -> bytes:
    made = io.BytesIO()
    soundfile.write(made, samples, rate, format="WAV", subtype="FLOAT")
    return made.getvalue()


#: Two of one length, and one that fills a window of the tiny Whisper.
CLIPS = [clip(seconds, seed) for seed, seconds in enumerate((0.5, 1.3, 0.5, 2.0, 0.9))]
FILES = [encoded(one) for one in CLIPS]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(level)


# --- Whisper --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("multilingual", "timestamps"),
    [(False, False), (False, "word"), (True, True)],
    ids=["english", "words", "multilingual"],
)
def test_whisper_writes_what_its_pipeline_writes(made: Made, multilingual: bool, timestamps: bool | str) -> None:
    """Token for token, and their times, all clips in one batch: greedily, and each heard once.

    The pipeline would go on listening to the silence behind a clip.
    """
    folder = made(tiny.whisper, multilingual=multilingual)
    theirs = pipeline(SPEECH, folder)
    once = {} if timestamps == "word" else {"force_unique_generate_call": True}
    options = {"return_timestamps": timestamps} if timestamps else {}
    expected = [theirs(one.copy(), generate_kwargs=GREEDY | once, **options) for one in CLIPS]
    found = Served(folder, {"said": SPEECH}, max_new_tokens=MOST).load().ask("said", FILES, **options)
    assert len({one["text"] for one in found}) > 1
    assert_alike(found, expected, 0.005)


def test_language_and_task_are_told_or_heard(made: Made) -> None:
    """By code, as the pipeline takes them; of a language that nobody gave, the ear's guess."""
    folder = made(tiny.whisper, multilingual=True)
    served, theirs = Served(folder, {"said": SPEECH}, max_new_tokens=MOST).load(), pipeline(SPEECH, folder)
    found = {}
    for language, task in (("french", "translate"), ("de", "transcribe")):
        told = GREEDY | {"force_unique_generate_call": True, "language": language, "task": task}
        expected = [theirs(one.copy(), generate_kwargs=told) for one in CLIPS[:2]]
        found[task] = served.ask("said", FILES[:2], language=language, task=task)
        assert_alike(found[task], expected)
    assert found["translate"] != found["transcribe"]
    assert "one of de, en, fr" in str(served.refusal("said", FILES[0], language="klingon"))


def test_neighbours_do_not_change_what_is_written(made: Made) -> None:
    """Windows that end sooner leave the batch, others join it; times or none, and languages, are each item's own."""
    folder = made(tiny.whisper, multilingual=True)
    served = Served(folder, {"said": SPEECH}, max_new_tokens=MOST, windows_together=3).load()
    alone = [served.ask("said", [file], return_timestamps=True)[0] for file in FILES]
    random = np.random.default_rng(0)
    for _ in range(3):
        order = random.permutation(len(FILES))[: random.integers(2, len(FILES) + 1)]
        found = served.ask("said", [FILES[n] for n in order], return_timestamps=True)
        assert found == [alone[n] for n in order]


def test_a_long_recording_is_heard_in_windows(made: Made) -> None:
    """Cut in its pauses: the text is that of its parts, their times count from the beginning."""
    served = Served(made(tiny.whisper), {"said": SPEECH}, max_new_tokens=MOST).load()
    parts = [clip(1.5, 1), clip(1.2, 2), clip(1.4, 3)]
    pause = np.zeros(RATE, np.float32)
    whole = np.concatenate([part for one in parts for part in (pause, one)])
    params = {"said": served.catalogue.check_params(served.task("said"), {"return_timestamps": True}, field="params")}
    prepared = served.model.prepare(encoded(whole), params)
    begins = [1.0, 3.5, 5.7]
    assert prepared.size == len(prepared.arrays["lengths"]) == 3
    duration, *starts_s = prepared.aside["said"]
    assert duration == len(whole) / RATE
    assert starts_s == pytest.approx([at - 0.2 for at in begins], abs=0.05)
    [found] = served.ask("said", [encoded(whole)], return_timestamps=True)
    assert found["text"] == "".join(chunk["text"] for chunk in found["chunks"])
    starts = [chunk["timestamp"][0] for chunk in found["chunks"] if chunk["timestamp"][0] is not None]
    assert starts == sorted(starts)
    assert starts[-1] > 5.0


def test_details_of_segments(made: Made) -> None:
    """They change no answer; probabilities are those of the network when it reads the same tokens at once."""
    import torch

    from workers.models.speech import whisper_steps

    served = Served(made(tiny.whisper, multilingual=True), {"said": SPEECH}, max_new_tokens=MOST).load()
    plain = served.ask("said", FILES, return_timestamps=True)
    told = served.ask("said", FILES, return_timestamps=True, return_details=True)
    for one, other, samples in zip(told, plain, CLIPS, strict=True):
        assert one["duration"] == pytest.approx(len(samples) / RATE, abs=1e-3)
        assert one["language"] in ("english", "french", "german")
        assert [{name: chunk[name] for name in ("text", "timestamp")} for chunk in one["chunks"]] == other["chunks"]
        for chunk in one["chunks"]:
            assert chunk["avg_logprob"] < 0 < chunk["no_speech_prob"] < 1
            assert chunk["seek"] == 0
            assert served.model._writer._tokenizer.decode(chunk["tokens"]) == chunk["text"]

    network = served.model.networks.only
    config, begun = network.generation_config, 3
    prompts = torch.tensor([[config.decoder_start_token_id, *config.lang_to_id.values()][:begun]] * 2)
    torch.manual_seed(0)
    encoded = torch.randn(2, network.config.max_source_positions, network.config.d_model)
    with torch.inference_mode():
        written = whisper_steps.greedy(network, prompts, encoded, MOST, timestamps=True, measured=True)
        rules = whisper_steps._rules(network, begun, timestamps=True)
        for row, one in enumerate(written):
            ids = torch.tensor([[*prompts[row].tolist(), *one.tokens, config.eos_token_id]])
            hidden = network.model.decoder(input_ids=ids, encoder_hidden_states=encoded[row : row + 1])
            logits = network.proj_out(hidden.last_hidden_state).float()
            logprob = 0.0
            for place in range(begun, min(begun + MOST, ids.shape[1])):
                scores = logits[:, place - 1].clone()
                for rule in rules:
                    scores = rule(ids[:, :place], scores)
                logprob += float(scores.log_softmax(-1)[0, ids[0, place]])
            assert one.logprob == pytest.approx(logprob, abs=1e-3)
            silence = logits[0, 0].softmax(-1)[config.no_timestamps_token_id - 1]
            assert one.no_speech_prob == pytest.approx(float(silence), abs=1e-6)


def test_what_a_window_leaves_out_is_heard_anew(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the tokens end with two timestamps amid a window, as its pipeline does it: down to the last frame, for
    once.
    """
    from workers.models.speech import whisper_decoding

    monkeypatch.setattr(whisper_decoding, "_REST_FRAMES", 1)
    folder = made(tiny.whisper, times=1.0)
    served, theirs = Served(folder, {"said": SPEECH}, max_new_tokens=MOST).load(), pipeline(SPEECH, folder)
    passes: list[int] = []
    network = served.model.networks.only.model.encoder
    network.register_forward_hook(lambda *_: passes.append(1))
    for seed in range(2):
        whole = clip(2.0, seed)
        expected = theirs(whole.copy(), generate_kwargs=dict(GREEDY), return_timestamps=True)
        [found] = served.ask("said", [encoded(whole)], return_timestamps=True)
        assert found["text"] == expected["text"]
    assert len(passes) > 2


def test_silence_says_nothing(made: Made) -> None:
    """Whisper itself would make something up. It costs no pass."""
    served = Served(made(tiny.whisper), {"said": SPEECH}).load()
    silence = encoded(np.zeros(RATE, np.float32))
    found = served.ask("said", [silence, FILES[0], silence], return_timestamps=True)
    assert found[0] == found[2] == {"text": "", "chunks": []}
    assert found[1]["text"]
    assert served.ask("said", [silence]) == [{"text": ""}]


# --- CTC ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("Wav2Vec2ForCTC", {"norm": "group"}),
        ("HubertForCTC", {"norm": "layer"}),
        ("Wav2Vec2ForCTC", {"norm": "layer", "add_adapter": True, "num_adapter_layers": 2, "output_hidden_size": 32}),
    ],
)
def test_ctc_spells_what_its_pipeline_spells(made: Made, name: str, config: dict[str, Any]) -> None:
    """Words and characters with their times, all clips in one batch; where padding can be masked, in one pass."""
    folder = made(tiny.wav2vec2, name, **config)
    theirs, served = pipeline(SPEECH, folder), Served(folder, {"said": SPEECH}).load()
    for options in ({}, {"return_timestamps": "word"}, {"return_timestamps": "char"}):
        assert_alike(served.ask("said", FILES, **options), [theirs(one.copy(), **options) for one in CLIPS], 0.001)
    assert served.ask("said", FILES, return_timestamps=True) == served.ask("said", FILES, return_timestamps="word")
    alone = [served.ask("said", [file])[0] for file in FILES]
    assert served.ask("said", FILES[::-1]) == alone[::-1]
    assert len({one["text"] for one in alone}) > 1


def test_ctc_hears_long_recordings_in_windows(made: Made) -> None:
    served = Served(made(tiny.wav2vec2), {"said": SPEECH}, max_audio_s=60).load()
    pause = np.zeros(2 * RATE, np.float32)
    parts = [clip(16.0, 1), clip(15.0, 2)]
    [whole] = served.ask("said", [encoded(np.concatenate([parts[0], pause, parts[1]]))], return_timestamps="word")
    assert whole["text"] == " ".join(chunk["text"] for chunk in whole["chunks"])
    assert whole["chunks"][-1]["timestamp"][1] == pytest.approx(33, abs=1)


# --- classification -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maker", "head", "config"),
    [
        (tiny.wav2vec2, "Wav2Vec2ForSequenceClassification", {}),
        (tiny.wav2vec2, "Wav2Vec2ForSequenceClassification", {"norm": "layer"}),
        (tiny.wav2vec2, "HubertForSequenceClassification", {"problem_type": "multi_label_classification"}),
        (tiny.ast, "ASTForAudioClassification", {}),
        (tiny.whisper, "WhisperForAudioClassification", {}),
    ],
    ids=["wav2vec2", "wav2vec2-layer", "hubert-several-labels", "ast", "whisper"],
)
def test_audio_classification(made: Made, maker: Callable[..., Path], head: str, config: dict[str, Any]) -> None:
    """Samples or spectra, masked padding or none: the pipeline's scores, whoever shares the batch."""
    folder = made(maker, head, num_labels=3, **config)
    served, theirs = Served(folder, {"sort": SOUNDS}).load(), pipeline(SOUNDS, folder)
    assert_alike(served.ask("sort", FILES), [theirs(one.copy()) for one in CLIPS])
    assert_alike([served.ask("sort", [file])[0] for file in FILES], served.ask("sort", FILES))
    assert all(len(answer) == 1 for answer in served.ask("sort", FILES[:2], top_k=1))


# --- what is refused ------------------------------------------------------------------------------


def test_what_cannot_be_heard_is_refused(made: Made) -> None:
    """By name, before anything is computed."""
    whisper = Served(made(tiny.whisper), {"said": SPEECH}, max_audio_s=1.0)
    letters = Served(made(tiny.wav2vec2), {"said": SPEECH})
    sounds = Served(made(tiny.ast, "ASTForAudioClassification", num_labels=3), {"sort": SOUNDS}, max_audio_s=1.0)
    for served, task in ((whisper, "said"), (sounds, "sort")):
        assert isinstance(served.refusal(task, FILES[1]), InputTooLarge)
        assert "audio" in str(served.refusal(task, b"no sound"))
    assert "under the 400 of a frame" in str(sounds.refusal("sort", encoded(CLIPS[0][:300])))
    waves = Served(made(tiny.wav2vec2, "Wav2Vec2ForSequenceClassification", num_labels=3), {"sort": SOUNDS})
    assert "too few to hear" in str(waves.refusal("sort", encoded(CLIPS[0][:30])))
    for served, params, problem in (
        (whisper, {"return_timestamps": "char"}, 'ask for "word"'),
        (whisper, {"language": "french"}, "multilingual"),
        (whisper, {"task": "translate"}, "multilingual"),
        (letters, {"language": "fr"}, "multilingual"),
    ):
        assert problem in str(served.refusal("said", FILES[0], **params))


def test_a_wrong_setting_is_named(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="neither a Whisper model nor a CTC model"):
        Served(made(tiny.bert), {"said": SPEECH})
    with pytest.raises(ConfigurationError, match="cannot share a pass"):
        Served(made(tiny.whisper), {"said": SPEECH, "sort": SOUNDS})
    with pytest.raises(ConfigurationError, match=r"options.voice: .*silero.* is missing"):
        Served(made(tiny.whisper), {"said": SPEECH}, voice=str(tmp_path)).load()
    for option, value, problem in (
        ("max_tokens", 3, "not an option"),
        ("max_audio_s", "an hour", "must be a number over 0"),
        ("max_new_tokens", 0, "must be a whole number, 1 or more"),
        ("windows_together", 2.5, "must be a whole number"),
    ):
        with pytest.raises(ConfigurationError, match=rf"{option}: {problem}"):
            _ = Served(made(tiny.whisper), {"said": SPEECH}, **{option: value}).model.revision
    with pytest.raises(ConfigurationError, match="max_audio_s: must be a number over 0, not -1"):
        _ = Served(
            made(tiny.ast, "ASTForAudioClassification", num_labels=3), {"sort": SOUNDS}, max_audio_s=-1
        ).model.revision


def test_an_extractor_that_we_do_not_follow_is_found_out(made: Made, tmp_path: Path) -> None:
    """Recordings prepared otherwise than in training are answered with confidence, and wrongly."""
    import json
    import shutil

    folder = shutil.copytree(made(tiny.whisper), tmp_path / "copy")
    file = folder / "preprocessor_config.json"
    told = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(told | {"dither": 0.1}), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="not prepared as by WhisperFeatureExtractor"):
        Served(folder, {"said": SPEECH}).load()
    file.write_text(json.dumps(told | {"feature_extractor_type": "ClapFeatureExtractor"}), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="has the extractor 'ClapFeatureExtractor'"):
        Served(folder, {"said": SPEECH}).load()


def test_preparing_and_finishing_never_import_torch(made: Made) -> None:
    """The Celery parent stays light."""
    code = f"""
import sys
from pathlib import Path
from tests.serving import Served
from tests.integration.test_speech import FILES
for folder, kind in (({str(made(tiny.whisper))!r}, "{SPEECH}"), ({str(made(tiny.ast, "ASTForAudioClassification", num_labels=3))!r}, "{SOUNDS}")):
    served = Served(Path(folder), {{"task": kind}})
    served.model.revision
    served.model.collate([served.model.prepare(FILES[0], {{"task": served.task("task").kind.params()}})])
loaded = sorted({{"torch", "transformers"}} & set(sys.modules))
sys.exit(f"loaded {{loaded}}" if loaded else 0)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
