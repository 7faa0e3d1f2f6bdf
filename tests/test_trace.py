"""The trace grammar: named faults, and an incremental parser whose result does not depend on how its input is split."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_unsloth.core import trace
from cot_unsloth.core.types import Part, Trace

GOOD = "<thinking>\na\n<reflection>b</reflection>\nc\n</thinking>\n<output>4</output>"
PIECES = st.sampled_from(
    [
        "<thinking>",
        "</thinking>",
        "<reflection>",
        "</reflection>",
        "<output>",
        "</output>",
        "<",
        "</",
        "think",
        ">",
        "a",
        " ",
        "\n",
        "é",
    ]
)
TEXTS = st.lists(PIECES, max_size=25).map("".join)
PLAIN = st.text(st.characters(exclude_characters="<>", exclude_categories=("Cs", "Cc")), min_size=1).filter(
    lambda s: s.strip() == s
)


def events(pieces: list[str]) -> list[tuple[str, str | None, str]]:
    """Events with adjacent text of one section joined."""
    joined: list[tuple[str, str | None, str]] = []
    for event in trace.scan(pieces):
        if event.kind == "text" and joined and joined[-1][:2] == ("text", event.section):
            joined[-1] = ("text", event.section, joined[-1][2] + event.text)
        else:
            joined.append((event.kind, event.section, event.text))
    return joined


@given(TEXTS, st.lists(st.integers(0, 200)))
def test_splitting_anywhere_gives_the_same_events(text: str, cuts: list[int]) -> None:
    at = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[a:b] for a, b in itertools.pairwise(at)]
    assert events(pieces) == events([text])


@given(TEXTS)
def test_parsing_loses_no_character(text: str) -> None:
    tags = {"open": "<{}>", "close": "</{}>"}
    again = "".join(text_ if kind == "text" else tags[kind].format(section) for kind, section, text_ in events([text]))
    assert again == text


@given(TEXTS)
def test_parse_never_raises_and_returns_a_trace_or_faults(text: str) -> None:
    parsed = trace.parse(text)
    assert (parsed.trace is None) == bool(parsed.faults or parsed.output is None)


@given(
    st.lists(st.tuples(st.sampled_from(["think", "reflect"]), PLAIN), min_size=1, max_size=6).filter(
        lambda parts: any(kind == "think" for kind, _ in parts)
    ),
    PLAIN,
    st.sampled_from(["nested", "sequential"]),
)
def test_a_rendered_trace_is_parsed_back(parts: list[tuple[str, str]], output: str, layout: str) -> None:
    written = Trace(tuple(Part(kind, text) for kind, text in parts), output)  # type: ignore[arg-type]
    parsed = trace.parse(trace.render(written, layout))  # type: ignore[arg-type]
    assert parsed.faults == ()
    assert parsed.output == output
    for kind in ("think", "reflect"):
        said = "\n".join(part.text for part in parsed.parts if part.kind == kind)
        assert said == "\n".join(text for k, text in parts if k == kind)


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (GOOD, ()),
        ("<thinking>a</thinking><reflection>b</reflection><output>1</output>", ()),
        ("", ("missing_thinking", "missing_output")),
        ("<output>1</output>", ("missing_thinking",)),
        ("<thinking>a</thinking>", ("missing_output",)),
        ("<thinking>a<output>1</output>", ("misnested", "unclosed_thinking")),
        ("<thinking>a</thinking><output>1", ("unclosed_output",)),
        ("<thinking>a<reflection>b</thinking><output>1</output>", ("unclosed_reflection",)),
        ("<thinking>a</thinking><thinking>b</thinking><output>1</output>", ("repeated_thinking",)),
        ("<thinking>a</thinking><output>1</output><output>2</output>", ("repeated_output",)),
        ("<thinking> </thinking><output>1</output>", ("empty_thinking",)),
        ("<thinking>a<reflection></reflection></thinking><output>1</output>", ("empty_reflection",)),
        ("<thinking>a</thinking><output></output>", ("empty_output",)),
        ("<output>1</output><thinking>a</thinking>", ("reordered",)),
        ("<thinking>a</thinking></thinking><output>1</output>", ("stray_close",)),
        ("well: <thinking>a</thinking><output>1</output>", ("stray_text",)),
    ],
)
def test_each_fault_has_its_name(text: str, faults: tuple[str, ...]) -> None:
    assert trace.parse(text).faults == faults


def test_only_the_last_output_counts() -> None:
    assert trace.parse("<thinking>a</thinking><output>1</output><output>2</output>").output == "2"


def test_an_unclosed_last_output_gives_no_answer() -> None:
    assert trace.parse("<thinking>a</thinking><output>1</output><output>2").output is None


def test_text_is_emitted_as_soon_as_it_cannot_be_a_tag() -> None:
    scanner = trace.Scanner()
    assert [e.text for e in scanner.feed("abc <thin")] == ["abc "]
    assert [e.text for e in scanner.feed("g")] == ["<thing"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("plain words", "stray_text"),
        ("<think>never closed", "unclosed_thinking"),
        ("<think></think>5", "empty_thinking"),
        ("<think>a</think>", "empty_output"),
        ("<thinking>a</thinking>", "missing_output"),
        ("<output>5</output>", "missing_thinking"),
        ("<think>a</think><answer>5", "unclosed_output"),
        ("<think>a</think><answer>5</answer> and more", "stray_text"),
        ("<think>a <reflection>b</think>5", "unclosed_reflection"),
        ("<reasoning>never closed <answer>5</answer>", "unclosed_thinking"),
    ],
)
def test_from_text_names_the_fault(text: str, fault: str) -> None:
    with pytest.raises(trace.TraceError) as caught:
        trace.from_text(text)
    assert caught.value.fault == fault


def test_think_tags_and_reasoning_content_give_the_same_trace() -> None:
    assert trace.from_text("<think>\na\n</think>\n\n5") == trace.from_text("5", "a")


TWO = (("think", "a"), ("think", "b"))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>a</think>7", (("think", "a"),)),
        ("\n  <think>\na\n</think>\n\n7", (("think", "a"),)),
        ("a\n</think>\n7", (("think", "a"),)),
        ("a\n</thinking>\n7", (("think", "a"),)),
        ("a <think>b</think>7", TWO),
        ("<think>a</think><think>b</think>7", TWO),
        ("<think>a</think>b<think>c</think>7", (*TWO, ("think", "c"))),
        ("<thinking>a</thinking>7", (("think", "a"),)),
        ("<thinking>a</thinking><answer>7</answer>", (("think", "a"),)),
        ("<think>a</think><output>7</output>", (("think", "a"),)),
        ("<think>a</think>b <answer>7</answer>", TWO),
        ("<Thought>a</Thought>\n<Output>7</Output>", (("think", "a"),)),
        ("<THINKING>a</THINKING><OUTPUT>7</OUTPUT>", (("think", "a"),)),
        ("<Thinking>a<Reflection>b</Reflection></Thinking><Output>7</Output>", (("think", "a"), ("reflect", "b"))),
        ("<reasoning>a</reasoning><answer>7</answer>", (("think", "a"),)),
        ("<scratchpad>a</scratchpad>\n<response>7</response>", (("think", "a"),)),
        ("<analysis>a</analysis><solution>7</solution>", (("think", "a"),)),
        ("<thinking>a</thinking><reflection>b</reflection><answer>7</answer>", (("think", "a"), ("reflect", "b"))),
        ("a\n<answer>7</answer>", (("think", "a"),)),
        (
            "<|begin_of_thought|>\n\na\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n7\n\n<|end_of_solution|>",
            (("think", "a"),),
        ),
        ("[THINK]a[/THINK]7", (("think", "a"),)),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>7", (("think", "a"),)),
    ],
)
def test_each_inline_dialect_is_read(text: str, parts: tuple[tuple[str, str], ...]) -> None:
    result = trace.from_text(text)
    assert (tuple((p.kind, p.text) for p in result.parts), result.output) == (parts, "7")
    assert trace.is_tagged(text)


@pytest.mark.parametrize("answer", ["use the <think> tag", "in HTML, <output>x</output> shows a result", "#### 7"])
def test_an_answer_may_contain_tags_and_marks(answer: str) -> None:
    assert trace.from_text(f"<think>a</think>{answer}").output == answer


@pytest.mark.parametrize("text", ["plain words", "<response>7</response>", "<b>7</b>", "use </answer> to close"])
def test_text_without_tagged_reasoning_is_not_split(text: str) -> None:
    assert trace.split_reasoning(text) is None


def test_a_reasoning_field_may_contain_tags_and_must_agree_with_the_text() -> None:
    assert trace.from_text("7", "<think>a</think>") == trace.from_text("7", "a")
    assert trace.from_text("<think>a</think>7", "a") == trace.from_text("7", "a")
    with pytest.raises(trace.TraceError) as caught:
        trace.from_text("<think>a</think>7", "b")
    assert caught.value.fault == "two_reasonings"


def test_an_earlier_turn_in_another_dialect_is_converted_to_our_tags() -> None:
    ours = "<thinking>\na\n</thinking>\n<output>7</output>"
    assert trace.assistant_turn("<think>a</think>7") == trace.assistant_turn("7", "a") == ours
    assert trace.assistant_turn("<think>\n\n</think>\n\n7") == "<output>7</output>"
