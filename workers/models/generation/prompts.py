"""Tokenise texts, messages and templates in the parent, with the checkpoint's own chat template.

Neither transformers nor torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from producers.wire.errors import ConfigurationError, InputTooLarge, InvalidInput
from producers.wire.kinds.generation import PLACE
from producers.wire.messages import MessagesInput
from workers.models.generation.prefixes import common
from workers.models.huggingface import generation_settings
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.huggingface.tokenizing import Tokenizing

if TYPE_CHECKING:
    from jinja2 import Template

#: The default of `max_new_tokens`.
MOST_UNASKED = 256

#: Stand-ins for the input, to find the tokens that all prompts of a template begin with.
_PROBES = ("0", "A", "\n")

#: Dialogues for which our rendering of a template must equal that of transformers.
DIALOGUES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "Hello, World!"),),
    (("system", "Be brief."), ("user", "  Ça va?\n"), ("assistant", "Oui."), ("user", "東京?")),
)


@dataclass(frozen=True)
class Prompts:
    """The tokenizer and the chat template of a folder. Thread-safe."""

    checkpoint: Checkpoint
    tokenizing: Tokenizing
    max_tokens: int

    def text(self, text: str) -> list[int]:
        """Return the tokens of a text to continue. Raises InvalidInput."""
        return self.tokenizing.encode(text).ids

    def messages(self, given: MessagesInput) -> list[int]:
        """Return the tokens of a dialogue, up to the start of the answer. Raises InvalidInput.

        The template itself writes the special tokens.
        """
        return self.bare(self.rendered([(message.role, message.content) for message in given.messages]))

    def templated(self, prompt: str, text: str) -> list[int]:
        """Return the tokens of a task's prompt filled with a text, as a user's message. Raises InvalidInput."""
        said = prompt.replace(PLACE, text)
        return self.bare(self.rendered([("user", said)])) if self.chats else self.text(said)

    def shared(self, prompt: str) -> int:
        """Return the number of tokens that all prompts of a task begin with."""
        return self._shared(prompt)

    def bare(self, text: str) -> list[int]:
        """Return a text's tokens without special tokens."""
        return self.tokenizing.bare(text)

    def room(self, tokens: Sequence[int], wanted: int | None, *, asked: bool = True) -> int:
        """Return the number of tokens that may follow a prompt: `wanted`, by default up to `MOST_UNASKED`.

        Raises InputTooLarge if prompt and answer exceed the model's limit. `asked` tells that `wanted` is the caller's
        `max_new_tokens`, which is at fault if the prompt alone has room.
        """
        left = self.max_tokens - len(tokens)
        if asked and wanted and 0 < left < wanted:
            problem = f"is {wanted:,}; with the {len(tokens):,} tokens of the prompt that is over {self.max_tokens:,}"
            raise InputTooLarge("params.max_new_tokens", problem, f"ask for {left:,} at most")
        if left < (wanted or 1):
            problem = f"has {len(tokens):,} tokens; with {wanted or 1:,} to generate that is over {self.max_tokens:,}"
            raise InputTooLarge("input", problem, "shorten it, or ask for fewer tokens")
        return wanted or min(left, MOST_UNASKED)

    @property
    def chats(self) -> bool:
        """Whether the folder has a chat template."""
        return self._source is not None

    def chats_here(self) -> None:
        """Raise ConfigurationError if the folder's chat template is invalid, or jinja2 is not installed."""
        _ = self._template

    def check_settings(self, *, obeyed: Collection[str]) -> None:
        """Raise ConfigurationError if the checkpoint's own settings of generation are not served."""
        generation_settings.check(self.checkpoint, obeyed=("repetition_penalty", *obeyed))
        penalty: Any = self.repetition_penalty
        if not isinstance(penalty, int | float) or not 0.01 <= penalty <= 100:
            problem = f"generation_config.json: repetition_penalty must be between 0.01 and 100, not {penalty!r}"
            raise ConfigurationError(f"{self.checkpoint.where}: {problem}; correct it")

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The checkpoint's own settings of generation."""
        return generation_settings.read(self.checkpoint)

    @cached_property
    def repetition_penalty(self) -> float:
        """The repetition penalty of a request that has none."""
        found: float | None = self.settings.get("repetition_penalty")
        return 1.0 if found is None else found

    @cached_property
    def eos(self) -> list[int]:
        """The tokens that end an answer, each once."""
        for file in ("generation_config.json", "config.json"):
            found = self.checkpoint.read_if_there(file).get("eos_token_id")
            if found is not None:
                return [found] if isinstance(found, int) else list(dict.fromkeys(found))
        return []

    def check(self) -> None:
        """Compare with transformers' own template, in the device process. Raises ConfigurationError if they differ, or
        if the tokenizer cleans up a text afterwards, of which a part may have been streamed.
        """
        if self.tokenizing.cleans_up:
            problem = "clean_up_tokenization_spaces = true is not served for texts that are written token by token"
            raise ConfigurationError(f"{self.checkpoint.where}: tokenizer_config.json: {problem}; set it to false")
        if not self.chats:
            return
        from transformers import AutoTokenizer

        folder, refusals = self.checkpoint.folder, []
        theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        for dialogue in DIALOGUES:
            turns = [{"role": role, "content": content} for role, content in dialogue]
            try:
                ours = self.rendered(dialogue)  # first: transformers renders without a bound
            except InvalidInput as refusal:  # such as of system messages
                refusals.append(refusal)
                continue
            try:
                wanted = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            except Exception:  # noqa: BLE001, S112 - a refusal is no difference
                continue
            if ours != wanted:
                problem = f"the chat template of {folder} renders differently than in transformers"
                raise ConfigurationError(f"{self.checkpoint.where}: {problem}")
        if len(refusals) == len(DIALOGUES):
            raise ConfigurationError(f"{self.checkpoint.where}: the chat template serves no dialogue: {refusals[0]}")

    @cached_property
    def _shared(self) -> Callable[[str], int]:
        """The function `shared` with a bounded cache, because items may have their own prompts."""

        def count(prompt: str) -> int:
            first, *others = (self.templated(prompt, probe) for probe in _PROBES)
            return min(common(first, other) for other in others)

        return lru_cache(256)(count)

    # --- the chat template ---

    @cached_property
    def _source(self) -> str | None:
        file = self.checkpoint.folder / "chat_template.jinja"
        if file.is_file():
            return file.read_text("utf-8")
        found = self.checkpoint.read_if_there("tokenizer_config.json").get("chat_template")
        if isinstance(found, list):  # several templates by name
            found = next((one["template"] for one in found if one.get("name") == "default"), None)
        return found if isinstance(found, str) else None

    @cached_property
    def _template(self) -> Template:
        try:
            from workers.models.generation import chat_templates
        except ImportError as error:
            raise ConfigurationError("chat templates need jinja2: pip install 'argosy[generation]'") from error
        try:
            return chat_templates.compiled(self._source or "")
        except chat_templates.TemplateError as error:
            raise ConfigurationError(f"{self.checkpoint.where}: the chat template is invalid: {error}") from error

    @cached_property
    def _special(self) -> Mapping[str, str]:
        """The tokenizer's special tokens by role, for use in templates."""
        settings = self.checkpoint.read_if_there("special_tokens_map.json")
        settings |= self.checkpoint.read_if_there("tokenizer_config.json")
        texts = {name: one.get("content") if isinstance(one, dict) else one for name, one in settings.items()}
        return {name: text for name, text in texts.items() if name.endswith("_token") and isinstance(text, str)}

    def rendered(self, turns: Sequence[tuple[str, str]], *, ask: bool = True) -> str:
        """Return the text of a dialogue of roles and contents, with `ask` up to the start of an answer.

        Raises InvalidInput.
        """
        if not self.chats:
            raise InvalidInput("input", "has messages, but the model has no chat template", "send text")
        from workers.models.generation import chat_templates

        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            return chat_templates.rendered(self._template, messages, self._special, ask=ask)
        except chat_templates.TemplateError as error:
            raise InvalidInput("input.messages", f"do not fit the model's chat template: {error}") from error
