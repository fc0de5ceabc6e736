"""The model for a speech checkpoint: Whisper, or one for CTC."""

from __future__ import annotations

from producers.wire.errors import ConfigurationError
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.interface.model import ModelSpec
from workers.models.speech.ctc import CtcModel
from workers.models.speech.recognition import RecognitionModel
from workers.models.speech.whisper import WhisperModel


def recogniser(spec: ModelSpec) -> RecognitionModel:
    """Return the model for a checkpoint: Whisper, or one whose letters fall out frame by frame (CTC)."""
    where = f"models.{spec.name}"
    config = Checkpoint(spec.folder, where).config
    if config.get("model_type") == "whisper":
        return WhisperModel(spec)
    names = config.get("architectures") or [""]
    if str(names[0]).endswith("ForCTC"):
        return CtcModel(spec)
    raise ConfigurationError(f"{where}: {names[0] or 'it'} is neither a Whisper model nor one for CTC")
