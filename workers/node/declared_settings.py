"""A model's settings as an operator declared them for the running fleet, over those of this worker's file (`results_store.sql.declarations`)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from producers.wire.errors import ConfigurationError
from results_store.records import Declaration
from results_store.store import Store
from workers.settings import ModelSettings, Settings

logger = logging.getLogger(__name__)


def table(chosen: ModelSettings) -> dict[str, Any]:
    """Return a model's settings as plain values: all of them, so that they mean the same to every worker."""
    found: dict[str, Any] = msgspec.to_builtins(chosen)
    return found


def digest(chosen: ModelSettings) -> str:
    """Return what tells one table of settings from another.

    What is as it is by default does not count: a release that knows more settings is no change of the file.
    """
    usual = {
        field.name: field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        for field in msgspec.structs.fields(chosen)
    }
    own = {name: value for name, value in msgspec.structs.asdict(chosen).items() if value != usual[name]}
    return hashlib.blake2b(msgspec.json.encode(own, order="deterministic"), digest_size=8).hexdigest()


def with_model(settings: Settings, name: str, declared: Mapping[str, Any] | None) -> Settings:
    """Return the settings with a model's table replaced, or as they are where nothing is declared. Raises ConfigurationError."""
    if declared is None:
        return settings
    try:
        chosen = msgspec.convert(dict(declared), ModelSettings)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"models.{name}, as declared: {error}") from error
    whole = msgspec.structs.replace(settings, models={**settings.models, name: chosen})
    _ = whole.catalogue  # a wrong kind is found here
    return whole


def established(settings: Settings, declarations: Mapping[str, Declaration]) -> Settings:
    """Return the settings that a worker starts with. Says where they are not its file's."""
    for name in settings.served:
        declaration = declarations.get(name)
        if declaration is None or declaration.established is None:
            continue
        own = settings.models.get(name)
        settings = with_model(settings, name, declaration.established)
        if own is not None and digest(own) != digest(settings.models[name]):
            logger.warning(
                "models.%s is as declared by `argosy models reload`, not as this worker's settings have it; "
                "`argosy models reload %s` declares those",
                name,
                name,
            )
    return settings


def forget_outdated(settings: Settings, store: Store) -> None:
    """Take back what was declared of models whose table in the file was changed afterwards: for a fleet that has this one file."""
    for name, declaration in store.declarations.every().items():
        own = settings.models.get(name)
        changed = own is not None and digest(own) != declaration.file_digest
        if changed and declaration.established is not None:
            logger.warning("models.%s was changed in the settings since it was declared; they hold", name)
            store.declarations.declare(name, None, proven=True)
