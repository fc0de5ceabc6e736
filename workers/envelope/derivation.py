"""Inputs derived from earlier results: their results are read together for an envelope, their content is made per item.

Derived inputs are not stored: a cropped image is the image and a box, which are both stored already. So a step that is
computed again gets the same input again.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from producers.wire.errors import InputUnavailable, InvalidInput, InvalidMessage
from producers.wire.messages import DerivedInput, InlineBytes, Input, Item, stored_envelope
from producers.wire.pipelines.selectors import SELECTORS, CropOptions, PromptOptions, derived, prompted
from results_store.records import Result
from results_store.store import Store
from workers.envelope.input_limits import InputLimits
from workers.envelope.inputs import carried, read
from workers.envelope.preparation_turns import PreparationTurn
from workers.envelope.reached_places import ReachedPlaces

if TYPE_CHECKING:
    from PIL import Image

_FIELD = "input"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Derivation:
    """Make the inputs of a job's items, for an envelope: call `gather` first, then `input` for each item.

    `turn` is the envelope's turn to compute. It is given back during waits for the store or for an original. `reached`
    knows the places of inputs that are away.
    """

    def __init__(self, store: Store, limits: InputLimits, job: str, turn: PreparationTurn | None = None) -> None:
        self.turn = turn or PreparationTurn()
        self.reached = ReachedPlaces()
        self._store = store
        self._limits = limits
        self._job = job
        self._rows: dict[tuple[int, str], Result] = {}
        self._items: dict[tuple[str, int], Item] = {}
        self._image: tuple[tuple[int, str], Image.Image] | None = None

    def gather(self, items: Sequence[Item]) -> None:
        """Read the results from which these items derive, all at once. Raises StoreUnavailable."""
        made = [item.input for item in items if isinstance(item.input, DerivedInput)]
        if not made:
            return
        wanted = {key for value in made for key in value.of}
        found = self._store.results_of(self._job, sorted({seq for seq, _ in wanted}))
        self._rows |= {(row.seq, row.task): row for row in found}
        originals = [key for value in made if _has_original(value) for key in value.of if key in self._rows]
        self._read_envelopes({self._rows[key].envelope for key in originals})

    def input(self, value: Input) -> Input:
        """Return the content of a derived input, or any other input as it is.

        Raises InvalidInput, InputUnavailable or StoreUnavailable.
        """
        if not isinstance(value, DerivedInput):
            return value
        if value.take not in SELECTORS or not value.of:
            raise InvalidInput(
                _FIELD, f"uses the selector {value.take!r}, which this worker does not have", "upgrade the worker"
            )
        if value.take == "crop":
            return self._crop(value)
        if value.take == "input":
            return self._original(value.of[0])
        if value.take == "prompt":
            return self._prompt(value)
        outputs = [self._row(key).output for key in value.of]
        try:
            return derived(SELECTORS[value.take], outputs, value.part, value.options)
        except (IndexError, msgspec.ValidationError) as error:
            raise InvalidInput(_FIELD, f"cannot be derived from the step before: {error}") from error

    def _prompt(self, value: DerivedInput) -> Input:
        key = value.of[0]
        original = self._original(key)
        with self.turn.reading(original), self.reached.reading(original):
            original = carried(original, self._limits)
        if not isinstance(original, str):
            raise InvalidInput(_FIELD, f"is a prompt that needs a text, not {type(original).__name__}")
        try:
            return prompted(self._row(key).output, original, msgspec.convert(value.options, PromptOptions))
        except msgspec.ValidationError as error:
            raise InvalidInput(_FIELD, f"cannot be derived from the step before: {error}") from error

    def _crop(self, value: DerivedInput) -> InlineBytes:
        key = value.of[0]
        try:
            options = msgspec.convert(value.options, CropOptions)
            box = self._row(key).output[value.part]["box"]
            corners = tuple(box[name] for name in _CORNERS)
        except (KeyError, IndexError, TypeError, msgspec.ValidationError) as error:
            raise InvalidInput(_FIELD, f"has no box to crop: {error}") from error
        image = self._opened(key)
        cut = image.crop(_frame(corners, options.margin, image.size))
        file = io.BytesIO()
        cut.save(file, "PNG", compress_level=1)
        return InlineBytes(file.getvalue())

    def _opened(self, key: tuple[int, str]) -> Image.Image:
        """Return the decoded image that a step read. The last image is kept, because its parts follow each other."""
        from workers.models.pictures.pixels import rgb

        if self._image is None or self._image[0] != key:
            original = self._original(key)
            with self.turn.reading(original), self.reached.reading(original):
                content = read(original, self._limits)
            if not isinstance(content, bytes):
                raise InvalidInput(_FIELD, "is a crop, but its original is not an image")
            self._image = (key, rgb(content, lambda image: image))
        return self._image[1]

    def _original(self, key: tuple[int, str]) -> Input:
        """Return the input of the item that a result belongs to."""
        row = self._row(key)
        if (row.envelope, row.seq) not in self._items:
            self._read_envelopes({row.envelope})
        item = self._items.get((row.envelope, row.seq))
        if item is None:
            raise InputUnavailable(_FIELD, "derives from an input that is no longer stored", "submit it again")
        return self.input(item.input)

    def _row(self, key: tuple[int, str]) -> Result:
        if key not in self._rows:
            with self.turn.given_back():
                found = self._store.results_of(self._job, [key[0]])
            self._rows |= {(row.seq, row.task): row for row in found}
        if key not in self._rows:
            raise InputUnavailable(_FIELD, "derives from a result that is no longer stored", "submit it again")
        return self._rows[key]

    def _read_envelopes(self, ids: set[str]) -> None:
        if not ids:
            return
        with self.turn.given_back():
            kept = self._store.inputs(ids)
        for id_, payload in kept.items():
            try:
                envelope, _ = stored_envelope(*payload)
            except InvalidMessage:
                continue  # items that need it fail with InputUnavailable
            self._items |= {(id_, item.seq): item for item in envelope.items}


def _has_original(value: DerivedInput) -> bool:
    return value.take in SELECTORS and SELECTORS[value.take].original


def _frame(corners: Sequence[Any], margin: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a box with its margin, within an image of `size` (width, height)."""
    left, top, right, bottom = (float(corner) for corner in corners)
    aside, above = margin * (right - left), margin * (bottom - top)
    frame = (
        max(0, math.floor(left - aside)),
        max(0, math.floor(top - above)),
        min(size[0], math.ceil(right + aside)),
        min(size[1], math.ceil(bottom + above)),
    )
    if frame[0] >= frame[2] or frame[1] >= frame[3]:
        raise InvalidInput(_FIELD, f"is an empty box: {dict(zip(_CORNERS, corners, strict=True))}")
    return frame
