"""Rules for every rendered row, checked before training; each check raises a TemplateError that names its rule.

The rules exist because a broken template fails silently: the loss falls, and the model has learnt to answer without
reasoning, or never to stop. TRL only warns when the prompt is not a prefix; templates of reasoning models (Qwen3,
DeepSeek-R1's distillations) delete everything up to `</think>` from assistant turns, all or the earlier ones.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from cot_unsloth.core.types import Example, Message
from cot_unsloth.prompts.chat_template import ChatTemplate, TemplateError


def check_sections(chat: ChatTemplate, example: Example, answer: str, rendered: str) -> None:
    """Every section of the solution is in the rendered row."""
    if answer in rendered:
        return
    pieces = [("reflection" if p.kind == "reflect" else "thinking", p.text) for p in example.trace.parts]
    lost = next((name for name, text in [*pieces, ("output", example.trace.output)] if text not in rendered), "tags")
    raise TemplateError(
        "section_lost",
        f"the chat template drops or rewrites the assistant's {lost}",
        hint=f"training on it would teach answers without reasoning; {chat.template_hint}",
    )


def check_messages(chat: ChatTemplate, messages: Sequence[Message], rendered: str) -> None:
    """Every message before the answer is in the rendered row. Many templates trim white space, which is no loss."""
    for at, message in enumerate(messages, start=1):
        # Membership, not equality with a slice: templates put a system prompt inside the first user turn (Gemma,
        # Mistral).
        if message["content"].strip() not in rendered:
            raise TemplateError(
                "section_lost",
                f"the chat template drops or rewrites message {at}, of the {message['role']}",
                hint=chat.template_hint,
            )


def check_prefix(chat: ChatTemplate, prompt: str, rendered: str, content: str) -> None:
    """The rendered prompt of a turn is a prefix of the rendered row, and the turn's content follows at once."""
    if not rendered.startswith(prompt):
        raise TemplateError(
            "not_a_prefix",
            f"the chat template {_prefix_problem(prompt, rendered)}",
            hint=chat.template_hint,
        )
    before, content_found, _ = rendered[len(prompt) :].partition(content.strip())
    if content_found and before.strip():
        raise TemplateError(
            "text_before_answer",
            f"the chat template {_text_before_problem(before)}, which is not in the prompt",
            hint=chat.template_hint,
        )


def check_prefix_ids(chat: ChatTemplate, prompt: str, prompt_ids: Sequence[int], ids: Sequence[int]) -> None:
    """The prompt's token ids are a prefix of the row's.

    This does not follow from the texts: BPE merges across the border if the prompt ends in a space or a letter, and then
    the model is trained on tokens that generation never sees.
    """
    if list(ids[: len(prompt_ids)]) != list(prompt_ids):
        raise TemplateError(
            "not_a_prefix",
            f"the chat template ends the prompt in {prompt[-20:]!r}, which the tokenizer joins with what follows, so the "
            "prompt is not a prefix of the rendered example",
            hint=chat.template_hint,
        )


def check_turn(chat: ChatTemplate, role: str, content: str, supervised: Sequence[int]) -> None:
    """The tokens that carry loss decode to the turn's content; tokenizers may normalise Unicode (Qwen's to NFC)."""
    decoded = chat.decode(supervised)
    if decoded == content:
        return
    # NFKC on both sides, because SentencePiece models often normalise that way (nmt_nfkc); white space as one space,
    # because templates trim it.
    actual, expected = (" ".join(unicodedata.normalize("NFKC", text).split()) for text in (decoded, content))
    if actual.startswith(expected) and actual != expected:
        raise no_stop(chat, role, decoded.partition(content.strip())[2])
    if actual != expected:
        raise TemplateError(
            "text_changed",
            f"the chat template writes the {role} so that its tokens decode to {decoded[:80]!r}, not to {content[:80]!r}",
            hint=chat.template_hint,
        )


def no_stop(chat: ChatTemplate, role: str, instead: str) -> TemplateError:
    """The fault of a turn that does not end in a token that generation stops at, but in the text `instead`."""
    ending = f" but with {instead.strip()[:40]!r}" if instead.strip() else ""
    hint = (
        f"add it to eos_token_id in generation_config.json, or {chat.template_hint}" if ending else chat.template_hint
    )
    return TemplateError(
        "no_stop",
        f"the chat template does not end the {role} with a token that generation stops at ({chat.stop_tokens}){ending}",
        hint=f"the model would never learn to stop; {hint}",
    )


def check_end(chat: ChatTemplate, rest: Sequence[int]) -> None:
    """Nothing but control tokens and white space follows the token that ends the last turn; these are cut off."""
    if not rest:
        return
    text = chat.decode(rest)
    if chat.without_control(text).strip():
        raise TemplateError(
            "text_after_answer",
            f"the chat template writes {text[:80]!r} after the assistant's turn",
            hint=chat.template_hint,
        )


def _shared_length(a: str, b: str) -> int:
    """Length of the longest common prefix of two texts."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _prefix_problem(prompt: str, rendered: str) -> str:
    """Why a prompt is not a prefix of the conversation that continues it."""
    shared = _shared_length(prompt, rendered)
    # Our answers begin with `<think` too, so the common prefix may end in the middle of the template's tag.
    if "<think>" in prompt[max(0, shared - len("<think>")) :]:
        return "opens a <think> block in the prompt, so the prompt is not a prefix of the rendered example"
    in_prompt, in_row = prompt[shared : shared + 40], rendered[shared : shared + 40]
    return f"writes {in_prompt!r} in the prompt and {in_row!r} in the example, so the prompt is not a prefix of the rendered example"


def _text_before_problem(text: str) -> str:
    """What a template adds before an answer."""
    if "<think>" in text:
        return "adds an empty <think> block before the answer"
    if "</think>" in text:
        return "opens a <think> block in the prompt and closes it before the answer"
    return f"adds {text[:80]!r} before the answer"
