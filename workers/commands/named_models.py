"""A model that a command names: one of the fleet's file, a folder with a `fleet.toml`, or a folder of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.settings import Settings

#: The kind of the task of a folder without fleet.toml, by the ending of its architecture's name.
_KINDS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}


def found(config: Path | None, model: str) -> tuple[Settings, str]:
    """Return the settings that have the model, and its name in them. Raises ConfigurationError."""
    from producers.wire.errors import ConfigurationError
    from producers.wire.fleet_file import read_toml
    from workers import settings

    folder = Path(model).expanduser()
    if (file := folder / "fleet.toml").is_file():
        names = list(read_toml(file).get("models", {}))
        if len(names) != 1:
            problem = f"{file} names {len(names)} models ({', '.join(names)})"
            raise ConfigurationError(f"{problem}; give the name of a model, with --config {file}")
        return settings.load(file), names[0]
    if (folder / "config.json").is_file():
        return _of_folder(settings.load(config), folder)
    if not folder.is_dir():
        return settings.load(config), model
    raise ConfigurationError(f"{folder}: has neither fleet.toml nor config.json; name a folder of a model")


def _of_folder(whole: Settings, folder: Path) -> tuple[Settings, str]:
    """Return settings with a folder of transformers as a model with one task, both of the folder's name."""
    import re

    import msgspec

    from producers.wire.errors import ConfigurationError
    from workers.models.huggingface.checkpoint import Checkpoint
    from workers.settings import ModelSettings

    name = re.sub(r"[^\w@+-]", "-", folder.resolve().name)
    architecture = next(iter(Checkpoint(folder, str(folder)).config.get("architectures") or [""]))
    kind = next((kind for ending, kind in _KINDS.items() if architecture.endswith(ending)), "")
    if not kind:
        remedy = "name its tasks in a fleet.toml beside it"
        raise ConfigurationError(f"{folder}: {architecture or 'no architecture'} has no kind of its own; {remedy}")
    own = ModelSettings(source={"path": str(folder.resolve())}, tasks={name: kind})
    return msgspec.structs.replace(whole, models={**whole.models, name: own}), name
