"""What a node serves at the moment: its tasks, and the version of each model that new items are prepared for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from producers.wire.catalogue import Catalogue
from workers.batching.roster import ServedModel


@dataclass(frozen=True, slots=True)
class Offer:
    """Tasks and models that belong together; `models` by name."""

    catalogue: Catalogue
    models: Mapping[str, ServedModel]


class CurrentOffer:
    """The offer that holds now. Whoever prepares an item reads it once, so that its tasks and its model belong together."""

    def __init__(self, offer: Offer) -> None:
        self.now = offer
