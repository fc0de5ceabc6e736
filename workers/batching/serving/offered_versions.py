"""The current offer of a node: its tasks, and the version of each model for new items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from producers.wire.catalogue import Catalogue
from workers.batching.roster import ServedModel


@dataclass(frozen=True, slots=True)
class OfferedVersions:
    """Matching tasks and models; `models` by name."""

    catalogue: Catalogue
    models: Mapping[str, ServedModel]


class CurrentVersions:
    """Holds the current offer. A preparation reads it once, so that its tasks and its model match."""

    def __init__(self, offer: OfferedVersions) -> None:
        self.now = offer
