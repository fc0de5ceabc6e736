"""Passes of a network on a GPU, captured once for each shape as a CUDA graph and then replayed.

A small network's kernels run faster than Python launches them: MiniLM takes 5 ms for 32 texts on an H100, and its
kernels half a millisecond of these. A CUDA graph launches all kernels at once. It replays on fixed memory, so each
shape needs its own graph and inputs, and shapes are padded to few. A capture takes 20 ms or more, so only frequent
shapes are captured: those of interactive items. Bulk batches hardly ever repeat a shape, and they are large, so that
launching is a small part of their time.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch

logger = logging.getLogger(__name__)

Tensors: TypeAlias = Mapping[str, torch.Tensor]
#: A pass: named tensors in, named tensors out.
Pass: TypeAlias = Callable[[Tensors], dict[str, torch.Tensor]]
#: The names, types and shapes of a pass's inputs.
Key: TypeAlias = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]

#: The number of shapes that are remembered; the least recently used is forgotten.
_MOST_SHAPES = 256

#: A shape is captured after this many passes: a capture costs about the time that this many replays save.
_PASSES_BEFORE_CAPTURE = 8

#: A pass is captured if launching takes this share of its time; otherwise a graph saves nothing.
_LAUNCH_SHARE = 0.8

#: Token counts are padded to a multiple of at least this.
_FINEST_TOKENS = 8


@dataclass(frozen=True, slots=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: Tensors
    outputs: dict[str, torch.Tensor]

    def replayed(self, given: Tensors) -> dict[str, torch.Tensor]:
        for name, tensor in given.items():
            self.inputs[name].copy_(tensor)
        self.graph.replay()
        return self.outputs


class CapturedPasses:
    """Runs a network's passes, and replays those with a frequent shape as graphs where that is faster.

    Rows are the first axis of every input; an input with two axes has tokens on the second. Added rows are copies of
    the last row; added tokens are zeros, which a mask hides. The next call overwrites the outputs. Passes outside of
    `torch.inference_mode` run without a graph, since a caller may want gradients or hooks. Not thread-safe.
    """

    def __init__(self, run: Pass) -> None:
        self._run = run
        self._shapes: OrderedDict[Key, _Graph | int] = OrderedDict()  # a graph, or the number of passes with the shape
        self._capturable = True

    @property
    def captured(self) -> int:
        """The number of graphs."""
        return sum(isinstance(known, _Graph) for known in self._shapes.values())

    def __call__(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        """Run a pass. The outputs may have more rows and tokens than the inputs; see `bucket`."""
        if not self._capturable or not torch.is_inference_mode_enabled():
            return self._run(inputs)
        shape = bucket(*extent(inputs))
        key = _key(inputs, *shape)
        known = self._shapes.pop(key, 0)
        if isinstance(known, int):
            known += 1
        self._shapes[key] = known  # now the most recently used
        if len(self._shapes) > _MOST_SHAPES:
            self._shapes.popitem(last=False)
        if isinstance(known, _Graph):
            return known.replayed(padded(inputs, *shape))
        if known < _PASSES_BEFORE_CAPTURE:
            return self._run(inputs)
        if known == _PASSES_BEFORE_CAPTURE:
            return self._timed(key, inputs)
        return self._captured(key, padded(inputs, *shape))

    def _timed(self, key: Key, inputs: Tensors) -> dict[str, torch.Tensor]:
        """Run and time a pass; unless launching dominates, restart the count of its shape."""
        began = time.perf_counter()
        outputs = self._run(inputs)
        launched = time.perf_counter()
        self._synchronize()
        if launched - began < _LAUNCH_SHARE * (time.perf_counter() - began):
            self._shapes[key] = 0
        return outputs

    def _captured(self, key: Key, given: Tensors) -> dict[str, torch.Tensor]:
        try:
            graph = self._shapes[key] = self._capture(given)
        except RuntimeError as error:  # such as a pass that reads a number from the device to decide on its next kernel
            self._synchronize()  # raises if more than the capture has failed
            _end_capture()
            self._capturable = False
            self._shapes.clear()
            logger.warning("this network's passes run without CUDA graphs, since their capture failed: %s", error)
            return self._run(given)
        return graph.replayed(given)

    def _capture(self, given: Tensors) -> _Graph:
        inputs = {name: tensor.clone() for name, tensor in given.items()}
        graph = torch.cuda.CUDAGraph()
        self._side.wait_stream(torch.cuda.current_stream())
        # `torch.cuda.graph` would first release all free memory, and passes between captures would allocate it again
        with torch.cuda.stream(self._side):
            self._run(inputs)  # the set-up of a first run must not be part of the graph
            self._side.synchronize()
            # other threads load models meanwhile, and their calls are not part of this capture
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                outputs = self._run(inputs)
            finally:
                graph.capture_end()
        return _Graph(graph, inputs, outputs)

    @cached_property
    def _side(self) -> torch.cuda.Stream:
        return torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @cached_property
    def _pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    @staticmethod
    def _synchronize() -> None:
        torch.cuda.current_stream().synchronize()


def _end_capture() -> None:
    """End a failed capture, after which torch refuses to draw random numbers until another capture ends well."""
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.zeros(1, device="cuda")


def extent(inputs: Tensors) -> tuple[int, int]:
    """Return the number of rows, and of tokens (0 if no input has an axis of tokens)."""
    rows = next(iter(inputs.values())).shape[0]
    tokens = [tensor.shape[1] for tensor in inputs.values() if tensor.ndim == 2]
    return rows, max(tokens, default=0)


def bucket(rows: int, tokens: int) -> tuple[int, int]:
    """Return the padded shape of a batch: eight steps to each doubling, so that at most an eighth is added."""
    return max(2, _rounded(rows, 1)), _rounded(tokens, _FINEST_TOKENS) if tokens else 0


def _rounded(count: int, finest: int) -> int:
    step = max(finest, 1 << max(0, (count - 1).bit_length() - 4))
    return -(-count // step) * step


def padded(inputs: Tensors, rows: int, tokens: int) -> Tensors:
    """Pad with copies of the last row, so that no added row is degenerate, and with zero (masked) tokens."""
    return {name: _padded(tensor, rows, tokens) for name, tensor in inputs.items()}


def _padded(tensor: torch.Tensor, rows: int, tokens: int) -> torch.Tensor:
    if tensor.ndim == 2 and tokens > tensor.shape[1]:
        tensor = torch.nn.functional.pad(tensor, (0, tokens - tensor.shape[1]))
    if rows > tensor.shape[0]:
        tensor = torch.cat([tensor, tensor[-1:].expand(rows - tensor.shape[0], *tensor.shape[1:])])
    return tensor


def _key(inputs: Tensors, rows: int, tokens: int) -> Key:
    return tuple(
        (name, tensor.dtype, (rows, tokens) if tensor.ndim == 2 else (rows, *tensor.shape[1:]))
        for name, tensor in inputs.items()
    )
