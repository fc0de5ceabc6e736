"""Choose the model class of a speech checkpoint: Whisper or CTC."""

from __future__ import annotations

from producers.wire.errors import ConfigurationError
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.interface.model import ModelSpec
from workers.models.speech.ctc import CtcModel
from workers.models.speech.recognition import RecognitionModel
from workers.models.speech.whisper import WhisperModel


def recogniser(spec: ModelSpec) -> RecognitionModel:
    """Return the model of a checkpoint: Whisper or CTC. Raises ConfigurationError if it is neither."""
    where = f"models.{spec.name}"
    config = Checkpoint(spec.folder, where).config
    if config.get("model_type") == "whisper":
        return WhisperModel(spec)
    names = config.get("architectures") or [""]
    if str(names[0]).endswith("ForCTC"):
        return CtcModel(spec)
    raise ConfigurationError(f"{where}: {names[0] or 'the model'} is neither a Whisper model nor a CTC model")
