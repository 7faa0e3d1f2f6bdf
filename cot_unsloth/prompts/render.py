"""Renders Examples as Samples: token ids and labels, checked against every rule, or a reject with the reason.

A row goes: messages of the prompt (`arms`) → rendered text (`chat_template`) → token ids → checks (`rules`) → labels
(`labels`). Nothing is ever cut: a row that does not fit into `max_seq_length` is rejected.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import pickle
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cot_unsloth.config import DataConfig
from cot_unsloth.core import trace
from cot_unsloth.core.logs import LOG
from cot_unsloth.core.samples import Samples, batch_of
from cot_unsloth.core.types import Example, Message, Prompt, Reject, Sample
from cot_unsloth.core.workers import allowed_cores, in_workers
from cot_unsloth.prompts import labels, rules
from cot_unsloth.prompts.arms import Prompter
from cot_unsloth.prompts.chat_template import ChatTemplate, TemplateError
from cot_unsloth.storage.stored_rows import StoredRows, rows_without


@dataclass(frozen=True)
class Rendered:
    """The result of rendering Examples: rows in = kept + rejects."""

    kept: Sequence[Example]
    samples: Samples
    """One per row of `kept`, in its order."""
    rejects: Sequence[Reject]
    rejected: Sequence[int]
    """The positions of the rejected rows among all."""


@dataclass(frozen=True)
class RenderedChunk:
    """Some consecutive rows of these."""

    rows: int
    samples: Any
    """An arrow batch, see `batch_of`."""
    rejects: list[tuple[int, Reject]]
    """With their positions in the chunk."""


CHUNK = 512
"""Rows that are rendered at once: about 0.2 s of work."""
MOST_WORKERS = 4
"""Processes, unless the user asks for more: each takes about 220 MB, and this process can feed about five."""
FEWEST_ROWS = 40_000
"""Rows from which more than one process renders.

Starting one takes 2.4 CPU seconds (it imports transformers), and a row of 380 tokens takes 0.5 ms (an EPYC, tiny base,
bench/results/preparation.json). By these figures two processes on two cores are as fast as one at 10,000 rows, and take 12 s
instead of 20 at 40,000.
"""


class Renderer(Prompter):
    """Makes Samples of Examples too, for one model."""

    def __init__(self, chat: ChatTemplate, data: DataConfig) -> None:
        super().__init__(data)
        self.chat = chat

    def prompt(self, example: Example, arm: str) -> Prompt:
        """As a Prompter's. A reasoning model asked as a base begins its answer as its own template does."""
        prompt = super().prompt(example, arm)
        own = arm in ("base_direct", "base_cot") and self.chat.base_opening
        return replace(prompt, prefix=self.chat.base_opening) if own else prompt

    def samples(
        self, examples: Sequence[Example], advance: Callable[[int], None] = lambda n: None, *, into: Path | None = None
    ) -> Rendered:
        """Render all rows; those that cannot be trained on are rejected with their reason.

        In as many processes as `data.dataset_num_proc` says, with the same result in the same order.

        Args:
            examples: the rows.
            advance: called with a number of rows once these are rendered, for a progress bar.
            into: a file to write the samples to as they are made; without it they are kept in memory.

        Raises:
            OSError: `into` cannot be written.
            RenderError: steps are to be masked, and the tokenizer cannot tell where they are.
            EngineError: a process ended that was to render rows.
        """
        rejects, rejected = StoredRows[Reject](), array("Q")

        def batches(chunks: Iterable[RenderedChunk]) -> Iterator[Any]:
            first = 0
            for chunk in chunks:
                for position, reject in chunk.rejects:
                    rejects.append(reject)
                    rejected.append(first + position)
                yield chunk.samples
                first += chunk.rows
                advance(chunk.rows)

        with contextlib.closing(self._chunks(examples)) as chunks:
            rendered_batches = batches(chunks)
            samples = Samples.written(rendered_batches, into) if into else Samples.of_batches(rendered_batches)
        return Rendered(rows_without(examples, rejected), samples, rejects, rejected)

    def _chunks(self, examples: Sequence[Example]) -> Generator[RenderedChunk]:
        # Without its problem: nothing of it is rendered, and its class may be one that only this process can import.
        rows = (example if example.problem is None else replace(example, problem=None) for example in examples)
        chunks = iter(lambda: list(itertools.islice(rows, CHUNK)), [])
        workers = self._workers(len(examples))
        function = self._pickled() if workers > 1 else None
        yield from map(self.chunk, chunks) if function is None else in_workers(function, chunks, workers, "render rows")

    def _workers(self, rows: int) -> int:
        """How many processes render so many rows."""
        if self.data.dataset_num_proc is not None:
            return min(self.data.dataset_num_proc, math.ceil(rows / CHUNK))
        return min(allowed_cores(), MOST_WORKERS) if rows >= FEWEST_ROWS else 1

    def _pickled(self) -> bytes | None:
        try:
            return pickle.dumps(self.chunk, pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # a tokenizer may have parts in Python, which fail in any way
            LOG.debug("one process renders: %s", error)
            return None

    def chunk(self, examples: Sequence[Example]) -> RenderedChunk:
        """Some rows, rendered. Raises as `samples`."""
        results = [self.sample(example) for example in examples]
        rejects = [(position, reject) for position, reject in enumerate(results) if isinstance(reject, Reject)]
        return RenderedChunk(
            len(results), batch_of([sample for sample in results if isinstance(sample, Sample)]), rejects
        )

    def sample(self, example: Example) -> Sample | Reject:
        """One row as ids and labels, or why it is rejected.

        Raises:
            RenderError: steps are to be masked, and the tokenizer cannot tell where they are.
        """
        try:
            return self.sample_or_raise(example)
        except TemplateError as error:
            hint = f" ({error.hint})" if error.hint else ""
            return Reject(example.where, error.reason, error.message + hint)

    def sample_or_raise(self, example: Example) -> Sample | Reject:
        """As `sample`, but faults of the template are raised.

        Raises:
            TemplateError: the template refuses the row, or breaks a rule on it.
        """
        prompt = self.prompt(example, "tuned")
        answer = self.solution(example)
        if reject := self._reject_text(example, prompt, answer):
            return reject
        conversation: list[Message] = [*prompt.messages, {"role": "assistant", "content": answer}]
        rendered = self.chat.text(conversation, ask=False)
        if self.data.mask_wrong_steps and example.trace.injected:
            self.chat.keep_offsets(rendered, rendered.rfind(answer))
        ids = self.chat.ids(rendered)
        rules.check_sections(self.chat, example, answer, rendered)
        rules.check_messages(self.chat, prompt.messages, rendered)
        trained = labels.trained_messages(example, len(conversation), self.data)
        turns = [self._turn(conversation, at, rendered, ids) for at in trained]
        last = turns[-1]
        rules.check_end(self.chat, ids[last.end :])
        # ChatML writes a line break after <|im_end|>, others more. Generation never gets that far, so it is not
        # trained on.
        ids = ids[: last.end]
        if len(ids) > self.data.max_seq_length:
            return self._too_long(example, ids, last.first)
        masked = self._masked_positions(example, answer, rendered, len(last.prompt))
        return Sample(tuple(ids), tuple(labels.labels_for(ids, ((t.first, t.end) for t in turns), masked)), example.id)

    def _reject_text(self, example: Example, prompt: Prompt, answer: str) -> Reject | None:
        """The reject of a row whose own text contains a control token or a thinking tag."""
        control = self.chat.control_token("\n".join([*(m["content"] for m in prompt.messages), answer]))
        if control:
            return Reject(
                example.where,
                "control_token",
                f"the text contains {control}, which the tokenizer treats as a control token",
            )
        # A tag inside a step would end the thinking when the completion is parsed. Readers reject only the default tags,
        # since the spelling is a setting of the run.
        text = "\n".join([*(part.text for part in example.trace.parts), example.trace.output])
        tag = next((tag for tag in trace.tags("thinking", self.data.thinking_tags) if tag in text), None)
        if tag:
            return Reject(example.where, "misnested", f"the row's own text contains {tag}; remove the tag")
        return None

    def _too_long(self, example: Example, ids: Sequence[int], prompt_length: int) -> Reject:
        limit = self.data.max_seq_length
        lost = self._section_cut(ids, prompt_length)
        return Reject(
            example.where, "too_long", f"{len(ids)} tokens, max_seq_length is {limit}: the cut would fall in the {lost}"
        )

    def _section_cut(self, ids: Sequence[int], prompt_length: int) -> str:
        """The section in which a cut at max_seq_length would fall."""
        limit = self.data.max_seq_length
        if prompt_length >= limit:
            return "prompt"
        if limit == len(ids) - 1:
            return "stop token"
        scanner = trace.Scanner(self.data.thinking_tags)
        sections = [event.section for event in scanner.feed(self.chat.decode(ids[prompt_length:limit]))]
        return scanner.section or ("output" if sections else "thinking")

    def _turn(self, conversation: Sequence[Message], at: int, rendered: str, ids: list[int]) -> labels.Turn:
        """Where the assistant's turn `at` is in the rendered conversation.

        Raises:
            TemplateError: its prompt is not a prefix, its text is changed, or it does not end in a stop token.
        """
        content = conversation[at]["content"]
        role = "assistant's turn" if at == len(conversation) - 1 else f"assistant's earlier turn (message {at + 1})"
        # Rendered as generation will render it, with the generation prompt; the row is rendered without one. That the
        # first is a prefix of the second is checked, never assumed.
        prompt = self.chat.text(conversation[:at], ask=True)
        rules.check_prefix(self.chat, prompt, rendered, content)
        prompt_ids = self.chat.ids(prompt)
        rules.check_prefix_ids(self.chat, prompt, prompt_ids, ids)
        first = len(prompt_ids)
        # The first stop token, since generation would end there, whatever the template writes after it.
        end = min((ids.index(stop, first) + 1 for stop in self.chat.stops.intersection(ids[first:])), default=None)
        if end is None:
            raise rules.no_stop(self.chat, role, "")
        rules.check_turn(self.chat, role, content, ids[first : end - 1])
        return labels.Turn(prompt, first, end)

    def conversation(self, example: Example) -> tuple[str, int]:
        """The rendered conversation of a row, and the character at which the trained answer begins."""
        prompt = self.prompt(example, "tuned")
        answer = self.solution(example)
        rendered = self.chat.text([*prompt.messages, {"role": "assistant", "content": answer}], ask=False)
        # Searched for behind the prompt: an earlier turn may have the same text.
        return rendered, rendered.index(answer, len(self.chat.prompt_text(prompt)))

    def sections(self, example: Example, sample: Sample) -> list[trace.Section | None]:
        """For each token of a sample its section; None in the prompt and for the stop token.

        Raises:
            RenderError: the tokenizer cannot tell which characters its tokens stand for.
        """
        rendered, start = self.conversation(example)
        spans = [
            (section, start + begin, start + end)
            for section, begin, end in trace.section_spans(self.solution(example), self.data.thinking_tags)
        ]
        sections: list[trace.Section | None] = []
        # A token that reaches over a border belongs to the section in which it begins.
        for begin, _ in self.chat.offsets(rendered)[: len(sample.ids)]:
            while len(spans) > 1 and spans[0][2] <= begin:
                spans.pop(0)
            section, first, last = spans[0]
            sections.append(section if first <= begin < last else None)
        return sections

    def _masked_positions(self, example: Example, answer: str, rendered: str, prompt_length: int) -> frozenset[int]:
        """Positions of the tokens of corrupted steps, if these are masked; `prompt_length` is in characters."""
        if not (self.data.mask_wrong_steps and example.trace.injected):
            return frozenset()
        # Searched for behind the prompt: a conversation may contain the same answer before.
        start = rendered.index(answer, prompt_length)
        spans = labels.corrupted_spans(example, self.data, start)
        return labels.positions_in(self.chat.offsets(rendered, start), spans)
