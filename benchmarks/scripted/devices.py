"""The scripted devices of devices.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedDevice:
    """The time that a device takes for a batch, by its padded tokens."""

    about: str
    launch_s: float = 0.0
    base_s: float = 0.0
    per_token_s: float = 0.0

    def seconds(self, padded_tokens: int) -> float:
        return max(self.launch_s, self.base_s + self.per_token_s * padded_tokens)


def named(name: str) -> ScriptedDevice:
    """Return a device of devices.toml, or that of a number of tokens a second. Raises KeyError."""
    if name.isdecimal():
        return ScriptedDevice(about=f"{name} tokens/s", base_s=0.25e-3, per_token_s=1 / int(name))
    return ScriptedDevice(**tomllib.loads(Path(__file__).with_name("devices.toml").read_text("utf-8"))[name])
