"""An ONNX file of a model's folder: its inputs, outputs and precision, checked before the worker loads it.

The names are those of optimum's exporters, which transformers.js reads too. A file is served if its names and shapes
leave no choice; anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from producers.wire.errors import ConfigurationError
from workers.models.backends.choice import Backend, Precision, require
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.checkpoint_networks import BACKBONE

#: The files that a folder without other weights is served from, in this order.
USUAL = ("model.onnx", "onnx/model.onnx")

#: The needed outputs by the transformers class of a task's network, and their numbers of axes (0: any).
OUTPUTS: Mapping[str, Mapping[str, int]] = {
    "AutoModelForSequenceClassification": {"logits": 2},
    "AutoModelForTokenClassification": {"logits": 3},
    "AutoModelForQuestionAnswering": {"start_logits": 2, "end_logits": 2},
    "AutoModelForImageClassification": {"logits": 2},
    BACKBONE: {"last_hidden_state": 0},
}

#: Outputs of other exporters that are the same.
_SAME = {"token_embeddings": "last_hidden_state"}

#: The inputs that a file may have, and their numbers of axes, of which the first `_VARYING` must be free.
_INPUTS = {"input_ids": 2, "attention_mask": 2, "token_type_ids": 2, "pixel_values": 4}
_VARYING = {2: ("rows", "tokens"), 4: ("rows",)}

#: The operators of quantised networks.
_INT8 = ("QLinear", "Quantize", "Dequantize", "DynamicQuantize", "MatMulInteger", "ConvInteger", "QAttention")
_FOUR_BITS = ("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized")

#: The first bytes of a file that Git LFS has not fetched.
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Graph:
    """The inputs and outputs of a network by name, with the sizes of their axes (None: free), and its operators.

    `types` are the names of the inputs' types, `kinds` those of the weights.
    """

    types: Mapping[str, str]
    inputs: Mapping[str, tuple[int | None, ...]]
    outputs: Mapping[str, tuple[int | None, ...]]
    operators: frozenset[str]
    kinds: frozenset[str]


@dataclass(frozen=True)
class OnnxFile:
    """`name` is the file's path from the folder of its checkpoint."""

    checkpoint: Checkpoint
    name: str

    @property
    def path(self) -> Path:
        return self.checkpoint.folder / self.name

    @property
    def reference(self) -> Backend:
        """The backend that computes exactly as the file."""
        return Backend("onnxruntime", self.precision)

    @cached_property
    def graph(self) -> Graph:
        require(Backend("onnxruntime"))
        try:
            state = self.path.stat()
            return _read(self.path, state.st_size, state.st_mtime_ns)
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise self._refusal(f"cannot be read: {reason}", "export or pull it again") from error

    @cached_property
    def precision(self) -> Precision:
        operators, kinds = self.graph.operators, self.graph.kinds
        if four := sorted(operators & {*_FOUR_BITS}) or sorted(kinds & {"INT4", "UINT4"}):
            raise self._refusal(f"has weights of 4 bits ({four[0]}), which are not served", "use one of 8 bits or more")
        if "BFLOAT16" in kinds:
            raise self._refusal("has weights in bf16, which ONNX Runtime does not run on CPUs", "export it in fp32")
        if any(operator.startswith(_INT8) for operator in operators):
            return "int8"
        return "fp16" if "FLOAT16" in kinds else "fp32"

    def check(self, tasks: Iterable[tuple[str, str, str]]) -> None:
        """Check the file for tasks: for each its name, its kind, and the transformers class of its network.

        Raises ConfigurationError, with the remedy, for everything that the file leaves open.
        """
        if not self.path.is_file():
            raise self._refusal("is not there", f"the folder has {_listed(self.checkpoint.folder)}")
        with self.path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise self._refusal("is a Git LFS pointer", "fetch the file: git lfs pull")
        self._check_inputs()
        for task, kind, auto in tasks:
            self._check_outputs(task, kind, auto)
        _ = self.precision

    def _check_inputs(self) -> None:
        again = "export it again with optimum, which writes dynamic axes"
        for name, sizes in self.graph.inputs.items():
            if name not in _INPUTS:
                problem = f"wants the input {name!r}, which no served kind has"
                raise self._refusal(problem, f"known: {', '.join(_INPUTS)}")
            if len(sizes) != _INPUTS[name]:
                raise self._refusal(f"wants {name} with {len(sizes)} axes, not {_INPUTS[name]}", again)
            for axis, size in zip(_VARYING[len(sizes)], sizes, strict=False):
                if size is not None:
                    raise self._refusal(f"has the fixed shape {_shape(sizes)} of {name}: {axis} must be free", again)

    def _check_outputs(self, task: str, kind: str, auto: str) -> None:
        for_kind = f"{kind} (the task {task!r})"
        needed = "pixel_values" if kind.startswith("image") else "input_ids"
        if auto not in OUTPUTS:
            problem = f"is not served for {for_kind}, which needs more than a network's outputs"
            raise self._refusal(problem, "name a folder of torch weights")
        if needed not in self.graph.inputs:
            problem = f"has the inputs {', '.join(self.graph.inputs)}, and {for_kind} needs {needed}"
            raise self._refusal(problem, "give the task the kind of the file")
        named = self.outputs
        for name, axes in OUTPUTS[auto].items():
            if name not in named:
                problem = f"has the outputs {', '.join(self.graph.outputs)}, and {for_kind} needs {name}"
                raise self._refusal(problem, "export it for this kind, or give the task the kind of the file")
            sizes = self.graph.outputs[named[name]]
            if axes and sizes and len(sizes) != axes:
                problem = f"has {len(sizes)} axes in {name}, and {for_kind} needs {axes}"
                raise self._refusal(problem, "give the task the kind that the file was exported for")

    @property
    def outputs(self) -> dict[str, str]:
        """The file's outputs by the name that transformers gives them."""
        return {_SAME.get(name, name): name for name in reversed([*self.graph.outputs])}

    def check_pooling(self, task: str, pooling: str | None) -> None:
        """Raise ConfigurationError if it is open how an image's vector is made: transformers' networks pool inside."""
        if pooling is None and "pooler_output" not in self.graph.outputs:
            problem = f"has no pooler_output, so it does not tell how {task!r} makes a vector"
            raise self._refusal(problem, 'set options.pooling to "mean" or "cls"')

    def _refusal(self, problem: str, remedy: str) -> ConfigurationError:
        return ConfigurationError(f"{self.checkpoint.where}: {self.path} {problem}; {remedy}")


def usual(checkpoint: Checkpoint) -> str:
    """Return the usual ONNX file of a folder that has no torch weights, or an empty string."""
    if checkpoint.has_weights:
        return ""
    return next((name for name in USUAL if (checkpoint.folder / name).is_file()), "")


def _listed(folder: Path) -> str:
    return ", ".join(sorted(str(file.relative_to(folder)) for file in folder.rglob("*.onnx"))[:10]) or "no ONNX file"


def _shape(sizes: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("free" if size is None else str(size) for size in sizes) + ")"


@lru_cache(maxsize=16)
def _read(path: Path, size: int, time_ns: int) -> Graph:
    """Read a file's graph without its external data. Size and time make a changed file another one."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    nodes = [*graph.node, *(node for function in model.functions for node in function.node)]
    name_of = onnx.TensorProto.DataType.Name
    return Graph(
        {one.name: name_of(one.type.tensor_type.elem_type) for one in graph.input if one.name not in weights},
        {one.name: _sizes(one) for one in graph.input if one.name not in weights},
        {one.name: _sizes(one) for one in graph.output},
        frozenset(node.op_type for node in nodes),
        frozenset(name_of(tensor.data_type) for tensor in graph.initializer),
    )


def _sizes(value: Any) -> tuple[int | None, ...]:
    axes = value.type.tensor_type.shape.dim
    return tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in axes)
