"""Models of one's own: their inputs, their code, their settings, and calls that hang."""

from __future__ import annotations

import ctypes
import functools
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from producers.gateway.schemas import item_of
from producers.wire.catalogue import Catalogue, Task
from producers.wire.errors import ConfigurationError, InvalidInput
from producers.wire.kinds import KINDS
from producers.wire.kinds.described import described
from producers.wire.messages import JsonInput, RowInput
from producers.wire.validation import json_schema
from tests.wrong_class import Wrong
from workers import settings
from workers.models.interface import class_calls, class_code, class_lookup, output_files, returned
from workers.models.interface.class_calls import MOST_HUNG, ClassCalls, ClassHung
from workers.models.interface.model import ModelSpec, Prepared, digest
from workers.models.interface.returned import WrongReturn

ROOT = Path(__file__).parents[2]


def model(kind: str = "custom", class_: type[Wrong] = Wrong) -> Wrong:
    return class_(ModelSpec("own", Path(), "1", {"task": Task("task", KINDS[kind], "own", "")}))


# --- inputs ---------------------------------------------------------------------------------------


def checked(kind: str, value: object, schema: Any = None) -> Any:
    catalogue = Catalogue({}).with_models({"own": {"tasks": {"task": kind}}}, where="fleet.toml")
    if schema is not None:
        catalogue = catalogue.with_schemas({"own": {"input": schema, "output": {}}})
    return catalogue.check_input(catalogue.tasks["task"], value, field="input")


def test_a_regressor_takes_rows_and_lists_of_numbers() -> None:
    assert checked("regression", {"a": 1, "b": 2.5}) == RowInput({"a": 1, "b": 2.5})
    assert checked("regression", [1, 2.5]) == RowInput({"0": 1, "1": 2.5})
    assert checked("regression", np.array([1, 2])) == RowInput({"0": 1, "1": 2})
    with pytest.raises(InvalidInput, match=r"^input\.1: is nan"):
        checked("regression", [1, float("nan")])


@dataclass
class Point:
    x: float
    y: float


class Room(msgspec.Struct, forbid_unknown_fields=True):
    area: Annotated[float, Meta(gt=0)]
    use: Literal["kitchen", "bath"] | None = None


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"a": float("inf")}, r"^input\.a: is inf, not a finite number"),
        ([1, [float("nan")]], r"^input\[1\]\[0\]: is nan"),
        ({"a": Point(1.0, float("nan"))}, r"^input\.a\.y: is nan"),
        ([Room(area=float("inf"))], r"^input\[0\]\.area: is inf"),
        ({float("nan")}, r"^input\[0\]: is nan"),
        ({"a": np.array([1, np.nan])}, r"^input\.a\[1\]: is nan"),
        ({(1, 2): 3}, r"^input: has the key \(1, 2\); JSON has texts as keys"),
        ({"a": object()}, r"^input: is not JSON: "),
        ("a" * 100_001, r"^input: has 100,003 bytes, over 100,000"),
        (functools.reduce(lambda inner, _: [inner], range(10_000), 1), r"^input: is nested too deeply"),
        ("\ud800", r"^input: is not JSON: "),
    ],
)
def test_what_is_not_json_is_refused(value: object, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        checked("custom", value)


def test_json_of_any_form_is_taken_without_a_schema() -> None:
    for value in (1, None, "text", [1, {"a": None}], {"a": {"b": [True]}}):
        assert checked("custom", value) == JsonInput(value)
    assert checked("custom", np.array([1, 2])) == JsonInput([1, 2])


class House(msgspec.Struct):
    rooms: Annotated[list[Room], Meta(min_length=1, max_length=3)]
    place: tuple[float, float]
    names: dict[str, int] = {}
    owner: Annotated[str, Meta(max_length=5)] | int = ""


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10) | st.sampled_from([0.5, -1.5, "kitchen", "bath", "a", "owner"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["area", "use", "rooms", "place", "names", "owner", "a"]), inner, max_size=5)
    ),
    max_leaves=12,
)
_ROOMS = st.fixed_dictionaries({"area": _VALUES}, optional={"use": _VALUES, "other": st.just(1)})
_HOUSES = st.fixed_dictionaries(
    {"rooms": st.lists(_ROOMS, max_size=4), "place": st.lists(st.integers(0, 1) | _VALUES, min_size=1, max_size=3)},
    optional={"names": st.dictionaries(st.sampled_from("ab"), _VALUES, max_size=2), "owner": _VALUES},
)


@given(_VALUES | _HOUSES)
def test_a_client_judges_by_a_schema_as_a_validator_does(value: object) -> None:
    """The schema is that which a class's types give; jsonschema is the judge."""
    schema = msgspec.json.schema(House)
    right = jsonschema.Draft202012Validator(schema).is_valid(value)
    assert (not [*json_schema.mismatches(schema, value)]) == right


def test_a_mismatch_names_its_place() -> None:
    schema = msgspec.json.schema(House)
    value = {"rooms": [{"area": 3}, {"area": "large"}], "place": [1, 2]}
    with pytest.raises(InvalidInput, match=r"^input\.rooms\[1\]\.area: must be number, not string$"):
        checked("custom", value, schema)
    with pytest.raises(InvalidInput, match=r"^input\.place: is missing$"):
        checked("custom", {"rooms": [{"area": 3}]}, schema)


@pytest.mark.parametrize(
    "value",
    [{"path": "a"}, {"url": None}, {"bytes": "YR=="}, {"bytes": 5}, {"text": "t", "image": {"path": "a"}}],
)
def test_json_reaches_a_class_as_the_gateway_got_it(value: object) -> None:
    """The gateway reads such objects as files, but only for tasks whose inputs are files."""
    assert checked("custom", item_of(value, "input", files=False).input) == JsonInput(value)


def test_an_error_needs_no_field() -> None:
    """An author's first `raise InvalidInput` gives a problem."""
    assert str(InvalidInput("is too short")) == "input: is too short"
    assert str(InvalidInput("input.a", "is too short", "make it longer")) == "input.a: is too short; make it longer"


def test_null_is_no_text() -> None:
    with pytest.raises(InvalidInput, match=r"^input: is null, a missing text; leave the item out, or give it a text$"):
        checked("text-classification", None)


def test_every_kind_is_described() -> None:
    """`argosy kinds` and the page on a model of your own name every kind, its input and its answer."""
    page = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")
    for name, given_, prepared, _, answer in described():
        assert f"| `{name}` | {given_} | {prepared} | {answer} |" in page
    assert {row[0] for row in described()} == set(KINDS)


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given_", "kept"),
    [
        ("regression", 3, 3),
        ("regression", np.float32(0.5), 0.5),
        ("regression", {"low": np.float64(1.5), "high": 2}, {"low": 1.5, "high": 2}),
        ("text-classification", [{"label": np.str_("a"), "score": np.float32(0.5)}], [{"label": "a", "score": 0.5}]),
        ("custom", {"twice": np.array(2.0)}, {"twice": 2.0}),
    ],
)
def test_numbers_of_numpy_are_numbers(kind: str, given_: object, kept: object) -> None:
    assert returned.answer(model(kind), model(kind).spec.tasks["task"], given_) == kept


@pytest.mark.parametrize(
    ("kind", "wrong", "problem"),
    [
        ("regression", [1.0], "Wrong.finish returned for task an answer that is not of the kind regression: Expected"),
        ("regression", {"low": "two"}, r"not of the kind regression: Expected `float`, got `str` - at `\$\[\.\.\.\]`"),
        ("regression", float("nan"), "an answer in which the number is nan, not a finite number"),
        ("feature-extraction", np.array([[1.0]]), r"the type float64 and the shape \(1, 1\); a vector is float32"),
        ("feature-extraction", np.array([]), r"shape \(0,\)"),
        ("feature-extraction", np.array([1j]), "type complex128"),
        ("feature-extraction", np.array([1, 1e39]), r"a vector whose number 1 is 1e\+39, not finite in float32"),
        ("feature-extraction", np.array(["a"]), "type <U1"),
        ("feature-extraction", np.array([1, np.nan], dtype=np.float32), "a vector whose number 1 is nan, not finite"),
        ("object-detection", [{"score": 0.5, "label": "a", "box": {"xmin": np.inf}}], r"\[0\]\.box\.xmin is inf"),
        ("image-to-image", {"image": output_files.MadeFile(b"", "image/png")}, "a MadeFile of a bytes and a str"),
        ("image-to-image", {"image": output_files.MadeFile(1, "x")}, "a MadeFile of an int"),  # type: ignore[arg-type]
        ("image-to-image", {"image": object()}, "which is not JSON: an object in it"),
    ],
)
def test_a_wrong_answer_is_named(kind: str, wrong: object, problem: str) -> None:
    own = model(kind)
    with pytest.raises(WrongReturn, match=problem):
        returned.answer(own, own.spec.tasks["task"], wrong)


def test_another_form_of_answer_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Kinds that are older than the check accept it for one release."""

    class Odd(Wrong):
        pass

    own = model("text-classification", Odd)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert returned.answer(own, own.spec.tasks["task"], {"crc": 1}) == {"crc": 1}
    [record] = caplog.records
    assert "Odd.finish returned for task an answer that is not of the kind text-classification" in record.getMessage()


# --- calls that hang ------------------------------------------------------------------------------


def test_a_call_that_hangs_costs_its_item_and_then_its_class() -> None:
    """Its neighbours are tried alone. A class that hangs again and again is not called any more."""
    released, calls = threading.Event(), ClassCalls(0.05)

    class Hanging(Wrong):
        def prepare_many(self, contents: Any, params: Any) -> list[Any]:
            if "hang" in contents:
                released.wait()
            return [content.upper() for content in contents]

    own = model(class_=Hanging)
    first = calls.for_many(own, "prepare_many", ["a", "hang", "b"], [{}, {}, {}])
    assert (first[0], first[2]) == ("A", "B")
    assert isinstance(first[1], ClassHung)
    for _ in range(MOST_HUNG):
        calls.for_many(own, "prepare_many", ["hang"], [{}])
    [refused] = calls.for_many(own, "prepare_many", ["a"], [{}])
    released.set()
    assert "mend it and restart the worker" in str(refused)
    while isinstance(calls.for_many(own, "prepare_many", ["a"], [{}])[0], ClassHung):
        time.sleep(0.01)  # until the calls have ended


def test_calls_that_hang_at_once_all_count() -> None:
    released, calls = threading.Event(), ClassCalls(0.05)

    class Hanging(Wrong):
        def prepare_many(self, contents: Any, params: Any) -> list[Any]:
            released.wait()
            return [*contents]

    own = model(class_=Hanging)
    call = functools.partial(calls.for_many, own, "prepare_many", ["a"], [{}])
    threads = [threading.Thread(target=call) for _ in range(MOST_HUNG)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [refused] = call()
    released.set()
    assert "mend it and restart the worker" in str(refused)


def test_a_slow_call_lets_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.models.interface.class_calls.SLOW_AFTER_S", 0.01)
    entered = threading.Event()

    @contextmanager
    def meanwhile() -> Any:
        entered.set()
        yield

    own = model()
    assert ClassCalls(60).call(own, "prepare", entered.wait, meanwhile=meanwhile) is True


def test_companions_end_with_their_callers() -> None:
    def companions() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "argosy class call"]

    before, calls = len(companions()), ClassCalls(60)
    caller = threading.Thread(target=lambda: calls.call(model(), "prepare", int))
    caller.start()
    caller.join()
    while len(companions()) > before:
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("kills", [1, 3])
def test_a_call_whose_thread_ends_is_made_again(monkeypatch: pytest.MonkeyPatch, kills: int) -> None:
    """An error from outside, of a machine without memory, ends a thread before it makes the call."""
    calls, ended = ClassCalls(15), []
    begin = class_calls._Companion.begin

    def ending(self: Any, call: Any, *arguments: Any) -> None:
        if len(ended) < kills:
            ended.append(self)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(SystemExit))
        begin(self, call, *arguments)

    monkeypatch.setattr(class_calls._Companion, "begin", ending)
    assert [calls.call(model(), "prepare", name.upper) for name in "abcd"] == ["A", "B", "C", "D"]
    assert len(ended) == kills


def test_the_time_in_which_the_process_is_stopped_is_not_the_calls() -> None:
    """A call waits for a word, and meanwhile the process is stopped for longer than the call's limit."""
    script = """if True:
        import sys
        from tests.unit.test_own_class import ClassCalls, class_calls, model

        class_calls.SLOW_AFTER_S = 0.1

        def call():
            print("begun", flush=True)
            sys.stdin.readline()
            return "answered"

        print(ClassCalls(2).call(model(), "prepare", call))
    """
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(2.2)
        process.send_signal(signal.SIGCONT)
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.read() == "answered\n"


# --- code -----------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], type]:
    """A module with a class, and a second module that it imports in a function."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_module_of_a_test.py").write_text(
        "from tests.wrong_class import Wrong\n\n\nclass Own(Wrong):\n    def load(self, device):\n"
        "        import own_part_of_a_test\n",
        encoding="utf-8",
    )
    (tmp_path / "own_part_of_a_test.py").write_text("A = 1\n", encoding="utf-8")
    (tmp_path / "unrelated.py").write_text("A = 1\n", encoding="utf-8")
    monkeypatch.delitem(sys.modules, "own_module_of_a_test", raising=False)
    return lambda: class_lookup.find("own_module_of_a_test:Own")


@pytest.mark.parametrize(
    ("file", "counts"), [("own_module_of_a_test.py", True), ("own_part_of_a_test.py", True), ("unrelated.py", False)]
)
def test_a_change_of_a_classs_code_is_seen(
    written: Callable[[], type], tmp_path: Path, file: str, counts: bool
) -> None:
    own = written()
    class_code.note(own)
    assert not class_code.changed(own)
    (tmp_path / file).write_text((tmp_path / file).read_text("utf-8") + "\nB = 2\n", encoding="utf-8")
    assert class_code.changed(own) is counts


# --- settings -------------------------------------------------------------------------------------

FLEET = """
[models.own]
class = "tests.wrong_class:Wrong"
{source}
[models.own.tasks]
task = "custom"
"""


def loaded(folder: Path, source: str) -> settings.Settings:
    (folder / "fleet.toml").write_text(FLEET.format(source=source), encoding="utf-8")
    return settings.load(folder / "fleet.toml", environment={})


def test_a_path_counts_from_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, elsewhere = tmp_path / "fleet", tmp_path / "elsewhere"
    (folder / "weights").mkdir(parents=True)
    (elsewhere / "others").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    named = 'source = { path = "weights" }'
    assert loaded(folder, named).models["own"].source == {"path": str(folder / "weights")}
    with pytest.warns(FutureWarning, match="the next release takes it from"):
        found = loaded(folder, 'source = { path = "others" }')
    assert found.models["own"].source == {"path": str(elsewhere / "others")}
    (folder / "fleet.toml").write_text(
        '[models.text.options]\nheads = "weights"\nother = "weights"\n', encoding="utf-8"
    )
    options = settings.load(folder / "fleet.toml", environment={}).models["text"].options
    assert {name: options[name] for name in ("heads", "other")} == {
        "heads": str(folder / "weights"),
        "other": "weights",
    }
    own = loaded(folder, 'options = { heads = "weights" }').models["own"]
    assert own.options == {"heads": "weights"}, "nobody knows that an own class's option is a path"


def test_a_class_without_files_needs_no_source(tmp_path: Path) -> None:
    assert loaded(tmp_path, "").models["own"].source == {}
    (tmp_path / "fleet.toml").write_text('[models.own]\n[models.own.tasks]\nt = "fill-mask"\n', encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"models\.own\.source: is missing$"):
        settings.load(tmp_path / "fleet.toml", environment={})


def test_a_task_belongs_to_one_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two of the file's models cannot have it; one of the built-in models loses it with a warning."""
    both = FLEET.format(source="") + FLEET.format(source="").replace("models.own", "models.other")
    (tmp_path / "fleet.toml").write_text(both, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"models\.other\.tasks\.task: is a task of models\.own, too"):
        _ = settings.load(tmp_path / "fleet.toml", environment={}).catalogue
    (tmp_path / "fleet.toml").write_text(FLEET.format(source="").replace("task =", "sentiment ="), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        settings.load(tmp_path / "fleet.toml", environment={})
    assert "models.own.tasks.sentiment replaces the task of this name of the built-in model text" in caplog.text


# --- batches --------------------------------------------------------------------------------------


def test_rows_of_other_names_or_types_are_not_stacked() -> None:
    """They would be cast to a neighbour's type, or lose an array. The batch is halved, and each row is right alone."""

    def row(**arrays: Any) -> Prepared:
        return Prepared(arrays, 1, digest(arrays))

    own = model()
    with pytest.raises(ValueError, match="different types"):
        own.collate([row(a=np.array([1])), row(a=np.array([1.5, 2]))])
    with pytest.raises(ValueError, match="different names"):
        own.collate([row(a=np.array([1])), row(a=np.array([1]), b=np.array([1]))])
