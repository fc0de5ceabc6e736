"""A transformers network on a backend that traces it, or with captured passes; inputs and outputs stay the same.

A traced network is compared with the original on another shape when it is loaded. A trace with a fixed shape or
branch is therefore rejected before it serves an item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from producers.wire.errors import ConfigurationError
from workers.models.backends.build import build
from workers.models.backends.choice import Backend
from workers.models.backends.compiled_network import TOKENS, Source
from workers.models.backends.cuda_graphs import CapturedPasses, bucket, extent
from workers.models.huggingface.network_calls import accepted, call

#: The weights of a head that is a single matrix, by their names in transformers.
_WEIGHT, _BIAS = "classifier.weight", "classifier.bias"

#: Named inputs of a pass.
Inputs: TypeAlias = Mapping[str, torch.Tensor]

#: The lowest cosine between a row of the traced output and of the original. The threshold finds wrong traces, not
#: rounding.
_LEAST_ALIKE = 0.98


class Exported:
    """A traced network. It replaces the original network in a pass."""

    def __init__(
        self,
        module: Any,
        backend: Backend,
        example: Inputs,
        other: Inputs,
        cache: Path,
        where: str,
        folder: Path | None = None,
    ) -> None:
        """Trace `example`, then compare on `other`, which has more rows, more tokens, or both.

        `folder` may have the network's file already.
        """
        example = {name: tensor for name, tensor in example.items() if name in accepted(module)}
        with torch.inference_mode():
            self._template = call(module, example)
        try:
            flat = _flat(module, next(iter(example.values())).shape[1])
            self._names = list(example)
            self._network = build(backend, Source(lambda: flat, example, cache, folder), "cpu")
            problem = self._difference(module, other)
        except ConfigurationError:
            raise
        except Exception as error:  # tracers and compilers raise exceptions of any class
            raise ConfigurationError(f"{where}: {backend.name} cannot run this network: {_first(error)}") from error
        if problem:
            raise ConfigurationError(f"{where}: {backend.name} gives other outputs for this network: {problem}")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs that the network reads, in their order."""
        return tuple(self._names)

    @property
    def is_flat(self) -> bool:
        """Whether the output has a name for each tensor, so that it can be made without the original."""
        return isinstance(self._template, Mapping) and all(
            name in self._template for name, _ in _leaves(self._template)
        )

    def __call__(self, inputs: Inputs) -> Any:
        """Return the output of the network. The next call may overwrite its tensors."""
        found = self._network({name: inputs[name] for name in self._names})
        return _filled(self._template, {name.removeprefix(_MARK): tensor for name, tensor in found.items()})

    def _difference(self, module: Any, inputs: Inputs) -> str:
        with torch.inference_mode():
            expected = dict(_leaves(call(module, inputs)))
            found = dict(_leaves(self(inputs)))
        for name, tensor in expected.items():
            if found[name].shape != tensor.shape:
                return f"{name} of shape {tuple(found[name].shape)}, not {tuple(tensor.shape)}"
            alike = torch.cosine_similarity(found[name].float().flatten(1), tensor.float().flatten(1)).min()
            if not alike >= _LEAST_ALIKE:
                return f"{name} differs (cosine {float(alike):.3f})"
        return ""


class Recalled:
    """A traced network that was compared at an earlier load: its file alone, without the original and its library.

    `inputs` are those of `Exported.inputs`. Its output has the tensors of a flat one (`Exported.is_flat`) by name.
    """

    def __init__(
        self, backend: Backend, example: Inputs, inputs: Sequence[str], cache: Path, folder: Path | None
    ) -> None:
        """Raises FileNotFoundError if the file is no longer there."""
        self._names = inputs
        source = Source(_gone, {name: example[name] for name in inputs}, cache, folder)
        self._network = build(backend, source, "cpu")

    def __call__(self, inputs: Inputs) -> Output:
        """Return the output of the network. The next call may overwrite its tensors."""
        found = self._network({name: inputs[name] for name in self._names})
        return Output({name.removeprefix(_MARK): tensor for name, tensor in found.items()})


class Output(dict[str, torch.Tensor]):
    """Tensors by name, also as attributes."""

    def __getattr__(self, name: str) -> torch.Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class LinearHead:
    """A head that is a matrix over one of the backbone's outputs, such as BERT's for tokens: it needs no class."""

    def __init__(self, feature: str, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.feature, self.weight, self.bias = feature, weight, bias

    def __call__(self, features: Mapping[str, torch.Tensor]) -> Output:
        """Return the `logits`."""
        return Output(logits=functional.linear(features[self.feature], self.weight, self.bias))


def linear_head(head: Any, features: Mapping[str, torch.Tensor], inputs: Inputs) -> LinearHead | None:
    """Return what a head of transformers computes as a `LinearHead`, or None if it is of another kind.

    `features` are the backbone's outputs for `inputs`, on which both must agree.
    """
    own = head.state_dict()
    if own.keys() != {_WEIGHT, _BIAS}:
        return None
    getattr(head, head.base_model_prefix).output = features
    with torch.inference_mode():
        expected = call(head, inputs).get("logits")
        for name, tensor in features.items():
            if expected is None or tensor.shape[-1:] != own[_WEIGHT].shape[1:]:
                continue
            found = LinearHead(name, own[_WEIGHT], own[_BIAS])
            logits = found(features).logits
            if logits.shape == expected.shape and torch.allclose(logits, expected, atol=1e-5):
                return found
    return None


def _gone() -> nn.Module:
    raise FileNotFoundError("the network's file is no longer there")


class Captured:
    """A network on a GPU: passes with a repeated shape are replayed from CUDA graphs."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._inputs = accepted(module)
        self._template: Any = None
        self._passes = CapturedPasses(self._run)

    def __call__(self, inputs: Inputs) -> Any:
        """Return the output of the network. The next call may overwrite its tensors."""
        inputs = {name: tensor for name, tensor in inputs.items() if name in self._inputs}
        rows, tokens = extent(inputs)
        _, most_tokens = bucket(rows, tokens)

        def own(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[:rows, :tokens] if tensor.ndim > 2 and tensor.shape[1] == most_tokens else tensor[:rows]

        found = self._passes(inputs)
        return _filled(self._template, {name: own(tensor) for name, tensor in found.items()})

    def _run(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        self._template = call(self._module, inputs)
        return dict(_leaves(self._template))


#: The prefix of the names of outputs that have an axis of tokens.
_MARK = f"{TOKENS}."


def _flat(module: Any, tokens: int) -> nn.Module:
    """Wrap the network in a module that returns a flat dict of tensors."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            leaves = _leaves(call(self.network, inputs))
            return {(_MARK if t.ndim > 2 and t.shape[1] == tokens else "") + name: t for name, t in leaves}

    return Flat().eval()


def _leaves(output: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a network's output, each with a name made of its path."""
    if isinstance(output, torch.Tensor):
        yield name or "output", output
    elif isinstance(output, Mapping):  # for example transformers' ModelOutput
        for key, part in output.items():
            yield from _leaves(part, f"{name}{key}")
    elif isinstance(output, tuple | list):
        for place, part in enumerate(output):
            yield from _leaves(part, f"{name}.{place}")


def _filled(template: Any, tensors: Mapping[str, torch.Tensor], name: str = "") -> Any:
    """Return an output like `template`, with other tensors in it."""
    if isinstance(template, torch.Tensor):
        return tensors[name or "output"]
    if isinstance(template, Mapping):
        parts = {key: _filled(part, tensors, f"{name}{key}") for key, part in template.items()}
        make: Callable[..., Any] = type(template)
        return make(**parts)
    if isinstance(template, tuple | list):
        return tuple(_filled(part, tensors, f"{name}.{place}") for place, part in enumerate(template))
    return template


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
