"""`train.method: grpo`: what attempts are rewarded for, when training stops by itself, and that it resumes exactly."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import trl
from helpers import run_cli
from safetensors.torch import load_file

from cot_unsloth import tasks
from cot_unsloth.config import RunConfig, load, load_tree
from cot_unsloth.core import trace
from cot_unsloth.core.errors import ConfigError, DataError, GuardError
from cot_unsloth.core.types import Completion, Example, Prompt, Trace
from cot_unsloth.models import registry
from cot_unsloth.models.protocols import Trainable
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.reporting import grpo_plots
from cot_unsloth.sampling.records import ProblemRate, write_rates
from cot_unsloth.storage import records
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.tasks.task import draw_problems, make_example
from cot_unsloth.training import development, grpo, guards, preparation, rewards, training_problems
from cot_unsloth.training.batches import completion_log_probabilities
from cot_unsloth.training.development import Development, DevelopmentScore
from cot_unsloth.training.method import TrainingHooks
from cot_unsloth.training.rewards import Attempt

SHORT = (
    "--method", "grpo", "--dataset", "world:chains", "--world-samples", "10", "--per-device-train-batch-size", "4",
    "--num-generations", "4", "--generation-batch-size", "8", "--max-new-tokens", "24", "--dev-problems", "4",
    "--dev-steps", "2", "--eval-samples", "2", "--arms", "tuned", "--gguf", "", "--no-guards",
    # Lengths differ where answers to the base's taste do not, so that some attempts are better than others.
    "--reward-overlong", "1", "--overlong-share", "1", "--learning-rate", "1e-3",
)  # fmt: skip


def _run(folder: Path, *more: str) -> RunDir:
    assert run_cli("train", "--run-dir", str(folder), *SHORT, *more) == 0
    return RunDir(folder)


def _metrics(run: RunDir) -> list[dict[str, float]]:
    timed = {"seconds", "step_time"}
    return [{k: v for k, v in row.items() if k not in timed} for row in records.read_jsonl(run.metrics)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Six steps of two problems, in two passes over eight, with a checkpoint after every second step."""
    return _run(
        tmp_path_factory.mktemp("grpo") / "run", "--max-steps", "6", "--save-steps", "2", "--save-total-limit", "9"
    )


def test_a_run_learns_from_its_attempts(finished: RunDir) -> None:
    rows = _metrics(finished)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {"reward", "entropy", "frac_reward_zero_std", "completions/clipped_ratio"} <= rows[0].keys()
    assert {name.split("/")[1] for name in rows[0] if name.startswith("rewards/")} == {
        "correct", "format", "reflection", "overlong"
    }  # fmt: skip
    assert any(row["grad_norm"] > 0 for row in rows)
    assert [row["step"] for row in rows if "development" in row] == [2, 4, 6]
    scores = Development(finished.path / "development.jsonl", 6).scores
    assert [score.step for score in scores] == [0, 2, 4, 6]
    page = finished.report.read_text(encoding="utf-8")
    assert "rewards of the attempts" in page
    assert "training loss" not in page


def test_development_problems_are_not_trained_on() -> None:
    examples = [Example(id_, id_, Trace((), ""), "") for id_ in ("twice", *map(str, range(30)), "twice")]
    train, dev = ({example.id for example in split} for split in development.held_out(examples, most=4, seed=3407))
    assert len(dev) == 4
    assert not train & dev
    assert train | dev == {example.id for example in examples}
    assert len(development.held_out(examples[:10], most=4, seed=3407)[1]) == 2, "no more than a fifth"


def test_problems_that_the_model_was_trained_on_are_for_development_only_where_others_are_too_few(
    capsys: pytest.CaptureFixture[str],
) -> None:
    examples = [Example(id_, id_, Trace((), ""), "") for id_ in map(str, range(30))]
    known = {str(n) for n in range(25)}
    _, dev = development.held_out(examples, most=4, seed=1, trained_before=known)
    assert len(dev) == 4
    assert not known & {example.id for example in dev}
    assert "development_seen" not in capsys.readouterr().err
    train, dev = development.held_out(examples, most=6, seed=1, trained_before=known | {"25", "26"})
    assert (len(train), len(dev)) == (24, 6)
    assert len({"27", "28", "29"} & {example.id for example in dev}) == 2, "one is left to train on"
    assert "was trained on 4 of 6 development problems" in capsys.readouterr().err


@pytest.mark.parametrize("step", [2, 4])
def test_a_killed_run_ends_as_the_uninterrupted_one(finished: RunDir, step: int, tmp_path: Path) -> None:
    folder = shutil.copytree(finished.path, tmp_path / "killed")
    for name in ("adapter", *(f"checkpoints/checkpoint-{n}" for n in (2, 4, 6) if n > step)):
        shutil.rmtree(folder / name)
    assert run_cli("train", "--run-dir", str(folder), "--resume") == 0
    resumed = RunDir(folder)
    assert _metrics(resumed) == _metrics(finished)
    before, after = (load_file(run.adapter / "adapter_model.safetensors") for run in (finished, resumed))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (folder / "development.jsonl").read_text() == (finished.path / "development.jsonl").read_text()


def test_the_divergence_from_the_start_is_measured_and_its_copy_is_not_saved(finished: RunDir, tmp_path: Path) -> None:
    more = ("--beta", "0.1", "--init-adapter", str(finished.path), "--max-steps", "3", "--save-steps", "2")
    run = _run(tmp_path / "run", *more)
    kl = [row["kl"] for row in _metrics(run)]
    assert kl[0] == pytest.approx(0, abs=1e-4)
    assert kl[2] > 1e-4, "the model has moved away from the adapter that training began with"
    assert not list(run.path.rglob("ref")), "PEFT would load it in place of the trained adapter"
    # Resumed, it is measured from the same start.
    shutil.rmtree(run.adapter)
    shutil.rmtree(run.checkpoints / "checkpoint-3", ignore_errors=True)
    assert run_cli("train", "--run-dir", str(run.path), "--resume") == 0
    assert [row["kl"] for row in _metrics(run)] == kl


def test_joined_rows_have_the_log_probabilities_of_padded_ones() -> None:
    config = load(None, {"autocast": "false"})
    renderer = open_renderer(config.model, config.data)
    engine = registry.load(config, renderer.chat, registry.choose(config.model))
    model = engine.attach_trainable_weights()
    ids = torch.randint(10, 200, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0] * 3 + [1] * 9, [1] * 12, [0] * 1 + [1] * 7 + [0] * 4])
    with engine.training_context(None):
        logps, entropies = completion_log_probabilities(model, ids, mask, 6, temperature=0.7)
        logps.sum().backward()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, 5:-1] / 0.7
    real = mask[:, 6:].bool()
    expected = logits.log_softmax(-1).gather(2, ids[:, 6:, None])[..., 0]
    assert torch.allclose(logps[real], expected[real], atol=1e-4)
    assert torch.allclose(entropies[real], torch.distributions.Categorical(logits=logits).entropy()[real], atol=1e-4)
    assert not logps[~real].any()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_attempts_are_drawn_from_the_model_that_is_trained() -> None:
    """The frequency of first tokens is their probability: same prompt, same stop tokens, no other temperature."""
    config = load(None, {})
    renderer = open_renderer(config.model, config.data)
    engine = registry.load(config, renderer.chat, registry.choose(config.model))
    ids = engine.chat.ids(engine.chat.prompt_text(Prompt("1", ({"role": "user", "content": "7 + 8?"},))))
    sampling = dataclasses.replace(config.sampling_params, temperature=1.0, max_new_tokens=1, seed=3)
    first = [new[0] for new in engine.answer_ids([ids] * 400, [str(i) for i in range(400)], sampling)]
    with torch.inference_mode():
        likely = engine.model(torch.tensor([ids])).logits[0, -1].softmax(-1)  # type: ignore[attr-defined]
    token = int(likely.argmax())
    share, p = first.count(token) / 400, float(likely[token])
    assert abs(share - p) < 4 * (p * (1 - p) / 400) ** 0.5 + 1e-3


def test_only_problems_that_are_solved_sometimes_are_trained_on(tmp_path: Path) -> None:
    examples = [Example(id_, id_, Trace((), "1"), "1") for id_ in ("never", "sometimes", "always", "unknown")]
    rights = {"never": 0, "sometimes": 3, "always": 8}
    write_rates(tmp_path / "problems.jsonl", [ProblemRate(id_, id_, "1", "data", 8, n) for id_, n in rights.items()])
    config = load(None, {"method": "grpo", "pass_rates": str(tmp_path)})
    assert [example.id for example in training_problems.solved_sometimes(config, examples)] == ["sometimes"]


def test_a_question_with_several_solutions_is_one_problem() -> None:
    """Each of its rows was one: it was drawn that many times in a pass, and steps and problems were counted so."""
    rows = [Example(id_, f"{id_}?", Trace((), "4"), "4", where=f"f:{n}") for n, id_ in enumerate("abab")]
    assert training_problems.questions(rows) == rows[:2]


def test_announced_steps_count_problems_and_not_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of 20 questions has two rows, and 4 questions are for development."""
    file = tmp_path / "rows.jsonl"
    records.write_jsonl(file, ({"question": f"What is {n % 20} + 1?", "answer": str(n % 20 + 1)} for n in range(40)))
    flags = ("--dataset", str(file), "--eval-samples", "0", "--num-train-epochs", "1", "--max-steps", "-1")
    assert run_cli("train", "--run-dir", str(tmp_path / "run"), *SHORT, *flags, "--dry-run") == 0
    output = capsys.readouterr()
    assert "steps: 8 optimizer steps (16 problems, batch 2, 1 epoch)" in output.out
    assert "16 problems" in output.err


def test_pass_rates_that_leave_no_problem_are_a_fault_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rates(tmp_path / "problems.jsonl", [ProblemRate("other", "other", "1", "data", 8, 3)])
    given = (*SHORT, "--pass-rates", str(tmp_path))
    assert run_cli("check", *given) == 2
    assert "no_problem_left" in capsys.readouterr().out
    monkeypatch.setattr(registry, "load", lambda *_: pytest.fail("a model was loaded"))
    assert run_cli("train", "--run-dir", str(tmp_path / "run"), *given) == 2
    assert "no problem is left to train on" in capsys.readouterr().err


def test_rows_of_questions_and_answers_suffice(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    records.write_jsonl(file, ({"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(20)))
    flags = {"dataset": str(file), "eval_samples": "2"}
    assert len(preparation.prepare(load_tree({}, {**flags, "method": "grpo"})).train) == 19
    with pytest.raises(DataError, match="no reasoning"):
        preparation.prepare(load_tree({}, flags))


def test_a_reflection_is_paid_for_only_where_it_belongs() -> None:
    task = tasks.TASKS["chains"]
    (problem,) = draw_problems(task, split="train", n=1, seed=1, steps=(3, 3))
    example = make_example(task, problem, split="train", seed=1, error_rate=0.99, where="world:chains#0")
    text = "<thinking>\n{}\n</thinking>\n<output>" + example.answer + "</output>"

    def reward(lines: list[str]) -> float:
        return rewards.placed_reflections(
            Attempt.of(example, Completion("1", text.format("\n".join(lines)), 9, "stop"))
        )

    parts = [(part.kind, part.text) for part in example.trace.parts]
    tagged = [f"<reflection>{line}</reflection>" if kind == "reflect" else line for kind, line in parts]
    assert any(kind == "reflect" for kind, _ in parts)
    assert reward(tagged) == 0
    assert reward([line for (kind, _), line in zip(parts, tagged, strict=True) if kind == "think"]) == -1
    assert reward([line + " \n" for line in tagged]) == 0  # white space is no error


@pytest.mark.parametrize("task", tasks.TASKS)
def test_reflections_after_all_steps_cost_no_reward(task: str) -> None:
    for example in tasks.generate(f"world:{task}", split="train", n=20, seed=1, error_rate=0.5):
        answer = Completion("1", trace.render(example.trace, "sequential"), 9, "stop")
        assert rewards.placed_reflections(Attempt.of(example, answer, layout="sequential")) == 0


def _row(step: int, **more: float) -> dict[str, float | None]:
    usual = {"reward": 0.5, "rewards/correct/mean": 0.5, "frac_reward_zero_std": 0.3, "entropy": 0.2}
    return {
        "step": step,
        **usual,
        "completions/clipped_ratio": 0.1,
        **{k.replace("__", "/"): v for k, v in more.items()},
    }


PLANTED = [
    ("never_right", {"rewards__correct__mean": 0.0}),
    ("no_signal", {"frac_reward_zero_std": 0.9}),
    ("truncated", {"completions__clipped_ratio": 0.9}),
    ("entropy_collapse", {"entropy": 0.005}),
]


@pytest.mark.parametrize(("name", "fault"), PLANTED)
def test_a_guard_stops_a_run_that_no_longer_learns(name: str, fault: dict[str, float], tmp_path: Path) -> None:
    none = Development(tmp_path / "development.jsonl", 0)
    healthy = [_row(step) for step in range(40)]
    assert guards.check(healthy, none) is None
    faulty = [*healthy, *(_row(40 + step, **fault) for step in range(guards.WINDOW))]
    error = guards.check(faulty, none)
    assert isinstance(error, GuardError)
    assert (error.name, error.exit_code) == (name, 1)
    assert error.hint
    assert guards.check(faulty[: guards.WINDOW // 2], none) is None, "too early to tell"


def test_many_truncated_attempts_are_a_warning_before_they_are_an_error() -> None:
    assert guards.many_truncated([_row(step) for step in range(20)]) is None
    assert guards.many_truncated([_row(step, completions__clipped_ratio=0.5) for step in range(20)]) is not None


def test_rewards_that_rise_while_accuracy_falls_stop_the_run(tmp_path: Path) -> None:
    scores = Development(tmp_path / "development.jsonl", 0)
    right = [f"p{i}" for i in range(30)]
    scores.add(DevelopmentScore(0, 64, frozenset(right)))
    rows = [_row(step, reward=0.2 + step / 50) for step in range(1, 21)]
    scores.add(DevelopmentScore(10, 64, frozenset([*right[2:], "new"])))
    assert guards.check(rows[:10], scores) is None, "two lost and one gained is noise"
    scores.add(DevelopmentScore(20, 64, frozenset(right[12:])))
    error = guards.check(rows, scores)
    assert error is not None
    assert error.name == "reward_hacked"
    error = guards.check([{**row, "reward": -(row["step"] or 0)} for row in rows], scores)
    assert error is not None
    assert error.name == "accuracy_fell", "a run that gets worse at both is not hacked"
    noisy = 0.215, 0.279, 0.286, 0.29, 0.453, 0.37, 0.437, 0.282, 0.177, 0.26
    error = guards.check([{**row, "reward": noisy[at % 10]} for at, row in enumerate(rows)], scores)
    assert error is not None
    assert error.name == "accuracy_fell", "a reward that rose within its noise is not hacked"


def test_a_stopped_run_keeps_its_checkpoint_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guards, "WINDOW", 3)
    run = RunDir(tmp_path / "run")
    # The base was never trained on the format: none of its attempts is right.
    stopped = ("--guards", "--dev-problems", "0", "--max-steps", "6", "--save-steps", "2", "--max-new-tokens", "4")
    command = ("train", "--run-dir", str(run.path), *SHORT, *stopped)
    assert run_cli(*command) == 1
    message = capsys.readouterr().err
    assert "no attempt was right in 3 steps (step 3)" in message
    assert "the newest checkpoint, checkpoint-2" in message
    assert [path.name for path in run.complete_checkpoints()] == ["checkpoint-2"]
    assert [row["step"] for row in _metrics(run)] == [1, 2, 3]
    assert run.trained_weights is None
    assert run_cli("train", "--run-dir", str(run.path), "--resume") == 1
    assert "no attempt was right in 3 steps (step 3)" in capsys.readouterr().err


def test_a_reward_for_format_and_length_alone_is_caught(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reward can be had by short answers, right or wrong, and rises; accuracy on development problems falls."""
    common = ("--dataset", "world:chains:1-2", "--eval-samples", "0", "--gguf", "", "--max-new-tokens", "80")
    start, hacked = tmp_path / "start", tmp_path / "hacked"
    taught = ("--max-steps", "40", "--world-samples", "400", "--world-clean-first", "0", "--world-error-rate", "0")
    assert run_cli("train", "--run-dir", str(start), *common, *taught) == 0
    rewards_ = ("--reward-correct", "0", "--reward-format", "1", "--reward-overlong", "1", "--overlong-share", "1")
    draws = ("--generation-batch-size", "32", "--per-device-train-batch-size", "16", "--rollout-temperature", "1.3")
    steps = ("--max-steps", "18", "--dev-problems", "24", "--dev-steps", "6", "--learning-rate", "1e-3")
    flags = (*rewards_, *draws, *steps, "--world-samples", "200", "--lr-scheduler-type", "constant_with_warmup")
    command = ("--method", "grpo", "--init-adapter", str(start), "--run-dir", str(hacked))
    assert run_cli("train", *command, *common, *flags) == 1
    assert "the model earns reward without solving the problems" in capsys.readouterr().err


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="not a multiple"):
        load_tree({"train": {"method": "grpo"}, "grpo": {"generation_batch_size": 10, "num_generations": 4}}, {})
    with pytest.raises(ConfigError, match="fast_inference"):
        load_tree({"train": {"method": "grpo"}, "model": {"engine": "unsloth", "fast_inference": True}}, {})


def test_the_learning_rate_is_that_of_the_method_unless_it_is_given() -> None:
    rate = {"train": {"learning_rate": 3e-3}}
    assert load_tree(rate, {"method": "grpo"}).train.learning_rate == 4e-4
    assert load_tree(rate, {"method": "grpo", "model_name_or_path": "some/model"}).train.learning_rate == 1e-5
    assert load_tree(rate, {"method": "grpo", "learning_rate": "2e-5"}).train.learning_rate == 2e-5
    given = {"train": {"method": "grpo", "learning_rate": 7e-6}}
    assert load_tree(given, {}).train.learning_rate == 7e-6
    assert load_tree(rate, {}).train.learning_rate == 3e-3
    assert RunConfig().fingerprint() == load_tree({"grpo": {"beta": 0.0}}, {}).fingerprint()


def test_settings_that_unsloth_would_replace_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU its GRPOConfig has defaults of its own, and replaces one setting that is given."""
    given: dict[str, Any] = {}

    class Replaced(trl.GRPOConfig):  # type: ignore[misc]
        def __init__(self, **settings: Any) -> None:
            given.update(settings)
            super().__init__(**settings | {"scale_rewards": False})

    monkeypatch.setattr(trl, "GRPOConfig", Replaced)
    config = load(None, {"method": "grpo", "loss_type": "dr_grpo", "scale_rewards": "group"})
    engine = SimpleNamespace(
        config=config,
        device="cpu",
        dtype=torch.float32,
        default_optimizer="adamw_torch",
        adapt_arguments=lambda _: None,
    )
    arguments = grpo.training_arguments(cast(Trainable, engine), 3, TrainingHooks(tmp_path))
    assert given["mask_truncated_completions"] is False, "an attempt that is cut off keeps its penalty"
    assert given["epsilon_high"] == config.grpo.epsilon
    assert arguments.scale_rewards == "group"


def test_a_loss_that_does_not_measure_entropy_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    """As Unsloth's on a GPU."""
    engine = SimpleNamespace(name="unsloth", config=load(None, {"method": "grpo", "guards": "false"}))
    hooks = TrainingHooks(Path("checkpoints"))
    watch = grpo._Watch(cast(Any, SimpleNamespace()), cast(Trainable, engine), [], hooks)
    for steps in (1, 2):
        watch.on_log(None, SimpleNamespace(log_history=[{"loss": 0.1, "reward": 0.5}] * steps), None)
    assert capsys.readouterr().err.count("does not measure entropy here") == 1


def test_plots_are_drawn_of_runs_of_grpo_alone() -> None:
    assert grpo_plots.draw([{"step": 1, "loss": 0.1}]) == {}
    drawn = grpo_plots.draw([_row(step) for step in range(1, 4)])
    assert set(drawn) == {"rewards", "attempts", "entropy", "attempt length"}
    assert all(json.dumps(svg) for svg in drawn.values())
