"""Problems of reasoning-gym: every generator, its own check, splits, and what a user is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cot_unsloth import config, tasks
from cot_unsloth.core.errors import ConfigError, DataError
from cot_unsloth.core.types import Completion
from cot_unsloth.data import load_problems, with_comparable_answers
from cot_unsloth.evaluation import score
from cot_unsloth.tasks import gym
from cot_unsloth.training import preparation

pytestmark = pytest.mark.skipif(not gym.installed(), reason="reasoning-gym is not installed")

SLOW = {"knight_swap", "acre", "zebra_puzzles"}
"""These take seconds to draw a problem; one of them is enough."""
NAMES = [name for name in (gym.names() if gym.installed() else ()) if name not in SLOW - {"acre"}]


@pytest.mark.parametrize("name", NAMES)
def test_a_generator_accepts_its_own_answer_and_no_other(name: str) -> None:
    (example,) = tasks.generate(f"gym:{name}", split="train", n=1, seed=3)
    assert example.question
    assert example.answer
    assert gym.accepts(example.problem, example.answer)
    assert not gym.accepts(example.problem, "certainly not this")
    assert not gym.accepts(example.problem, "")


def test_an_answer_in_our_format_is_judged_by_the_generator() -> None:
    (example,) = tasks.generate("gym:word_sorting", split="test", n=1, seed=1)  # several words, which no number decides
    text = "<thinking>\nAs the question says.\n</thinking>\n<output>{}</output>"
    words = example.answer.split(", ")
    right = Completion("a", text.format(example.answer), 9, "stop")
    wrong = Completion("a", text.format(", ".join(words[1:] + words[:1])), 9, "stop")
    assert score.judge(example, right, tagged=True).correct
    assert not score.judge(example, wrong, tagged=True).correct


def test_another_right_answer_counts() -> None:
    (example,) = tasks.generate("gym:graph_color", split="test", n=1, seed=1)
    colours = json.loads(example.answer)
    swapped = json.dumps({vertex: {1: 2, 2: 1}.get(colour, colour) for vertex, colour in colours.items()})
    assert swapped != example.answer
    assert score.is_right(example, example.answer)
    assert score.is_right(example, swapped)
    assert not score.is_right(example, json.dumps(dict.fromkeys(colours, 1)))


def test_splits_do_not_overlap_and_seeds_repeat() -> None:
    spec = "gym:leg_counting,chain_sum"
    train = tasks.generate(spec, split="train", n=60, seed=1)
    test = tasks.generate(spec, split="test", n=60, seed=2)
    assert not {e.question for e in train} & {e.question for e in test}
    assert len({e.id for e in train}) == 60
    assert [e.task for e in train[:4]] == ["leg_counting", "chain_sum"] * 2
    assert [e.question for e in tasks.generate(spec, split="train", n=20, seed=1)] == [e.question for e in train[:20]]
    assert len(with_comparable_answers(test)) == 60


def test_a_model_is_scored_on_them_but_cannot_imitate_them() -> None:
    settings = config.load(None, {"dataset": "gym:leg_counting", "world_samples": "8", "eval_samples": "4"})
    assert len(load_problems(settings.data, eval_samples=4, eval_seed=1)) == 4
    with pytest.raises(DataError, match="nothing to imitate") as error:
        preparation.prepare(settings)
    assert "--method rft" in str(error.value.hint)


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("gym:leg_countin", "no generator 'leg_countin'", "did you mean 'leg_counting'"),
        ("gym:composite", "cannot be used: it has no problems of its own", "name others"),
        ("gym:", "no generator ''", "such as"),
    ],
)
def test_a_wrong_name_is_named(spec: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        tasks.generate(spec, split="test", n=1, seed=1)
    assert hint in str(error.value.hint)


def test_a_generator_that_runs_out_says_how_many_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym, "PATIENCE", 40)
    with pytest.raises(ConfigError, match=r"fewer than 5000 test problems: \d+ were found"):
        tasks.generate("gym:coin_flip", split="test", n=5000, seed=1)


def test_the_documentation_lists_the_generators() -> None:
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    listed, refused = page.partition("that can be named</summary>")[2].partition("</details>")[0].split("\n\nNot ")
    assert tuple(re.findall(r"`(\w+)`", listed)) == gym.names()
    assert f"The {len(gym.names())} generators" in page
    assert set(re.findall(r"`(\w+)`", refused)) == set(gym.UNSUITABLE)


def test_without_the_package_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym, "installed", lambda: False)
    with pytest.raises(ConfigError, match="not installed") as error:
        tasks.generate("gym:chain_sum", split="test", n=1, seed=1)
    assert "cot-unsloth[gym]" in str(error.value.hint)
