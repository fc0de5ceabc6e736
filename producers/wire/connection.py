"""The addresses of the broker and the store: from the caller, the environment, or the local fleet.

Each address comes from the first of these places that has it:

1. the caller's argument;
2. ``ARGOSY_BROKER_URL`` and ``ARGOSY_STORE_URL``, with the passwords in the files that ``ARGOSY_BROKER_PASSWORD_FILE``
   and ``ARGOSY_STORE_PASSWORD_FILE`` name, if set;
3. ``fleet.json`` in ``ARGOSY_HOME``, written by `argosy up`. It is read only if neither address is given otherwise,
   so that a broker is never paired with the store of another fleet.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

import msgspec

from producers.wire.blobs import BlobSettings
from producers.wire.catalogue import Catalogue
from producers.wire.edge.cascade_tasks import programs_catalogue
from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.fleet_file import expanded, read_fleet, typed
from producers.wire.messages import Priority
from producers.wire.sockets import SENTINEL, sentinels, unix_socket

if TYPE_CHECKING:
    from producers.wire.result_files import ResultFiles

Part = Literal["broker", "store"]

_SCHEMES: Mapping[Part, tuple[str, ...]] = {
    "broker": ("redis", "rediss", "sentinel"),
    "store": ("sqlite", "postgresql", "postgres"),
}
_EXAMPLES: Mapping[Part, str] = {
    "broker": "redis://localhost:6379/0",
    "store": "sqlite:////var/lib/argosy/store.db or postgresql://user@host/argosy",
}
_TENANT = re.compile(r"[A-Za-z0-9._@:+-]{0,64}")
_SCHEME_AND_USER = re.compile(r"[^:/@=\s]+://[^:/@]*")
_NO_PORT = re.compile(r":(?!\d*(?:[/?;,]|$))")
_MAY_HOLD_PASSWORD = re.compile(rf"[@=]|{_NO_PORT.pattern}")
_PASSWORD_IN_QUERY = re.compile(r"([?&][^=&]*password=)[^&]*", re.IGNORECASE)

#: The beginnings of the variables that hold an address or a password of broker, store, blob storage, gateway or Flower:
#: those of Argosy and Celery, and those that PostgreSQL's and the clouds' libraries read by themselves.
_SECRETS = (
    "ARGOSY_BROKER_", "ARGOSY_STORE_", "ARGOSY_BLOB_", "ARGOSY_GATEWAY_", "CELERY_BROKER_", "CELERY_RESULT_", "FLOWER_",
    "PGPASS", "PGSERVICE", "AWS_ACCESS_KEY", "AWS_SECRET_", "AWS_SESSION_", "AWS_SHARED_CREDENTIALS_",
    "AWS_WEB_IDENTITY_", "AZURE_CLIENT_", "AZURE_STORAGE_", "GOOGLE_APPLICATION_CREDENTIALS", "FSSPEC_",
)  # fmt: skip


class AdmissionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limit for new work: clients refuse it over so many seconds of queued work, by priority. Default: no limit."""

    max_queued_s: dict[Literal["interactive", "standard", "bulk"], float] = {}

    def __post_init__(self) -> None:
        for name, most_s in self.max_queued_s.items():
            if not most_s > 0:
                raise ValueError(f"`max_queued_s.{name}` must be over 0")

    @property
    def by_priority(self) -> dict[Priority, float]:
        return {Priority[name.upper()]: most_s for name, most_s in self.max_queued_s.items()}


class LogSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The form of a service's log: lines for people, or a JSON object a line for programs."""

    format: Literal["text", "json"] = "text"


class LocalFleet(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``fleet.json``, which `argosy up` writes while it runs."""

    pid: int
    broker_url: str
    store_url: str
    flower_url: str = ""
    config: str = ""
    started_at: float = 0.0

    @property
    def running(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # it runs, as another user
            return True
        return True


@dataclass(frozen=True, slots=True)
class Connection:
    """The two addresses, each looked up on first use: reading results needs no broker."""

    given_broker_url: str | None = field(default=None, repr=False)
    given_store_url: str | None = field(default=None, repr=False)
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    @property
    def broker_url(self) -> str:
        """The Redis URL with its password.

        Raises ConfigurationError if there is none, or if the local fleet has stopped.
        """
        url = self._set_url("broker")
        if url is not None:
            return url
        fleet = self._local_fleet("broker")
        if not fleet.running:
            raise ConfigurationError(
                f"the local fleet (process {fleet.pid}) has stopped; start it again with `argosy up`"
            )
        return fleet.broker_url

    @property
    def look_up(self) -> Callable[[], str] | None:
        """Returns the broker URL of the local fleet as it is then; None if the URL is given otherwise, and stays."""
        return (lambda: self.broker_url) if self._set_url("broker") is None else None

    @property
    def store_url(self) -> str:
        """The database URL, with its password. Raises ConfigurationError if there is none."""
        return self._set_url("store") or self._local_fleet("store").store_url

    @property
    def tenant(self) -> str:
        """The tenant in ``ARGOSY_TENANT``, or "". Raises InvalidInput."""
        return checked_tenant(self.environment.get("ARGOSY_TENANT", ""), "ARGOSY_TENANT")

    @property
    def catalogue(self) -> Catalogue:
        """The tasks of ``ARGOSY_FLEET``'s ``fleet.toml``, or else of the local fleet, or else the built-in tasks."""
        path = self.fleet_file
        return programs_catalogue(path) if path else Catalogue.builtin()

    @property
    def admission(self) -> AdmissionSettings:
        """The ``[admission]`` table of the same file. Raises ConfigurationError."""
        path = self.fleet_file
        return typed(read_fleet(path).get("admission", {}) if path else {}, AdmissionSettings, f"{path}: admission")

    @property
    def log(self) -> LogSettings:
        """The ``[log]`` table of the same file. ``ARGOSY_LOG_FORMAT`` overrides it. Raises ConfigurationError."""
        return log_settings(self.fleet_file, self.environment)

    @property
    def blobs(self) -> BlobSettings:
        """The ``[blobs]`` table of the same file. ``ARGOSY_BLOB_URL`` overrides its URL. Raises ConfigurationError."""
        path = self.fleet_file
        blobs = typed(read_fleet(path).get("blobs", {}) if path else {}, BlobSettings, f"{path}: blobs")
        url = self.environment.get("ARGOSY_BLOB_URL", "").strip()
        return msgspec.structs.replace(blobs, url=url) if url else blobs

    @property
    def files(self) -> ResultFiles:
        """The place of result files. Raises ConfigurationError if the fleet has none."""
        from producers.wire.result_files import ResultFiles, place_of_files

        return ResultFiles(place_of_files(self.blobs, self.store_url))

    @property
    def fleet_file(self) -> str | None:
        """The ``fleet.toml`` that ``ARGOSY_FLEET`` names, or else the file of the local fleet."""
        path = self.environment.get("ARGOSY_FLEET")
        if not path and self._set_url("broker") is None and self._set_url("store") is None:
            with suppress(ConfigurationError):  # no local fleet: the submission itself reports that
                path = self._local_fleet("broker").config
        return path

    def _set_url(self, part: Part) -> str | None:
        given = self.given_broker_url if part == "broker" else self.given_store_url
        if given is not None:
            return checked_url(given, part, f"{part}_url")
        variable = _variable(part)
        url = self.environment.get(variable, "").strip()
        if not url:
            return None
        return self._with_password(checked_url(url, part, variable), part)

    def _with_password(self, url: str, part: Part) -> str:
        variable = f"ARGOSY_{part.upper()}_PASSWORD_FILE"
        path = self.environment.get(variable)
        if not path:
            return url
        try:
            password = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{variable}: {path} cannot be read: {error}") from error
        return with_password(url, password)

    def _local_fleet(self, part: Part) -> LocalFleet:
        other: Part = "store" if part == "broker" else "broker"
        if self._set_url(other) is not None:
            raise ConfigurationError(
                f"{_variable(part)}: not set, though the {other} is; set it, e.g. to {_EXAMPLES[part]}"
            )
        path = home(self.environment) / "fleet.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=LocalFleet)
        except FileNotFoundError:
            raise ConfigurationError(
                f"no {part}: {_variable(part)} is not set and no local fleet runs; start one with `argosy up`, "
                f"or set {_variable(part)}, e.g. to {_EXAMPLES[part]}"
            ) from None
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigurationError(
                f"{path}: cannot be read: {error}; stop the fleet, delete the file, start again"
            ) from error


def home(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the local fleet: ``ARGOSY_HOME``, or ``argosy`` in the user's data folder.

    Raises ConfigurationError if the user has no folder.
    """
    if environment.get("ARGOSY_HOME"):
        return expanded(environment["ARGOSY_HOME"])
    data = expanded(environment.get("XDG_DATA_HOME") or "~/.local/share")
    if data.parts[0].startswith("~"):
        raise ConfigurationError("this user has no home folder; set ARGOSY_HOME, or HOME")
    return data / "argosy"


def without_secrets(environment: Mapping[str, str] = os.environ, *, keep: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the environment of a child process that reaches neither broker nor store.

    `keep` are the beginnings of variables that it needs nevertheless.
    """
    return {
        name: value for name, value in environment.items() if name.startswith(keep) or not name.startswith(_SECRETS)
    }


def log_settings(path: str | Path | None, environment: Mapping[str, str] = os.environ) -> LogSettings:
    """Return the ``[log]`` table of a file; ``ARGOSY_LOG_FORMAT`` wins. Raises ConfigurationError."""
    if given := environment.get("ARGOSY_LOG_FORMAT", "").strip():
        return typed({"format": given.lower()}, LogSettings, "ARGOSY_LOG_FORMAT")
    return typed(read_fleet(path).get("log", {}) if path else {}, LogSettings, f"{path}: log")


def checked_tenant(name: object, field: str = "tenant") -> str:
    """Return a valid tenant name; empty means no tenant. Raises InvalidInput naming `field`."""
    if not isinstance(name, str) or not _TENANT.fullmatch(name):
        raise InvalidInput(
            field, f"{name!r} is not a valid tenant name", "use up to 64 letters, digits and . _ @ : + - signs"
        )
    return str.__str__(name)


def masked(url: str) -> str:
    """Return `url` for people and logs, with ``***`` as its password. Hides too much rather than too little.

    Text that is no URL is not shown if it may hold a password: it may be a URL with a mistake in its scheme.
    """
    beginning = _SCHEME_AND_USER.match(url)
    if beginning is None:
        return "***" if _MAY_HOLD_PASSWORD.search(url) else url
    user, end = beginning[0], beginning.end()
    login, at, place = url.rpartition("@")
    if at and ":" in login[end:]:
        url = f"{user}:***@{place}"
    elif not at and not user.endswith("[") and _NO_PORT.match(url, end):  # a host is missing; [ begins one of IPv6
        url = f"{user}:***"
    return _PASSWORD_IN_QUERY.sub(r"\1***", url)


def with_password(url: str, password: str) -> str:
    """Return `url` with `password`, quoted, in place of any earlier password. The first of several URLs gets it."""
    if url.startswith(f"{SENTINEL}://") and ";" in url:
        first, _, others = url.partition(";")
        return f"{with_password(first, password)};{others}"
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:{quote(password, safe='')}@{host}"))


def _variable(part: Part) -> str:
    return f"ARGOSY_{part.upper()}_URL"


def checked_url(url: str, part: Part, where: str) -> str:
    """Return a URL of the broker or the store. Raises ConfigurationError, whose message begins with `where`.

    White space around it is dropped: a secret that is mounted as a file often ends with a line feed.
    """
    if not isinstance(url, str):
        raise ConfigurationError(f"{where}: must be text, not {type(url).__name__}")
    url = url.strip()
    # SQLAlchemy names a driver after a plus (sqlite+pysqlite); the scheme proper stands before it
    scheme = url.partition("://")[0].partition("+")[0]
    if "://" not in url or scheme not in _SCHEMES[part]:
        raise ConfigurationError(f"{where}: must look like {_EXAMPLES[part]}, not {masked(url)!r}")
    if part == "broker":
        _check_broker(url, where)
    return url


def _check_broker(url: str, where: str) -> None:
    if _is_cut(url):
        raise ConfigurationError(
            f"{where}: a sign in the user or the password ends them for readers of URLs; write # as %23, / as %2F, "
            "? as %3F, [ as %5B, @ as %40 and % as %25"
        )
    try:
        special = sentinels(url) or unix_socket(url)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    if not special and not _names_database(url):
        raise ConfigurationError(f"{where}: write the number of Redis' database as the path, as in redis://host:6379/2")


def _names_database(url: str) -> bool:
    """Return whether clients and workers find the same database in a URL. Some see 0 where others see an error."""
    parts = urlsplit(url)
    return re.fullmatch(r"/?\d*", parts.path) is not None and "db" not in parse_qs(parts.query)


def _is_cut(url: str) -> bool:
    """Return whether a URL's host is a part of its password, because the password has a sign that ends it."""
    try:
        every = [urlsplit(one) for one in (url.split(";") if url.startswith(f"{SENTINEL}://") else [url])]
    except ValueError:
        return True
    return any("@" in parts.path + parts.fragment or ("@" in parts.query and not parts.path) for parts in every)
