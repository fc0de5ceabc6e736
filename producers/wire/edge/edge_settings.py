"""The table ``[edge]`` of a site's ``fleet.toml``: the centre's address, the tasks of the cascade, their bounds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import time
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from producers.wire.errors import ConfigurationError
from producers.wire.fleet_file import beside, read_toml, typed

#: The model of all cascade tasks. No worker serves it: its envelopes go to the forwarder.
EDGE = "edge"

#: The variable with the key for the centre's gateway, if no `key_file` has it.
KEY_VARIABLE = "ARGOSY_EDGE_KEY"

#: A gateway without TLS is accepted on the same machine only: the key would be readable on the way.
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

#: Smaller pictures tell a model nothing.
LEAST_SIDE = 32

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TIME = r"([01]\d|2[0-3]):[0-5]\d"
_HOURS = re.compile(f"{_TIME}-{_TIME}")


class EdgeTask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task of the cascade, under the name that programs use.

    `site` and `centre` are the names of the task that answers at the site and at the centre; the default is its own
    name. An answer of the site under `threshold` (0 to 1, its best label's score) is sent on. With `stay_on_site` no
    item of this task ever leaves. With `only_at_centre`, which needs a `kind`, the site has no model for it. Pictures
    are sent on with at most `most_side` pixels on their longer side (0: as they are).
    """

    site: str = ""
    centre: str = ""
    threshold: float = 0.9
    stay_on_site: bool = False
    only_at_centre: bool = False
    kind: str = ""
    most_side: int = 0

    def __post_init__(self) -> None:
        if self.most_side and self.most_side < LEAST_SIDE:
            raise ValueError(f"`most_side` must be {LEAST_SIDE} pixels or more, or 0 for pictures as they are")
        if not 0 <= self.threshold <= 1:
            raise ValueError("`threshold` must be 0 to 1")
        if self.stay_on_site and self.only_at_centre:
            raise ValueError(
                "`stay_on_site` and `only_at_centre` exclude each other: its items could be answered nowhere"
            )
        if self.only_at_centre and self.site:
            raise ValueError("`site` names a task that answers at the site; leave it out with `only_at_centre`")
        if self.kind and not self.only_at_centre:
            raise ValueError("`kind` is for `only_at_centre`; otherwise it is that of the site's task")


class EdgeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A site and its centre.

    `centre` is the address of the centre's gateway, `key_file` has a key for it (default: ``ARGOSY_EDGE_KEY``),
    `ca_file` the certificates to trust in place of the system's. Items without a deadline wait for the centre for
    `wait_s` (0: without limit). At most `spool_items` items, and `spool_mib` of their inputs, wait for the centre; when
    they are full, the oldest (``drop-oldest``) or the new one (``refuse-new``) is answered by the site alone. A centre
    that says nothing for `answer_s` counts as away. With `share_load`, items that the site's own models would compute
    after their deadline go to the centre without being asked here. At most `max_kbit_s` of inputs a second are sent on
    (0: without limit), and only in these `hours` of the site's local time, as "22:00-06:00" (empty: always). With
    `tell_counts` the centre is told how many items the site answered by itself, marked ones included.
    """

    site: str = ""
    centre: str
    key_file: str = ""
    ca_file: str = ""
    wait_s: float = 0.0
    answer_s: float = 30.0
    share_load: bool = False
    max_kbit_s: float = 0.0
    hours: str = ""
    tell_counts: bool = False
    spool_items: int = 100_000
    spool_mib: float = 1024.0
    when_full: Literal["drop-oldest", "refuse-new"] = "drop-oldest"
    tasks: dict[str, EdgeTask]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.site):
            raise ValueError("`site` must be a name of 1 to 64 letters, digits and . _ -")
        address = urlsplit(self.centre)
        if address.scheme not in ("http", "https") or not address.hostname or address.query or address.fragment:
            raise ValueError("`centre` must be the address of a gateway, as https://argosy.example")
        if address.username or address.password:
            raise ValueError("`centre` must hold no password; write the key into `key_file`")
        if address.scheme == "http" and address.hostname not in _LOOPBACK:
            raise ValueError(
                "`centre` must begin with https:// unless it is on this machine: others could read the key"
            )
        if not 0 <= self.wait_s < math.inf:
            raise ValueError("`wait_s` must be a number of seconds, or 0 for no limit")
        if not 0 < self.answer_s < math.inf:
            raise ValueError("`answer_s` must be a number of seconds over 0")
        self._check_sending()
        if self.spool_items < 1 or not self.spool_mib > 0:
            raise ValueError("`spool_items` must be 1 or more, `spool_mib` over 0")
        if not self.tasks:
            raise ValueError("`tasks` is empty; name a task, as [edge.tasks.sentiment]")

    def _check_sending(self) -> None:
        if not 0 <= self.max_kbit_s < math.inf:
            raise ValueError("`max_kbit_s` must be a number of kilobits a second, or 0 for no limit")
        if self.hours and not _HOURS.fullmatch(self.hours):
            raise ValueError('`hours` must be two times of a day, as "22:00-06:00", or empty')

    def sends_at(self, now: time) -> bool:
        """Return whether items may be sent on at a time of the day. Hours from a time to the same time are all."""
        if not self.hours:
            return True
        begin, end = map(time.fromisoformat, self.hours.split("-"))
        return begin <= now < end if begin < end else now >= begin or now < end

    def key(self, environment: Mapping[str, str]) -> str:
        """Return the key for the centre. Raises ConfigurationError if there is none."""
        if not self.key_file:
            if key := environment.get(KEY_VARIABLE, "").strip():
                return key
            raise ConfigurationError(f"edge.key_file: is missing, and {KEY_VARIABLE} is not set; give one of them")
        try:
            key = Path(self.key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"edge.key_file: {self.key_file} cannot be read: {error}") from error
        if not key or not key.isascii() or not key.isprintable():
            raise ConfigurationError(
                f"edge.key_file: {self.key_file} holds no key; write the text of `keys add` into it"
            )
        return key


def edge_settings(path: str | Path) -> EdgeSettings | None:
    """Return the ``[edge]`` table of a ``fleet.toml``, or None. Raises ConfigurationError, naming the setting.

    Relative paths count from the file's folder.
    """
    file = read_toml(path)
    if "edge" not in file:
        return None
    table = typed(file["edge"], dict[str, Any], f"{path}: edge")
    tasks = typed(table.get("tasks", {}), dict[str, Any], f"{path}: edge.tasks")
    for name, own in tasks.items():
        typed(own, EdgeTask, f"{path}: edge.tasks.{name}")  # so that an error names the task
    if "url" in typed(file.get("blobs", {}), dict[str, Any], f"{path}: blobs"):
        problem = "is for fleets whose inputs lie beside the store; a site's inputs stand in its spool"
        raise ConfigurationError(f"{path}: blobs.url: {problem}; leave it out beside [edge]")
    found = typed(table, EdgeSettings, f"{path}: edge")
    paths = {name: str(beside(path, given)) for name in ("key_file", "ca_file") if (given := getattr(found, name))}
    return msgspec.structs.replace(found, **paths)
