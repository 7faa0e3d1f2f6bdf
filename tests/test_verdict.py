"""The verdict: what n problems can show; gate, report, terminal and model card give the same one."""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path

import pytest

from cot_unsloth.config import RunConfig
from cot_unsloth.core import arm_names, verdict
from cot_unsloth.core.errors import GateError
from cot_unsloth.core.results import Gate, Scorecard, VerdictKind
from cot_unsloth.core.results.verification import Verification
from cot_unsloth.core.types import Example, Score, Trace
from cot_unsloth.evaluation import scorecard
from cot_unsloth.evaluation.gate import enforce_gate
from cot_unsloth.export import card as model_card
from cot_unsloth.reporting import tables
from cot_unsloth.storage.records import write_jsonl
from cot_unsloth.storage.run_folder import RunDir


def scores(right: list[bool], fault: str | None = None) -> list[Score]:
    text = "<thinking>\n0 + 4\n</thinking>\n<output>4</output>"
    one = Score("0", "apples", "0 and 4?", "4", text, "4", True, fault, 9, "stop")
    return [
        dataclasses.replace(one, id=str(i), question=f"{i} and 4?", correct=correct, strict=correct, lenient=correct)
        for i, correct in enumerate(right)
    ]


def scored(run: RunDir, n: int, tuned: int | None, fault: str | None = None, **bases: int) -> Scorecard:
    """A scorecard of arms with so many right of n: the first problems of a base arm, the last ones of the tuned arm.

    So the arms agree as little as they can, which is the hardest case for a difference to be seen.
    """
    arms = {arm: scores([i < right for i in range(n)]) for arm, right in bases.items()}
    if tuned is not None:
        arms["tuned"] = scores([i >= n - tuned for i in range(n)], fault)
    for arm, rows in arms.items():
        write_jsonl(run.completions(arm), [dataclasses.asdict(row) for row in rows])
    examples = [Example(str(i), f"{i} and 4?", Trace((), "4"), "4", where="rows.jsonl:1") for i in range(n)]
    return scorecard.write(run, RunConfig(), examples, arms)


def gate_of(card: Scorecard) -> Gate:
    assert card.gate is not None
    return card.gate


CASES = [
    # n, tuned, base arms; kind, the arm it rests on, what the sentence says
    (1, 1, {"base_tags": 0}, "too_few", "base_tags", "Too few problems to tell: 100.0% against 0.0% for base_tags"),
    (1, 1, {"base_tags": 1}, "too_few", "base_tags", "n = 1 cannot show any difference. Score more problems: --eval-samples, or of a file --test-fraction."),
    (1, 0, {"base_tags": 0}, "too_few", "base_tags", "No answer of the tuned arm is right. Too few problems to tell"),
    (5, 5, {"base_tags": 0}, "too_few", "base_tags", "McNemar p = 0.062"),
    (5, 0, {"base_tags": 5}, "too_few", "base_tags", "not better than base_tags, 0.0% against 100.0%"),
    (6, 6, {"base_tags": 0}, "better", "base_tags", "Better than base_tags: 100.0% against 0.0%"),
    (20, 8, {"base_tags": 4, "base_cot": 9}, "too_few", "base_cot",
     "Too few problems to tell: not better than base_cot (the best base arm), 40.0% against 45.0%"),
    (60, 2, {"base_tags": 2}, "too_few", "base_tags", "n = 60 detects only differences ≥ 12.9 points"),
    (500, 40, {"base_tags": 38}, "no_difference", "base_tags", "No significant difference from base_tags: 8.0% against 7.6%"),
    (500, 38, {"base_tags": 38}, "no_difference", "base_tags", "Not better than base_tags, 7.6% against 7.6%"),
    (500, 0, {"base_tags": 0}, "no_difference", "base_tags", "No answer of the tuned arm is right. Not better than base_tags"),
    (200, 120, {"base_tags": 40, "base_cot": 60}, "better", "base_cot", "Better than base_cot (the best base arm): 60.0%"),
    (200, 40, {"base_tags": 120}, "worse", "base_tags", "Worse than base_tags: 20.0% against 60.0%, -40.0 points"),
    (200, 120, {"base_tags": 40, "start": 40}, "better", "base_tags", "Against the adapter that training began with: 60.0% against 20.0%"),
    (200, 120, {"base_tags": 40, "start": 121}, "better", "base_tags", "Against the adapter that training began with: 60.0% against 60.5%"),
    (200, 80, {"base_tags": 20, "start": 150}, "worse", "start", "Worse than start: 40.0% against 75.0%"),
    (200, 80, {"start": 20}, "better", "start", "Better than start: 40.0% against 10.0%"),
    (200, 80, {"base_tags": 20, "base_cot": 150}, "worse", "base_cot", "Worse than base_cot (the best base arm): 40.0%"),
    (200, 120, {}, "not_compared", None, "Nothing was compared, as tuned alone was scored: 60.0% right (95% CI 53.1 to 66.5"),
    (200, None, {"base_tags": 40, "base_cot": 60}, "not_compared", None,
     "Nothing was compared, as no tuned arm was scored. Best of 2 arms: base_cot, 30.0% right"),
]  # fmt: skip


@pytest.mark.parametrize(("n", "tuned", "bases", "kind", "before", "says"), CASES)
def test_gate_report_terminal_and_model_card_give_the_same_verdict(
    n: int,
    tuned: int | None,
    bases: dict[str, int],
    kind: VerdictKind,
    before: str | None,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = RunDir(tmp_path)
    card = scored(run, n, tuned, **bases)
    reached = verdict.of(card)
    assert (reached.kind, reached.before) == (kind, before)
    assert says in reached.sentence
    assert card.verdict == reached
    tone = {"better": "good", "worse": "bad"}.get(kind, "neutral")
    page = html.unescape(run.report.read_text())
    assert f'<p class="verdict {tone}">{verdict.headline(card)}</p>' in page
    assert f"<p>{arm_names.in_words(reached.sentence)}</p>" in page
    passed = '<p class="good">Gate: passed.</p>' in page
    assert passed is (kind == "better") is (gate_of(card).outcome == "passed")
    assert ('class="good"' in page or '"verdict good"' in page) is (kind == "better")
    tables.print_scorecard(card)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == verdict.headline(card)
    assert arm_names.in_words(reached.sentence) in " ".join(printed.split())
    assert max(map(len, printed.splitlines())) <= 80
    assert "\x1b" not in printed, "colours although stdout is not a terminal"
    if tuned is not None:
        assert reached.sentence in model_card.write(run, RunConfig(), Verification(), "peft", tmp_path)


@pytest.mark.parametrize(("n", "tuned", "bases", "kind", "before", "says"), CASES)
def test_only_a_loss_with_the_same_prompt_exits_with_3(
    n: int, tuned: int | None, bases: dict[str, int], kind: str, before: str | None, says: str, tmp_path: Path
) -> None:
    card = scored(RunDir(tmp_path), n, tuned, **bases)
    if kind == "worse" and before in ("base_tags", "start"):
        with pytest.raises(GateError, match=f"worse than {before}"):
            enforce_gate(card)
        assert gate_of(card).outcome == "failed"
    else:
        enforce_gate(card)


def test_a_loss_against_another_prompt_is_shown_red_and_leaves_the_gate_undecided(tmp_path: Path) -> None:
    card = scored(RunDir(tmp_path), 200, 80, base_tags=20, base_cot=150)
    assert verdict.of(card).tone == "bad"
    (line,) = verdict.gate_lines(card)
    assert line == (
        "neutral",
        "Gate: undecided, no significant loss against base_tags, the base under the same prompt.",
    )


def test_a_low_format_share_fails_the_gate_whatever_the_verdict(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    card = scored(run, 200, 120, fault="no_output", base_tags=40)
    gate = gate_of(card).model_copy(update={"failed": ("0.0% are complete traces",)})
    card = card.model_copy(update={"gate": gate})
    assert verdict.gate_lines(card) == [("bad", "Gate: 0.0% are complete traces.")]
    assert verdict.outcome(gate.failed, verdict.of(card)) == "failed"


def test_an_old_scorecard_without_a_verdict_gets_one(tmp_path: Path) -> None:
    card = scored(RunDir(tmp_path), 200, 120, base_tags=40)
    old = card.without("verdict", "extraction", "paired_interval")
    assert verdict.of(old) == verdict.of(card)
    assert verdict.readings(old) == ""


def test_a_neutral_verdict_is_grey_in_the_report(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    scored(run, 1, 1, base_tags=0)
    styles = dict(re.findall(r"--(good|bad|neutral): (#[0-9a-f]{6})", run.report.read_text().partition("@media")[0]))
    assert len(set(styles.values())) == 3
    red, green, blue = (int(styles["neutral"][at : at + 2], 16) for at in (1, 3, 5))
    assert max(red, green, blue) - min(red, green, blue) < 64, "neutral is not a grey"
    assert blue >= green >= red
