"""JSON without spaces, in the bytes that the store has always kept: `msgspec` writes 1e-07 as 1e-7, and NaN as null."""

from __future__ import annotations

import json
from typing import Final

#: Return JSON text.
compact_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

#: Return JSON text. Raises ValueError for NaN and infinity.
strict_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
