"""Passes of a network on a GPU, captured once for each shape and then replayed.

A small network's kernels run faster than Python launches them: MiniLM takes 5 ms for 32 texts on an H100, of which its kernels
take half a millisecond. A CUDA graph launches them all at once. It replays on memory that stays where it was, so each shape has
a graph and inputs of its own; shapes are padded to few. To capture one takes 20 ms and more, so only shapes that come often are:
those of interactive items. Of bulk's batches hardly two are alike, and they are large: launching is little of what they take.
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

#: So many shapes are remembered; the one that was not used for longest goes.
_MOST = 256

#: A shape is captured when it came so often: a capture costs about as much time as a pass saves so often.
_OFTEN = 8

#: A pass is captured if launching takes this share of its time; else its kernels are what takes the time, and a graph saves nothing.
_LAUNCHING = 0.8

#: Token counts are padded to a multiple of this at least.
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
    """Runs a network's passes as they come, those of a shape that comes again as a graph, where that is faster.

    Rows are the first axis of every input; an input of two axes has tokens on the second. Rows that are added are copies of
    the last one, tokens zeros, which a mask hides. What comes out is overwritten by the next call. Passes outside of
    `torch.inference_mode`, of which somebody may want gradients or have a look inside, run as they are. Not thread-safe.
    """

    def __init__(self, run: Pass) -> None:
        self._run = run
        self._shapes: OrderedDict[Key, _Graph | int] = OrderedDict()  # a graph, or how often the shape came
        self._capturable = True

    @property
    def captured(self) -> int:
        """How many graphs are held."""
        return sum(isinstance(known, _Graph) for known in self._shapes.values())

    def __call__(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        """Run a pass; the outputs may have more rows and tokens than the inputs: see `bucket`."""
        if not self._capturable or not torch.is_inference_mode_enabled():
            return self._run(inputs)
        shape = bucket(*extent(inputs))
        key = _key(inputs, *shape)
        known = self._shapes.pop(key, 0)
        if isinstance(known, int):
            known += 1
        self._shapes[key] = known  # as the one that was used last
        if len(self._shapes) > _MOST:
            self._shapes.popitem(last=False)
        if isinstance(known, _Graph):
            return known.replayed(padded(inputs, *shape))
        if known < _OFTEN:
            return self._run(inputs)
        return self._looked_at(key, inputs) if known == _OFTEN else self._first(key, padded(inputs, *shape))

    def _looked_at(self, key: Key, inputs: Tensors) -> dict[str, torch.Tensor]:
        """Run a pass as it is; if launching is not what it takes its time for, its shape begins to be counted anew."""
        began = time.perf_counter()
        outputs = self._run(inputs)
        launched = time.perf_counter()
        self._synchronize()
        if launched - began < _LAUNCHING * (time.perf_counter() - began):
            self._shapes[key] = 0
        return outputs

    def _first(self, key: Key, given: Tensors) -> dict[str, torch.Tensor]:
        try:
            graph = self._shapes[key] = self._capture(given)
        except RuntimeError as error:  # it asks the device for a number to decide what to do next, say
            self._synchronize()  # raises if more than the capture has failed
            _end_capture()
            self._capturable = False
            self._shapes.clear()
            logger.warning("passes of this network cannot be captured, they run as they are: %s", error)
            return self._run(given)
        return graph.replayed(given)

    def _capture(self, given: Tensors) -> _Graph:
        inputs = {name: tensor.clone() for name, tensor in given.items()}
        graph = torch.cuda.CUDAGraph()
        self._side.wait_stream(torch.cuda.current_stream())
        # not `torch.cuda.graph`, which first gives all free memory back: passes between captures would ask for it again
        with torch.cuda.stream(self._side):
            self._run(inputs)  # what sets itself up at its first run must not do so in the graph
            self._side.synchronize()
            # other threads load models meanwhile: their calls are not this capture's
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
    """Have random numbers drawn again: a capture that failed leaves torch thinking that it goes on, until another ends well."""
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.zeros(1, device="cuda")


def extent(inputs: Tensors) -> tuple[int, int]:
    """Return rows, and tokens (0 where no input has an axis of them)."""
    rows = next(iter(inputs.values())).shape[0]
    tokens = [tensor.shape[1] for tensor in inputs.values() if tensor.ndim == 2]
    return rows, max(tokens, default=0)


def bucket(rows: int, tokens: int) -> tuple[int, int]:
    """Return the shape that a batch is padded to: eight steps to each doubling, so that at most an eighth is added."""
    return max(2, _rounded(rows, 1)), _rounded(tokens, _FINEST_TOKENS) if tokens else 0


def _rounded(count: int, finest: int) -> int:
    step = max(finest, 1 << max(0, (count - 1).bit_length() - 4))
    return -(-count // step) * step


def padded(inputs: Tensors, rows: int, tokens: int) -> Tensors:
    """Return the inputs with copies of the last row, so that no added row is degenerate, and with zero (masked) tokens."""
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
