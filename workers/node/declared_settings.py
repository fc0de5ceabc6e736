"""A model's settings as declared for the running fleet (`results_store.sql.declarations`); they override the file."""

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
    """Return a digest of a model's settings.

    Default values do not count, so that a release with more settings does not change the digest of a file.
    """
    usual = {
        field.name: field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        for field in msgspec.structs.fields(chosen)
    }
    own = {name: value for name, value in msgspec.structs.asdict(chosen).items() if value != usual[name]}
    return hashlib.blake2b(msgspec.json.encode(own, order="deterministic"), digest_size=8).hexdigest()


def with_model(settings: Settings, name: str, declared: Mapping[str, Any] | None) -> Settings:
    """Return the settings with a model's declared table, or unchanged without one. Raises ConfigurationError."""
    if declared is None:
        return settings
    try:
        chosen = msgspec.convert(dict(declared), ModelSettings)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"models.{name}, as declared: {error}") from error
    whole = msgspec.structs.replace(settings, models={**settings.models, name: chosen})
    _ = whole.catalogue  # raises for an unknown kind
    return whole


def established(settings: Settings, declarations: Mapping[str, Declaration]) -> Settings:
    """Return the settings that a worker starts with, and log each model that differs from the worker's file."""
    for name in settings.served:
        declaration = declarations.get(name)
        if declaration is None or declaration.established is None:
            continue
        own = settings.models.get(name)
        settings = with_model(settings, name, declaration.established)
        if own is not None and digest(own) != digest(settings.models[name]):
            logger.warning(
                "models.%s is served as declared by `argosy models reload`, not by this worker's settings; "
                "run `argosy models reload %s` to declare these settings",
                name,
                name,
            )
    return settings


def forget_outdated(settings: Settings, store: Store) -> None:
    """Take back declarations of models whose table changed in the file afterwards, for a fleet with only this file."""
    for name, declaration in store.declarations.every().items():
        own = settings.models.get(name)
        changed = own is not None and digest(own) != declaration.file_digest
        if changed and declaration.established is not None:
            logger.warning("models.%s was changed in the settings after its declaration; the settings apply", name)
            store.declarations.declare(name, None, proven=True)
