"""The wire format: items and envelopes, typed and versioned. JSON, or MessagePack if the envelope carries bytes.

A stored envelope of plain texts may have columns in place of items (`TextColumns`).
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from itertools import count, pairwise
from typing import Annotated, Any, ClassVar, TypeAlias

import msgspec

from producers.wire.errors import InvalidMessage

#: Version of the envelope format. A worker reads this version and the older ones in `_UPGRADES`.
VERSION = 1

#: Version of a message that only names its envelope.
REFERENCE = 2

#: Version of a stored envelope with columns. A node that reads it reads the older versions, too.
COLUMNS = 3

#: The most numbers from the first to the last item of columns: those of a chunk of results.
SPAN_OF_COLUMNS = 4096

#: The largest seed that both JSON readers and torch hold exactly.
MOST_SEED = 2**53 - 1

JSON = "application/json"
MSGPACK = "application/x-msgpack"
COLUMNAR = "application/x-argosy-columns"


class Priority(IntEnum):
    """How urgent an item is. The value is the Redis priority: 0 is served first."""

    INTERACTIVE = 0
    STANDARD = 3
    BULK = 9


class InlineBytes(msgspec.Struct, frozen=True, tag="bytes"):
    """An input carried inside the message, such as the bytes of an image file."""

    data: bytes


class PathInput(msgspec.Struct, frozen=True, tag="path"):
    """An input that the worker reads from a file under one of its allowed roots."""

    path: str


class UrlInput(msgspec.Struct, frozen=True, tag="url"):
    """An input that the worker fetches from a host on its allow-list."""

    url: str


class BlobInput(msgspec.Struct, frozen=True, tag="blob"):
    """A large text, or bytes, in blob storage. Only producers make this input, only workers read it."""

    job: str
    blob: str
    text: bool


class QuestionInput(msgspec.Struct, frozen=True, tag="question"):
    """A question and the text that answers it."""

    question: str
    context: str


class SentencesInput(msgspec.Struct, frozen=True, tag="sentences"):
    """A sentence and the sentences to compare it with."""

    source_sentence: str
    sentences: tuple[str, ...]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message of a dialogue. `role` is ``system``, ``user``, ``assistant``, or another role of the template."""

    role: str
    content: str


class MessagesInput(msgspec.Struct, frozen=True, tag="messages"):
    """A dialogue to answer."""

    messages: tuple[Message, ...]


class RowInput(msgspec.Struct, frozen=True, tag="row"):
    """A row of a table: its values by column, null for an unknown value."""

    values: dict[str, int | float | str | None]


class SeriesInput(msgspec.Struct, frozen=True, omit_defaults=True, tag="series"):
    """Sensor measurements at equal intervals: the values of each channel, all equally many, null for a missing value.

    `names` are the names of the channels, if they have any.
    """

    channels: tuple[tuple[float | None, ...], ...]
    names: tuple[str, ...] = ()


class JsonInput(msgspec.Struct, frozen=True, tag="json"):
    """JSON of any form, for a model's class that declares it."""

    value: Any


class TextAndImageInput(msgspec.Struct, frozen=True, tag="text-and-image"):
    """An image with a text or question about it."""

    text: str
    image: InlineBytes | PathInput | UrlInput


class SeedInput(msgspec.Struct, frozen=True, tag="seed"):
    """The seed of a picture that is made from noise alone."""

    seed: int


class DerivedInput(msgspec.Struct, frozen=True, omit_defaults=True, tag="derived"):
    """An input that a worker derives from earlier results of the same job.

    `of` lists the results as (seq, task), `take` names the selector, and `part` picks a part of them. Only
    `producers.pipelines` makes this input, in the transaction that stores those results.
    """

    take: str
    of: tuple[tuple[int, str], ...]
    part: int | None = None
    options: dict[str, Any] = {}


Input: TypeAlias = (
    str
    | InlineBytes
    | PathInput
    | UrlInput
    | BlobInput
    | QuestionInput
    | SentencesInput
    | MessagesInput
    | RowInput
    | SeriesInput
    | JsonInput
    | TextAndImageInput
    | SeedInput
    | DerivedInput
)
Params: TypeAlias = dict[str, Any]

#: An item's number in its job, as both databases can hold it.
Seq: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


#: Unix seconds that every reader of the store can hold and compare: neither NaN nor infinite.
At: TypeAlias = Annotated[float, msgspec.Meta(ge=-(2.0**53), le=2.0**53)]
Until: TypeAlias = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]


class Item(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """An input with the tasks wanted on it.

    `seq` is its number in the job and, with the task, the key of its results. `params` holds each task's parameters by
    task name. `key` is the submitter's own identifier, kept with the result.
    """

    seq: Seq
    input: Input
    tasks: tuple[str, ...]
    params: dict[str, Params] = {}
    key: str | None = None


class Envelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The unit of delivery: a Celery message with items of the same model and priority.

    Times are Unix seconds, by the sender's clock. An item is not computed after `deadline_at`, or after the deadline in
    the envelope's row, which is by the store's clock. An envelope that is not `durable` has no row in the outbox: only
    Redis carries it. An empty `tenant` means no tenant. Results of a `pipeline` envelope may lead to
    more envelopes.
    """

    SUPPORTED: ClassVar[tuple[int, ...]] = (VERSION,)

    version: int
    id: str
    job: str
    model: str
    priority: Priority
    queued_at: float
    items: tuple[Item, ...]
    deadline_at: float | None = None
    durable: bool = True
    tenant: str = ""
    pipeline: bool = False

    @property
    def results(self) -> int:
        """The number of results that this envelope owes: one per item and task."""
        return sum(len(item.tasks) for item in self.items)

    @property
    def about(self) -> str:
        """What people see of it in Flower: ``64 items, sentiment+topic``."""
        count = len(self.items)
        tasks = dict.fromkeys(task for item in self.items for task in item.tasks)
        return f"{count} item{'' if count == 1 else 's'}, {'+'.join(tasks)}"

    @property
    def carries_bytes(self) -> bool:
        return any(isinstance(_file(item.input), InlineBytes) for item in self.items)


def _file(value: Input) -> Input:
    """Return the part of an input that can be a file."""
    return value.image if isinstance(value, TextAndImageInput) else value


class TextColumns(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A durable envelope whose items are texts with the same tasks and parameters, as it is stored in MessagePack.

    The texts have the numbers `first`, `first` + 1 …, or those at the distances `places` from it. `keys` has a key or
    null for each text; it is null if there are none. The other fields are those of an `Envelope`.
    """

    version: int
    id: str
    job: str
    model: str
    priority: Priority
    queued_at: At
    tasks: tuple[str, ...]
    first: Seq
    texts: list[str]
    params: dict[str, Params] = {}
    places: list[Annotated[int, msgspec.Meta(ge=0, lt=SPAN_OF_COLUMNS)]] | None = None
    keys: list[str | None] | None = None
    deadline_at: Until | None = None
    tenant: str = ""

    @classmethod
    def of(cls, envelope: Envelope) -> TextColumns:
        """Return the columns of an envelope whose items `are_alike`."""
        items, first = envelope.items, envelope.items[0]
        keys = [item.key for item in items]
        follow = items[-1].seq - first.seq == len(items) - 1
        return cls(
            version=COLUMNS,
            id=envelope.id,
            job=envelope.job,
            model=envelope.model,
            priority=envelope.priority,
            queued_at=envelope.queued_at,
            tasks=first.tasks,
            first=first.seq,
            texts=[item.input for item in items],  # type: ignore[misc]  # they are alike: all are texts
            params=first.params,
            places=None if follow else [item.seq - first.seq for item in items],
            keys=keys if any(key is not None for key in keys) else None,
            deadline_at=envelope.deadline_at,
            tenant=envelope.tenant,
        )

    def envelope(self) -> Envelope:
        """Return the envelope with its items. Raises ValueError for columns of different lengths."""
        first, tasks, params = self.first, self.tasks, self.params
        numbers = range(first, first + len(self.texts)) if self.places is None else [first + n for n in self.places]
        keys = [None] * len(self.texts) if self.keys is None else self.keys
        # positional arguments: this runs for each of millions of items
        rows = zip(numbers, self.texts, keys, strict=True)
        return Envelope(
            version=VERSION,
            id=self.id,
            job=self.job,
            model=self.model,
            priority=self.priority,
            queued_at=self.queued_at,
            items=tuple([Item(seq, text, tasks, params, key) for seq, text, key in rows]),
            deadline_at=self.deadline_at,
            tenant=self.tenant,
        )


def goes_with(first: Item, before: Item, item: Item) -> bool:
    """Return whether an item may follow `before` in the columns that begin with `first`."""
    return (
        type(item.input) is str
        and before.seq < item.seq < first.seq + SPAN_OF_COLUMNS
        and item.tasks == first.tasks
        and (item.params is first.params or item.params == first.params)
    )


def are_alike(items: Sequence[Item]) -> bool:
    """Return whether items may be columns: ascending texts, near each other, with the same tasks and parameters."""
    if not items or type(items[0].input) is not str:
        return False
    first = items[0]
    return all(goes_with(first, before, item) for before, item in pairwise(items))


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """The message of a durable envelope: it names the envelope, and the store has it."""

    version: int = REFERENCE
    id: str
    job: str
    model: str
    priority: int


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a message of any version by which a worker finds the envelope. `items` is null in a reference."""

    id: str
    job: str = ""
    model: Any = None
    priority: Any = None
    durable: bool = True
    items: Any = None


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    """The envelope with its items not yet decoded, so that a malformed item costs only itself."""

    version: int
    id: str
    job: str
    model: str
    priority: Priority
    queued_at: At
    items: list[Any]
    deadline_at: Until | None = None
    durable: bool = True
    tenant: str = ""
    pipeline: bool = False


class _ItemOutline(msgspec.Struct, frozen=True):
    seq: Seq
    tasks: tuple[str, ...]
    key: str | None = None


class _Outline(_Header, frozen=True, kw_only=True):
    """The part of an envelope that its results need. Every version has it."""

    items: list[_ItemOutline]


class BadItem(msgspec.Struct, frozen=True):
    """An item that could not be decoded. `seq` and `tasks` are the readable part of it."""

    seq: int
    tasks: tuple[str, ...]
    error: str


_columns_decoder = msgspec.msgpack.Decoder(TextColumns)

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"

#: The key of JSON objects that kombu reads as values of other types.
_KOMBUS_TYPE = b'"__type__"'

#: The form of an identifier made by `new_id`, as a regular expression.
ID = f"[{_CROCKFORD}]{{26}}"

#: The most characters of an identifier.
MOST_NAME = 255

#: The errors of msgspec for a value of another form, with a lone surrogate, or nested too deeply.
UNREADABLE = (ValueError, RecursionError)

#: For each older version, the function that lifts a raw message to the next version. Empty at version 1.
_UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def new_id(at: float | None = None) -> str:
    """Return a new identifier: 26 characters that sort by time (the ULID layout, lower case); default: now."""
    made_ms = time.time_ns() // 1_000_000 if at is None else int(at * 1000)
    value = made_ms << 80 | int.from_bytes(os.urandom(10), "big")
    return "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -1, -5))


def is_id(name: str) -> bool:
    """Return whether a name has the form of an id from `new_id`."""
    return re.fullmatch(ID, name) is not None


def is_name(name: object) -> bool:
    """Return whether a foreign identifier is a text that both databases can hold and index."""
    if not isinstance(name, str) or len(name) > MOST_NAME or "\0" in name:
        return False
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def made_at(id_: str) -> float:
    """Return the time at which `new_id` made an id (Unix seconds). Raises ValueError for any other name."""
    if not is_id(id_):
        raise ValueError(f"{id_[:40]!r} is not an Argosy id")
    value = 0
    for character in id_[:10]:  # 48 bits of time in 50 of text
        value = value << 5 | _CROCKFORD.index(character)
    return value / 1000


def encode(envelope: Envelope, *, in_columns: bool = False) -> tuple[bytes, str]:
    """Return the envelope's bytes and their content type: JSON, unless that would not be read as it was written.

    With `in_columns`, an envelope that can be columns is.
    """
    if in_columns and are_alike(envelope.items):
        return msgspec.msgpack.encode(TextColumns.of(envelope)), COLUMNAR
    if not envelope.carries_bytes:
        payload = msgspec.json.encode(envelope)
        if _KOMBUS_TYPE not in payload:
            return payload, JSON
    return msgspec.msgpack.encode(envelope), MSGPACK


def decode_bytes(payload: bytes, content_type: str) -> dict[str, Any]:
    """Return the raw mapping in `payload`, for `decode`.

    Raises InvalidMessage, naming the content type, for anything but JSON, MessagePack and columns.
    """
    if content_type == COLUMNAR:
        builtins: dict[str, Any] = msgspec.to_builtins(_of_columns(payload))
        return builtins
    decoders: dict[str, Callable[[bytes], Any]] = {JSON: msgspec.json.decode, MSGPACK: msgspec.msgpack.decode}
    if content_type not in decoders:
        raise InvalidMessage(f"content type {content_type!r} is refused; send {JSON} or {MSGPACK}")
    try:
        raw = decoders[content_type](payload)
    except UNREADABLE as error:
        raise InvalidMessage(f"not readable as {content_type}: {error}") from error
    if not isinstance(raw, dict):
        raise InvalidMessage(f"an envelope is a mapping, not {type(raw).__name__}")
    return raw


def stored_envelope(payload: bytes, content_type: str) -> tuple[Envelope, list[BadItem]]:
    """Return a stored envelope and its malformed items. Raises InvalidMessage."""
    if content_type == COLUMNAR:
        return _of_columns(payload), []
    return decode(decode_bytes(payload, content_type))


def _of_columns(payload: bytes) -> Envelope:
    try:
        columns = _columns_decoder.decode(payload)
        _check_version(columns.version, (COLUMNS,))
        _check_names(id=columns.id, job=columns.job, tenant=columns.tenant)
        envelope = columns.envelope()
    except UNREADABLE as error:
        raise InvalidMessage(f"not readable as {COLUMNAR}: {error}") from error
    if not are_alike(envelope.items):
        raise InvalidMessage(f"not readable as {COLUMNAR}: the numbers of its texts do not ascend, or there are none")
    return envelope


def decode(raw: object) -> tuple[Envelope, list[BadItem]]:
    """Return the envelope in a raw mapping and its malformed items.

    Raises InvalidMessage if the envelope itself is unreadable or of an unsupported version.
    """
    raw = _upgrade(raw)
    try:
        header = msgspec.convert(raw, _Header)
    except UNREADABLE as error:
        raise InvalidMessage(f"envelope: {error}") from error
    _check_names(id=header.id, job=header.job, tenant=header.tenant)
    items: list[Item] = []
    malformed: dict[int, str] = {}
    for position, value in enumerate(header.items):
        try:
            # strict JSON carries bytes as base64 text, MessagePack carries real bytes: both are accepted
            items.append(msgspec.convert(value, Item))
        except UNREADABLE as error:
            malformed[position] = str(error)
    if not malformed and len({item.seq for item in items}) == len(items):
        return _envelope(header, items), []
    doubled = _doubled(header.items)
    bad = {**malformed, **doubled}
    items = [msgspec.convert(value, Item) for position, value in enumerate(header.items) if position not in bad]
    return _envelope(header, items), _bad_items(header.items, malformed, doubled)


def _envelope(header: _Header, items: Iterable[Item]) -> Envelope:
    return Envelope(
        version=VERSION,
        id=header.id,
        job=header.job,
        model=header.model,
        priority=header.priority,
        queued_at=header.queued_at,
        items=tuple(items),
        deadline_at=header.deadline_at,
        durable=header.durable,
        tenant=header.tenant,
        pipeline=header.pipeline,
    )


def named(raw: object) -> Named:
    """Return the envelope that a message names. Raises InvalidMessage."""
    if not isinstance(raw, dict):
        raise InvalidMessage(f"an envelope is a mapping, not {type(raw).__name__}")
    try:
        message = msgspec.convert(raw, Named)
    except UNREADABLE as error:
        raise InvalidMessage(f"envelope: {error}") from error
    _check_names(id=message.id, job=message.job)
    return message


def _check_names(**names: str) -> None:
    """Raise InvalidMessage for a name that no database can hold."""
    for field, name in names.items():
        if not is_name(name):
            raise InvalidMessage(f"envelope: `{field}` has over {MOST_NAME} characters, NUL or a lone surrogate")


def outline(id_: str, payload: bytes | None, content_type: str) -> Envelope:
    """Return an envelope of any version, or a damaged one, without its inputs, for results that are not computed.

    It has the items that can be read: none if the payload is gone or not in the form of an envelope.
    """
    try:
        seen = msgspec.convert(decode_bytes(payload or b"", content_type), _Outline)
    except (InvalidMessage, *UNREADABLE):
        return Envelope(version=VERSION, id=id_, job="", model="", priority=Priority.STANDARD, queued_at=0.0, items=())
    return _envelope(seen, [Item(item.seq, "", item.tasks, key=item.key) for item in seen.items])


def _upgrade(raw: object) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise InvalidMessage(f"an envelope is a mapping, not {type(raw).__name__}")
    version = raw.get("version")
    while isinstance(version, int) and version in _UPGRADES:
        raw = _UPGRADES[version](raw)
        version = raw.get("version")
    _check_version(version, Envelope.SUPPORTED)
    return raw


def _check_version(version: object, supported: Sequence[int]) -> None:
    if version not in supported:
        raise InvalidMessage(
            f"envelope version {version!r} is not supported by this worker "
            f"(supported: {', '.join(map(str, supported))}); "
            "upgrade the producer or the worker to the same release"
        )


def _doubled(items: Sequence[object]) -> dict[int, str]:
    """Return the places of items with a `seq` and a task of an earlier item: the store would keep the first result."""
    seen = set[tuple[int, str]]()
    doubled = {}
    for position, value in enumerate(items):
        seq = _seq(value)
        keys = set() if seq is None else {(seq, task) for task in _tasks(value)}
        if not seen.isdisjoint(keys):
            doubled[position] = "has the `seq` and a task of an earlier item"
        seen |= keys
    return doubled


def _bad_items(items: Sequence[object], malformed: Mapping[int, str], doubled: Mapping[int, str]) -> list[BadItem]:
    """Return the malformed items. An item without a readable `seq` of its own gets a number that no other item has."""
    taken = {_seq(value) for value in items}
    free = (number for number in count(len(items)) if number not in taken)
    bad = []
    for position, error in sorted({**doubled, **malformed}.items()):
        seq = None if position in doubled else _seq(items[position])
        if seq is None:
            seq = next(free) if position in taken else position
        bad.append(BadItem(seq, _tasks(items[position]) or ("unknown",), f"items[{position}]: {error}"))
    return bad


def _tasks(value: object) -> tuple[str, ...]:
    tasks = value.get("tasks") if isinstance(value, dict) else None
    return tuple(task for task in tasks if isinstance(task, str)) if isinstance(tasks, list | tuple) else ()


def _seq(value: object) -> int | None:
    try:
        return msgspec.convert(value.get("seq") if isinstance(value, dict) else None, Seq)
    except UNREADABLE:
        return None
