"""A network of transformers on a backend that traces it, or captures its passes: called and answering as the network itself does.

What comes of a trace is compared with the network on another shape each time it is loaded: one that has a shape, or a branch for it,
baked in is found out before it answers anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from producers.wire.errors import ConfigurationError
from workers.models.backends.build import build
from workers.models.backends.choice import Backend
from workers.models.backends.compiled_network import TOKENS, Source
from workers.models.backends.cuda_graphs import CapturedPasses, bucket, extent
from workers.models.huggingface.network_calls import accepted, call

#: Named inputs of a pass.
Inputs: TypeAlias = Mapping[str, torch.Tensor]

#: The least cosine between a row of what was made and of the network: that is for traces gone wrong, not for rounding.
_LEAST_ALIKE = 0.98


class Exported:
    """Stands for the network whose place in a pass it takes."""

    def __init__(self, module: Any, backend: Backend, example: Inputs, other: Inputs, cache: Path, where: str) -> None:
        """`example` is traced, `other` compared: rows, tokens or both are more of it."""
        example = {name: tensor for name, tensor in example.items() if name in accepted(module)}
        with torch.inference_mode():
            self._template = call(module, example)
        try:
            flat = _flat(module, next(iter(example.values())).shape[1])
            self._names = list(example)
            self._network = build(backend, Source(lambda: flat, example, cache), "cpu")
            problem = self._difference(module, other)
        except ConfigurationError:
            raise
        except Exception as error:  # tracers and compilers raise whatever they like
            raise ConfigurationError(f"{where}: {backend.name} cannot take this network: {_first(error)}") from error
        if problem:
            raise ConfigurationError(f"{where}: {backend.name} makes something else of this network: {problem}")

    def __call__(self, inputs: Inputs) -> Any:
        """Return what the network would. The tensors in it may be overwritten by the next call."""
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


class Captured:
    """Stands for a network on a GPU: a pass of a shape that comes again is replayed."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._inputs = accepted(module)
        self._template: Any = None
        self._passes = CapturedPasses(self._run)

    def __call__(self, inputs: Inputs) -> Any:
        """Return what the network would. The tensors in it may be overwritten by the next call."""
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


#: What stands before the name of an output that has an axis of tokens.
_MARK = f"{TOKENS}."


def _flat(module: Any, tokens: int) -> nn.Module:
    """Return the network as a module that gives tensors by name."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            leaves = _leaves(call(self.network, inputs))
            return {(_MARK if t.ndim > 2 and t.shape[1] == tokens else "") + name: t for name, t in leaves}

    return Flat().eval()


def _leaves(output: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a network's output with names that say where they were."""
    if isinstance(output, torch.Tensor):
        yield name or "output", output
    elif isinstance(output, Mapping):  # transformers' ModelOutput is one
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
