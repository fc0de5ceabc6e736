"""The kind of a user's own class: JSON in and JSON out, of the types that the class declares."""

from __future__ import annotations

from typing import Any

from producers.wire.kinds.kind import Kind, NoParams

#: Its schemas come from the model's class (`Model.input_type`, `Model.output_type`). Workers keep them in the store.
CUSTOM = Kind("custom", "json", NoParams, Any, "JSON of the form that the model's class declares", strict=True)

CUSTOM_KINDS = (CUSTOM,)
