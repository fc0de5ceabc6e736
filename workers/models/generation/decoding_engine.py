"""Continuous batching: each step reads prompts in pieces and advances all rows that generate by one token.

A step has at most `rows` rows that generate and `PIECE_TOKENS` tokens of prompts, which bounds its time. A long prompt
therefore delays the other rows no longer than a short prompt does, and a new request starts with the next step.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Hashable, Sequence
from typing import TYPE_CHECKING

from workers.models.generation.checkpoint_rules import CheckpointRules
from workers.models.generation.decoder_network import DecoderNetwork, Feed
from workers.models.generation.generation_request import GenerationRequest
from workers.models.generation.grammar import Grammars
from workers.models.generation.key_value_memory import Block, Kept
from workers.models.generation.prefixes import Prefixes
from workers.models.generation.sampling import Sampler
from workers.models.generation.sequence import GeneratedSequence
from workers.models.generation.writing import TextWriter
from workers.models.interface import step_rota
from workers.models.interface.stepwise import StepResult

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: The most prompt tokens that a step reads.
PIECE_TOKENS = 256


class DecodingEngine:
    """All requests at the device. A step has up to `rows` requests. For each adapter, `prefix_tokens` tokens of keys
    and values are cached, because adapters change them. Not thread-safe.
    """

    def __init__(
        self,
        network: DecoderNetwork,
        *,
        rows: int,
        prefix_tokens: int,
        tokenizer: Tokenizer,
        grammars: Grammars,
        eos: Collection[int],
        rules: CheckpointRules,
    ) -> None:
        self._network = network
        self._rows = rows
        self._lines: dict[Hashable, GeneratedSequence] = {}
        self._block = Block(network.shape)
        self._in_block: list[GeneratedSequence] = []  # by row
        self._prefix_tokens = prefix_tokens
        self._prefixes: defaultdict[int, Prefixes] = defaultdict(self._new_prefixes)
        self._tokenizer = tokenizer
        self._grammars = grammars
        self._eos = eos
        self._rules = rules
        self._joined = 0

    def _new_prefixes(self) -> Prefixes:
        return Prefixes(self._prefix_tokens)

    def __len__(self) -> int:
        return len(self._lines)

    def join(self, key: Hashable, request: GenerationRequest, *, urgency: int, adapter: int = 0) -> None:
        """Add a request, for the plain network or for an adapter, counted from 1."""
        self._joined += 1
        # a grammar is not bound by the checkpoint's rules, which might leave it no token
        rules = () if request.grammar else self._rules.of_request(len(request.tokens), request.max_new_tokens)
        self._lines[key] = GeneratedSequence(
            key=key,
            request=request,
            urgency=urgency,
            number=self._joined,
            adapter=adapter,
            writer=TextWriter(self._tokenizer, request.stop),
            sampler=Sampler(request.sampling, rules),
            matcher=self._grammars.matcher(request.grammar) if request.grammar else None,
            eos=self._eos,
            pending=list(request.tokens),
        )

    def leave(self, key: Hashable) -> None:
        line = self._lines.pop(key, None)
        if line is not None and line.row is not None:
            self._out_of_block(line)

    def clear(self) -> None:
        """Drop all requests after a fault, and the cached prefixes, which may be wrong."""
        self._lines.clear()
        self._in_block.clear()
        self._block = Block(self._network.shape)
        self._prefixes.clear()

    def step(self) -> list[StepResult]:
        """Take a step and return its outputs."""
        chosen = step_rota.choose(list(self._lines.values()), self._rows)
        inside = set(map(id, chosen))
        for line in [line for line in self._in_block if id(line) not in inside]:
            line.kept = self._block.kept(self._row(line))
            self._out_of_block(line)
        writing = [line for line in chosen if line.writes]
        reading = [line for line in chosen if not line.writes]
        if writing:
            self._timed(self._write, writing)
        if reading:
            self._timed(self._read, reading)
        return [self._stepped(line) for line in chosen if line.outcome is not None or line.request.stream]

    def _timed(self, work: object, lines: Sequence[GeneratedSequence]) -> None:
        started = time.perf_counter()
        work(lines)  # type: ignore[operator]
        each_s = (time.perf_counter() - started) / len(lines)
        for line in lines:
            line.forward_s += each_s

    def _stepped(self, line: GeneratedSequence) -> StepResult:
        text, at = line.writer.piece() if line.request.stream else ("", 0)
        if line.outcome is None:
            return StepResult(line.key, text, at)
        self._cache_prefix(line)
        self.leave(line.key)
        return StepResult(line.key, text, at, line.outcome, line.forward_s)

    # --- writing ---

    def _write(self, lines: Sequence[GeneratedSequence]) -> None:
        """Feed each line's last token, in the block, and choose the next."""
        for line in lines:
            if line.row is None:
                assert line.kept is not None, "a line without a row has `kept`"
                line.row, line.kept = self._block.add(line.kept), None
                self._in_block.append(line)
        logits = self._network.run(
            self._block, [Feed(line.pending, (0,), adapter=line.adapter) for line in self._in_block]
        )
        for line, own in zip(self._in_block, logits, strict=True):
            line.read += line.pending
            line.take(own[0])

    def _out_of_block(self, line: GeneratedSequence) -> None:
        row = self._row(line)
        moved = self._block.drop(row)
        last = self._in_block.pop()
        if moved is not None:
            self._in_block[row], last.row = last, row
        line.row = None

    @staticmethod
    def _row(line: GeneratedSequence) -> int:
        assert line.row is not None, "the line is in the block"
        return line.row

    # --- reading ---

    def _read(self, lines: Sequence[GeneratedSequence]) -> None:
        """Read a piece of each line's prompt in a separate block. After the last piece, choose the first token or
        score the labels.
        """
        block = Block(self._network.shape)
        left = PIECE_TOKENS
        pieces: list[tuple[GeneratedSequence, Feed]] = []
        for line in lines:
            if not left:
                break
            block.add(self._begun(line))
            feed = self._piece(line, left)
            left = max(0, left - len(feed.tokens))
            pieces.append((line, feed))
        logits = self._network.run(block, [feed for _, feed in pieces])
        for row, (line, feed) in enumerate(pieces):
            self._after_piece(line, feed, block, row, logits[row])

    def _begun(self, line: GeneratedSequence) -> Kept:
        """Return a line's keys and values so far; the first call starts from the longest cached prefix."""
        if line.kept is None:
            line.kept = self._network.shape.empty()
            known = self._prefixes[line.adapter].find(line.pending)
            if known is not None:
                line.kept, line.cached = known, known.shape[3]
                line.read, line.pending = line.pending[: line.cached], line.pending[line.cached :]
        return line.kept

    def _piece(self, line: GeneratedSequence, most: int) -> Feed:
        rest = line.pending
        if len(rest) > most:
            return Feed(rest[:most], adapter=line.adapter)
        if line.request.labels:
            return line.tree(rest)
        return Feed(rest, (len(rest) - 1,), adapter=line.adapter)

    def _after_piece(self, line: GeneratedSequence, feed: Feed, block: Block, row: int, logits: object) -> None:
        taken = min(len(feed.tokens), len(line.pending))
        line.read += line.pending[:taken]
        line.pending = line.pending[taken:]
        line.kept = block.kept(row, len(line.read))  # drop the labels after the prompt: they are not part of it
        shared = line.request.shared
        prefixes = self._prefixes[line.adapter]
        if shared and not prefixes.holds(line.read[:shared]) and len(line.read) >= shared:
            prefixes.keep(line.read[:shared], line.kept[:, :, :, :shared].clone())
        if line.pending:
            return
        if line.request.labels:
            line.score(logits)  # type: ignore[arg-type]
        else:
            line.take(logits[0])  # type: ignore[index]

    def _cache_prefix(self, line: GeneratedSequence) -> None:
        """Cache a dialogue's keys and values for its next message. Prompted tasks share only their template."""
        prefixes = self._prefixes[line.adapter]
        if not line.request.shared and not prefixes.holds(line.read):
            kept = line.kept if line.row is None else self._block.kept(line.row)
            if kept is not None:
                prefixes.keep(line.read, kept)
