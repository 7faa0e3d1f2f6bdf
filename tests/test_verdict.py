"""The verdict: what n problems can show; gate, report, terminal and model card give the same one."""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path

import pytest

from cot_unsloth import load_config
from cot_unsloth.config import RunConfig
from cot_unsloth.core import arm_names, verdict
from cot_unsloth.core.errors import GateError
from cot_unsloth.core.results import FitReport, Gate, Scorecard, Verdict, VerdictKind
from cot_unsloth.core.results.verification import Verification
from cot_unsloth.core.types import Example, Score, Trace
from cot_unsloth.evaluation import scorecard
from cot_unsloth.evaluation.gate import enforce_gate, gate
from cot_unsloth.evaluation.problems import how_to_score_more
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


KEYS = re.compile(r"\bbase_(?:direct|cot|tags)\b|\bgguf\b")
"""Of arms, which are for flags and files and not for readers."""

CASES = [
    # n, tuned, base arms; kind, the arm it rests on, what the sentence says
    (1, 1, {"base_tags": 0}, "too_few", "base_tags", "Too few problems to tell: 100.0% against 0.0% for the base under our system prompt"),
    (1, 1, {"base_tags": 1}, "too_few", "base_tags", "n = 1 cannot show any difference."),
    (1, 0, {"base_tags": 0}, "too_few", "base_tags", "No answer of the tuned arm is right. Too few problems to tell"),
    (5, 5, {"base_tags": 0}, "too_few", "base_tags", "McNemar p = 0.062"),
    (5, 0, {"base_tags": 5}, "too_few", "base_tags", "not better than the base under our system prompt, 0.0% against 100.0%"),
    (6, 6, {"base_tags": 0}, "better", "base_tags", "Better than the base under our system prompt: 100.0% against 0.0%"),
    (20, 8, {"base_tags": 4, "base_cot": 9}, "too_few", "base_cot",
     "Too few problems to tell: not better than the base asked step by step (the best base arm), 40.0% against 45.0%"),
    (60, 2, {"base_tags": 2}, "too_few", "base_tags", "n = 60 detects only differences ≥ 12.9 points"),
    (500, 40, {"base_tags": 38}, "no_difference", "base_tags", "No significant difference from the base under our system prompt: 8.0% against 7.6%"),
    (500, 38, {"base_tags": 38}, "no_difference", "base_tags", "Not better than the base under our system prompt, 7.6% against 7.6%"),
    (500, 0, {"base_tags": 0}, "no_difference", "base_tags", "No answer of the tuned arm is right. Not better than the base under our system prompt"),
    (200, 120, {"base_tags": 40, "base_cot": 60}, "better", "base_cot", "Better than the base asked step by step (the best base arm): 60.0%"),
    (200, 40, {"base_tags": 120}, "worse", "base_tags", "Worse than the base under our system prompt: 20.0% against 60.0%, -40.0 points"),
    (200, 120, {"base_tags": 40, "start": 40}, "better", "base_tags", "Against the starting adapter: 60.0% against 20.0%"),
    (200, 120, {"base_tags": 40, "start": 121}, "better", "base_tags", "Against the starting adapter: 60.0% against 60.5%"),
    (200, 80, {"base_tags": 20, "start": 150}, "worse", "start", "Worse than the starting adapter: 40.0% against 75.0%"),
    (200, 80, {"start": 20}, "better", "start", "Better than the starting adapter: 40.0% against 10.0%"),
    (200, 80, {"base_tags": 20, "base_cot": 150}, "worse", "base_cot", "Worse than the base asked step by step (the best base arm): 40.0%"),
    (200, 120, {}, "not_compared", None, "Nothing was compared, as the tuned model alone was scored: 60.0% right (95% CI 53.1 to 66.5"),
    (200, None, {"base_tags": 40, "base_cot": 60}, "not_compared", None,
     "Nothing was compared, as no tuned arm was scored. Best of 2 arms: the base asked step by step, 30.0% right"),
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
    assert f"<p>{reached.sentence}{f' {reached.hint}' if reached.hint else ''}</p>" in page
    assert (reached.hint != "") is (kind == "too_few")
    passed = '<p class="good">Gate: passed.</p>' in page
    assert passed is (kind == "better") is (gate_of(card).outcome == "passed")
    assert ('class="good"' in page or '"verdict good"' in page) is (kind == "better")
    tables.print_scorecard(card)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == verdict.headline(card)
    assert f"{reached.sentence} {reached.hint}".strip() in " ".join(printed.split())
    assert max(map(len, printed.splitlines())) <= 80
    assert "\x1b" not in printed, "colours although stdout is not a terminal"
    if tuned is not None:
        written = model_card.write(run, RunConfig(), Verification(), "peft", tmp_path)
        assert reached.sentence in written
        assert not KEYS.search(written)
    shown = [verdict.headline(card), reached.sentence, printed, *(says for _, says in verdict.gate_lines(card))]
    assert [text for text in shown if KEYS.search(text)] == []


@pytest.mark.parametrize(("n", "tuned", "bases", "kind", "before", "says"), CASES)
def test_only_a_loss_with_the_same_prompt_exits_with_3(
    n: int, tuned: int | None, bases: dict[str, int], kind: str, before: str | None, says: str, tmp_path: Path
) -> None:
    card = scored(RunDir(tmp_path), n, tuned, **bases)
    if kind == "worse" and before in ("base_tags", "start"):
        with pytest.raises(GateError, match=f"worse than {arm_names.in_sentence(before)}"):
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
        "Gate: undecided, no significant loss against the base under our system prompt.",
    )


def test_a_low_format_share_fails_the_gate_whatever_the_verdict(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    card = scored(run, 200, 120, fault="no_output", base_tags=40)
    gate = gate_of(card).model_copy(update={"failed": ("0.0% are complete traces",)})
    card = card.model_copy(update={"gate": gate})
    assert verdict.gate_lines(card) == [("bad", "Gate: failed, 0.0% are complete traces.")]
    assert verdict.outcome(gate.failed, verdict.of(card)) == "failed"


def test_an_old_scorecard_without_a_verdict_gets_one(tmp_path: Path) -> None:
    card = scored(RunDir(tmp_path), 200, 120, base_tags=40)
    old = card.without("verdict", "extraction", "paired_interval")
    assert verdict.of(old) == verdict.of(card)
    assert verdict.readings(old) == ""


def test_older_sentences_get_the_plain_names(tmp_path: Path) -> None:
    card = scored(RunDir(tmp_path), 200, 80, base_tags=20, start=150)
    old = Verdict(
        kind="worse", before="start", after="tuned", sentence="Worse than start; base_tags: 10.0%. To start, type."
    )
    gate = gate_of(card).model_copy(update={"failed": ("the tuned arm is worse than base_tags by 1.0 points",)})
    card = card.model_copy(update={"verdict": old, "gate": gate})
    assert verdict.of(card).sentence == (
        "Worse than the starting adapter; the base under our system prompt: 10.0%. To start, type."
    )
    assert verdict.gate_lines(card) == [
        ("bad", "Gate: failed, the tuned arm is worse than the base under our system prompt by 1.0 points.")
    ]


@pytest.mark.parametrize(
    ("n", "tuned", "outcome", "says"),
    [
        (200, 40, "failed", "All files were kept."),
        (5, 5, "undecided", "did not fail, and the tuned model was not shown to be better"),
        (200, 120, "passed", ""),
    ],
)
def test_the_report_says_what_the_gate_is_and_what_its_outcome_means(
    n: int, tuned: int, outcome: str, says: str, tmp_path: Path
) -> None:
    run = RunDir(tmp_path)
    card = scored(run, n, tuned, base_tags=120 if outcome == "failed" else 0)
    assert gate_of(card).outcome == outcome
    page = html.unescape(run.report.read_text())
    assert (
        "The gate is a check that ends the command with exit code 3 if training made the model significantly worse"
        in page
    )
    assert says in page
    off = gate_of(card).model_copy(update={"asked": False, "min_format_valid": 0.5})
    assert "would end the command with exit code 3 (it was off)" in verdict.gate_in_words(off)
    assert "less than 50.0% of its answers are complete" in verdict.gate_in_words(off)


def test_the_hint_for_more_problems_depends_on_where_they_are_from(tmp_path: Path) -> None:
    def hint(data: str, samples: int, benchmark: str | None = None, *, run: bool = False) -> str:
        folder = RunDir(tmp_path / f"{data.partition(':')[0]}{samples}{benchmark}{run}")
        if run:
            write_jsonl(folder.kept, [])
        config = RunConfig().replaced(dataset=data, eval_samples=samples, benchmark=benchmark)
        return how_to_score_more(config, folder, 20)

    assert "generated and scored with a larger --eval-samples" in hint("world:words", 20, run=True)
    assert "train again with a larger --eval-samples" in hint("rows.jsonl", 20, run=True)
    assert "train again with a larger --test-fraction" in hint("rows.jsonl", 100, run=True)
    assert "scored with a larger --eval-samples" in hint("rows.jsonl", 20)
    assert "More problems of gsm8k can be scored with a larger --eval-samples." in hint("rows.jsonl", 20, "gsm8k")
    assert "Every problem of aime24 was scored" in hint("rows.jsonl", 100, "aime24")


def test_a_model_that_is_worse_than_the_best_base_arm_is_not_called_neither_better_nor_worse(tmp_path: Path) -> None:
    card = scored(RunDir(tmp_path), 200, 80, base_tags=20, base_cot=150)
    assert (verdict.of(card).kind, gate_of(card).outcome) == ("worse", "undecided")
    assert "neither better" not in html.unescape(RunDir(tmp_path).report.read_text())


def test_one_arm_alone_has_a_headline_with_its_plain_name(tmp_path: Path) -> None:
    card = scored(RunDir(tmp_path), 200, None, base_tags=120)
    assert verdict.headline(card) == "Base, our system prompt: 60.0% right, 95% CI 53.1 to 66.5, n = 200"
    named = card.model_copy(update={"arms": {"algebra": card.arms["base_tags"]}})
    assert verdict.headline(named).startswith("algebra: 60.0% right")


def test_a_neutral_verdict_is_grey_in_the_report(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    scored(run, 1, 1, base_tags=0)
    styles = dict(re.findall(r"--(good|bad|neutral): (#[0-9a-f]{6})", run.report.read_text().partition("@media")[0]))
    assert len(set(styles.values())) == 3
    red, green, blue = (int(styles["neutral"][at : at + 2], 16) for at in (1, 3, 5))
    assert max(red, green, blue) - min(red, green, blue) < 64, "neutral is not a grey"
    assert blue >= green >= red


def test_a_model_card_claims_corrections_only_where_the_model_reflects(tmp_path: Path) -> None:
    shown = model_card._introduction(RunConfig(), tmp_path, ours=True, reflects=True)
    assert "corrects its errors between `<reflection>` tags" in shown
    assert "reflection" not in model_card._introduction(RunConfig(), tmp_path, ours=True, reflects=False)


def test_a_share_is_shown_as_all_or_nothing_only_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = scored(RunDir(tmp_path), 3000, 2999, base_tags=1)
    assert verdict.headline(card).startswith("Better: 0.03% → 99.97% right")
    assert "99.97% against 0.03%" in verdict.of(card).sentence
    page = html.unescape(RunDir(tmp_path).report.read_text())
    tables.print_scorecard(card)
    for text in (page, capsys.readouterr().out, model_card._scores(card, 16)):
        assert "99.97%" in text
        assert "0.03%" in text
    valid = card.arms["tuned"].model_copy(update={"format_valid": 1253 / 1319})
    close = card.model_copy(update={"arms": {**card.arms, "tuned": valid}})
    [reason] = gate(RunConfig().replaced(min_format_valid=0.95), close).failed
    assert reason == "94.996% of the tuned arm's completions are complete traces; min_format_valid is 95.000%"


def test_a_model_card_says_what_the_model_learned_from() -> None:
    fit = FitReport(steps=47, seconds=1.0, loss_first=None, loss_last=None, rows=1, tokens=1, supervised=1)

    def recipe(**flags: object) -> str:
        return model_card._recipe(load_config(None, dataset="world:chains", **flags), None, fit, None)

    assert "- 1 epoch, batch 8, learning rate" in recipe()
    assert "reinforcement learning (grpo): 47 steps, a step of 8 problems with 8 attempts each" in recipe(method="grpo")
    assert "its own right answers (rft), at most 2 rounds of 1 epoch, batch 8" in recipe(method="rft", rounds=2)
    assert "- LoRA + NEFTune: rank 32" in recipe(technique="neftune")
    assert "- DoRA: rank 32" in recipe(technique="dora")
