"""Choose the parts of a network that matter least for its answers to the user's rows.

Layers are left out one after another, each time the one without which the answers change least. Heads, inner features
and width are ranked by the first-order estimate of the loss without them, the sum of activation times gradient
(Molchanov et al., 2017; Michel, Levy and Neubig, 2019).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from workers.training.compressing.lessons import Lessons, TokenizedRows, surprise, wrong
from workers.training.compressing.smaller_networks import Kept, NetworkLayout, Size, layout_of
from workers.training.compressing.task_networks import TaskNetworks

#: Sequences that layers, and all else, are judged on.
FOR_LAYERS, FOR_PARTS = 64, 256


def least_missed(networks: TaskNetworks, rows: TokenizedRows, wanted: Size) -> Kept:
    """Return the parts to keep of a network for a wanted size."""
    size = Size.of(networks.backbone.config)
    kept = Kept.all_of(size)
    layers = _layers(networks, rows, wanted.layers) if wanted.layers < size.layers else list(kept.layers)
    if (wanted.heads, wanted.inner, wanted.width) == (size.heads, size.inner, size.width):
        return Kept(layers=layers, heads=kept.heads[: len(layers)], inner=kept.inner[: len(layers)], width=kept.width)
    scores = _Scores(networks, replace(size, layers=len(layers)))
    with _only(networks, layers):
        scores.measure(rows)
    return Kept(
        layers=layers,
        heads=[_best(own, wanted.heads) for own in scores.heads],
        inner=[_best(own, wanted.inner) for own in scores.inner],
        width=_best(scores.width, wanted.width),
    )


def _best(scores: torch.Tensor, count: int) -> list[int]:
    return sorted(scores.topk(count).indices.tolist())


def _stack(networks: TaskNetworks) -> Any:
    return networks.backbone.get_submodule(layout_of(networks.backbone.config).layers.rpartition(".")[0])


def _name(networks: TaskNetworks) -> str:
    return layout_of(networks.backbone.config).layers.rpartition(".")[2]


@contextmanager
def _only(networks: TaskNetworks, layers: Sequence[int]) -> Iterator[None]:
    """Run the backbone with these layers only."""
    stack, name = _stack(networks), _name(networks)
    every = getattr(stack, name)
    setattr(stack, name, nn.ModuleList(every[layer] for layer in layers))
    try:
        yield
    finally:
        setattr(stack, name, every)


def _layers(networks: TaskNetworks, rows: TokenizedRows, count: int) -> list[int]:
    """Return the `count` layers to keep. One layer goes at a time: without it, the answers change least."""
    lessons = rows.some(FOR_LAYERS)
    with torch.inference_mode():
        expected = [networks(own.inputs)[0] for own in lessons]
        kept = list(range(Size.of(networks.backbone.config).layers))
        while len(kept) > count:
            lost = {}
            for layer in kept:
                with _only(networks, [other for other in kept if other != layer]):
                    lost[layer] = _lost(networks, rows, lessons, expected)
            kept.remove(min(kept, key=lambda layer: lost[layer]))
    return kept


def _lost(
    networks: TaskNetworks,
    rows: TokenizedRows,
    lessons: Sequence[Lessons],
    expected: Sequence[Mapping[str, torch.Tensor]],
) -> float:
    total = 0.0
    for own, before in zip(lessons, expected, strict=True):
        now, _ = networks(own.inputs)
        total += sum(float(rows.unlike(task, now[task], before[task], own, 1.0)) for task in rows.kinds)
    return total


class _Scores:
    """The estimated loss without each head and inner feature, by layer, and without each place of the width."""

    def __init__(self, networks: TaskNetworks, size: Size) -> None:
        self._networks = networks
        self.heads = torch.zeros(size.layers, size.heads)
        self.inner = torch.zeros(size.layers, size.inner)
        self.width = torch.zeros(size.width)

    def measure(self, rows: TokenizedRows) -> None:
        layout = layout_of(self._networks.backbone.config)
        with ExitStack() as hooks:
            for number, layer in enumerate(getattr(_stack(self._networks), _name(self._networks))):
                self._watch(hooks, layer, number, layout)
            for lessons in rows.some(FOR_PARTS):
                self._networks.zero_grad(set_to_none=True)
                found, _ = self._networks(lessons.inputs)
                losses = [surprise(found[task], lessons, task, form) for task, form in rows.forms.items()]
                losses += [wrong(found[task], lessons, task, kind) for task, kind in rows.kinds.items()]
                loss = torch.stack(losses).sum()
                loss.backward()  # type: ignore[no-untyped-call]
                self._add_width()
        self._networks.zero_grad(set_to_none=True)

    def _watch(self, hooks: ExitStack, layer: nn.Module, number: int, layout: NetworkLayout) -> None:
        """Add up the scores of a layer's heads and inner features whenever a gradient reaches them."""
        for part, scores in ((layout.attended, self.heads), (layout.down, self.inner)):

            def before(_: Any, given: tuple[torch.Tensor, ...], scores: torch.Tensor = scores) -> None:
                activation = given[0]
                own = activation.detach()
                activation.register_hook(  # type: ignore[no-untyped-call]
                    lambda gradient: self._add(scores[number], own * gradient)
                )

            hooks.callback(layer.get_submodule(part).register_forward_pre_hook(before).remove)

    @staticmethod
    def _add(scores: torch.Tensor, products: torch.Tensor) -> None:
        by_row = products.flatten(1, -2).sum(1) if products.ndim > 2 else products
        scores += by_row.reshape(len(by_row), len(scores), -1).sum(-1).abs().sum(0)

    def _add_width(self) -> None:
        for module in self._networks.backbone.modules():
            if isinstance(module, nn.LayerNorm) and module.weight.shape == self.width.shape:
                for own in (module.weight, module.bias):
                    if own.grad is not None:
                        self.width += (own.detach() * own.grad).abs()
