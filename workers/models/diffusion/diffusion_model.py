"""A diffusers folder for the kinds `text-to-image` and `unconditional-image-generation`; its tasks share passes."""

from __future__ import annotations

import secrets
from collections.abc import Hashable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from producers.wire.catalogue import Task
from producers.wire.errors import ConfigurationError, InputTooLarge, InvalidInput
from producers.wire.kinds.pictures import DiffusionParams, TextToImageParams
from producers.wire.messages import MOST_SEED, SeedInput
from workers.models.diffusion import image_request
from workers.models.diffusion.folder import Folder
from workers.models.diffusion.image_request import Drawn, Wanted
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.checkpoint_model import read_for_each
from workers.models.huggingface.tokenizing import Tokenizing
from workers.models.interface import output_files, ragged
from workers.models.interface.model import Array, ModelSpec, Prepared, digest
from workers.models.interface.options import Count, Options
from workers.models.interface.stepwise import EngineModel

if TYPE_CHECKING:
    from workers.models.diffusion.diffusion_engine import DiffusionEngine  # noqa: F401 (in quotes in the base class)

#: The pixels of a unit of cost. A guided picture costs twice its units.
_SQUARE = 32 * 32


class DiffusionOptions(Options, frozen=True):
    """A picture has at most `max_pixels`. A step has up to `step_rows` pictures."""

    max_pixels: Count = 1024 * 1024
    step_rows: Count = 8


class DiffusionModel(EngineModel["DiffusionEngine"]):
    """Pictures of any size, generated in steps."""

    options_class = DiffusionOptions
    options: DiffusionOptions

    backends = ("torch",)
    default_cost = 16384

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._joined = 0

    # --- in the parent process ---

    @cached_property
    def revision(self) -> str:
        backend = self.spec.backend
        if backend.compiled:
            raise ConfigurationError(f"{self._where}.compile: not supported for pictures; leave it out")
        if not self._folder.reads_prompts and "text-to-image" in {task.kind.name for task in self.spec.tasks.values()}:
            raise ConfigurationError(
                f"{self._where}: {self._folder.pipeline} reads no prompts; text-to-image needs them"
            )
        _ = self._folder.size, self._folder.steps
        return self.spec.revision if backend.is_reference else f"{self.spec.revision}+{backend}"

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        """Check a request. The row has a packed request per task, uint8 `(bytes,)`. Its size is in squares of 32 x 32
        pixels.

        Raises InvalidInput, InputTooLarge.
        """
        found, refused = read_for_each(params, lambda _, chosen: self._wanted(content, chosen))
        arrays = {task: one.packed() for task, one in found.items()}
        size = sum(_cost(one) for one in found.values())
        return Prepared(arrays, size, digest(arrays), refused, {task: one.seed for task, one in found.items()})

    def _wanted(self, content: Any, params: msgspec.Struct) -> Wanted:
        assert isinstance(params, DiffusionParams), "this class serves no other kinds"
        height, width = self._size(params)
        steps = params.num_inference_steps or self._folder.steps
        if not isinstance(params, TextToImageParams):
            assert isinstance(content, SeedInput), "the form of inputs of this kind"
            return Wanted(content.seed, steps, height, width)
        self._check_length(content, "input")
        if params.negative_prompt:
            self._check_length(params.negative_prompt, "params.negative_prompt")
        # drawn in the parent, so that a request restarted after a crash of the device gives the same picture
        seed = secrets.randbelow(MOST_SEED) if params.seed is None else params.seed
        return Wanted(seed, steps, height, width, content, params.negative_prompt, params.guidance_scale)

    def _size(self, params: DiffusionParams) -> tuple[int, int]:
        own = self._folder.size
        size = (params.height or own[0], params.width or own[1])
        multiple = self._folder.multiple
        for name, given in zip(("height", "width"), size, strict=True):
            if multiple is None and size != own:
                raise InvalidInput(f"params.{name}", f"is {given}, but the model supports {own[1]} x {own[0]} only")
            if multiple is not None and given % multiple:
                raise InvalidInput(f"params.{name}", f"is {given}, not a multiple of {multiple}", "round it")
        if size[0] * size[1] > self.options.max_pixels:
            problem = f"{size[1]} x {size[0]} are over {self.options.max_pixels:,} pixels"
            raise InvalidInput("params.height", problem, "ask for a smaller picture, or raise the option `max_pixels`")
        return size

    def _check_length(self, text: str, field: str) -> None:
        tokens, most = len(self._tokenizing.encode(text).ids), self._folder.max_tokens
        if tokens > most:
            raise InputTooLarge(field, f"has {tokens} tokens, over {most}", "shorten the prompt")

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        """Return the picture of a `ragged` row, and its seed."""
        assert isinstance(params, DiffusionParams), "this class serves no other kinds"
        drawn = msgspec.convert(ragged.unpack(output), Drawn)
        answer = {"image": output_files.picture(drawn.image(), params.format), "seed": prepared.aside[task.name]}
        return {**answer, "flagged": True} if drawn.flagged else answer

    @cached_property
    def _folder(self) -> Folder:
        return Folder(self.spec.folder, self._where)

    @cached_property
    def _tokenizing(self) -> Tokenizing:
        return Tokenizing(Checkpoint(self.spec.folder / "tokenizer", self._where))

    @property
    def _where(self) -> str:
        return f"models.{self.spec.name}"

    # --- in the device process ---

    def load(self, device: str) -> None:
        from workers.models.diffusion.diffusion_engine import DiffusionEngine
        from workers.models.diffusion.diffusion_networks import load

        if self._folder.reads_prompts:
            self._tokenizing.check()
        networks = load(self._folder, device, self.spec.backend.precision)
        self._engine = DiffusionEngine(networks, self.options.step_rows)

    def join(self, key: Hashable, task: str, request: Array, *, urgency: int) -> None:
        self._joined += 1
        self.engine.join(key, image_request.unpack(request), urgency=urgency, number=self._joined)


def _cost(one: Wanted) -> int:
    squares = -(-one.height * one.width // _SQUARE)
    return squares * (2 if one.guided else 1)
