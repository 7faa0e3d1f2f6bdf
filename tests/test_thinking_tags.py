"""`data.thinking_tags: think`: rows, prompts, scoring and exports of a run use `<think>` throughout."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import run_cli, running_server, short_run

from cot_unsloth import config, tasks
from cot_unsloth.config import DEFAULT_SYSTEM_PROMPT, DataConfig, ModelConfig, RunConfig
from cot_unsloth.core import trace
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.results import Manifest
from cot_unsloth.core.types import IGNORE, Completion, Example, Part, Prompt, Reject, Sample, SamplingParams, Trace
from cot_unsloth.data import load_examples
from cot_unsloth.evaluation import budget_curve, budget_forcing, error_injection, lm_eval_command, score, scorecard
from cot_unsloth.evaluation.budget_forcing import budget_settings
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.models.openai_api import OpenAiApi
from cot_unsloth.models.protocols import Advance
from cot_unsloth.models.streaming import Turn, history
from cot_unsloth.models.target import resolve_target
from cot_unsloth.prompts.arms import Prompter
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.server import Served
from cot_unsloth.storage.records import kept_example, read_jsonl
from cot_unsloth.storage.run_folder import RunDir

THINK_PROMPT = DEFAULT_SYSTEM_PROMPT.replace("<thinking>", "<think>")
TEXT = "<think>\n1 + 1 = 3\n<reflection>it is 2</reflection>\nso 2\n</think>\n<output>2</output>"
READ = Trace((Part("think", "1 + 1 = 3"), Part("reflect", "it is 2"), Part("think", "so 2")), "2")
EXAMPLE = Example("e", "1 + 1?", READ, "2", where="rows.jsonl:1")


# The grammar.


def test_a_trace_is_read_only_with_the_tag_it_was_written_with() -> None:
    assert trace.render(READ, thinking_tags="think") == TEXT
    assert trace.parse(TEXT, "think").trace == READ
    assert trace.parse(TEXT).trace is None
    assert trace.parse(trace.render(READ), "think").faults[0] == "stray_text"
    for layout in ("nested", "sequential"):
        text = trace.render(READ, layout, "think")  # type: ignore[arg-type]
        assert "thinking" not in text
        assert trace.parse(text, "think").faults == ()


def test_an_adapter_with_tags_of_its_own_is_measured_in_them(tmp_path: Path) -> None:
    """Its reflections were not found, and it seemed to have none."""
    examples = tasks.generate("world:chains", split="test", n=20, seed=1, error_rate=0.3)
    arms = {}
    for arm, tags in (("tuned", "thinking"), ("other", "think")):
        completions = [Completion(e.id, trace.render(e.trace, thinking_tags=tags), 9, "stop") for e in examples]  # type: ignore[arg-type]
        arms[arm] = [
            score.judge(e, c, tagged=True, thinking_tags=tags)  # type: ignore[arg-type]
            for e, c in zip(examples, completions, strict=True)
        ]
    own = {"other": DataConfig(thinking_tags="think")}
    card = scorecard.write(RunDir(tmp_path), RunConfig(), examples, arms, written=own)
    assert card.reflection["other"] == card.reflection["tuned"]
    assert card.aims["other"] == card.aims["tuned"]
    assert card.reflection["other"].n > 5


def test_the_other_tag_is_plain_text() -> None:
    for ours, other in itertools.permutations(("thinking", "think")):
        said = Trace((Part("think", f"the tags <{other}> and </{other}>"),), f"<{other}>")
        text = trace.render(said, thinking_tags=ours)  # type: ignore[arg-type]
        assert trace.parse(text, ours).trace == said  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_a_turn_is_split_into_sections_however_it_is_chunked(size: int) -> None:
    pieces = [TEXT[at : at + size] for at in range(0, len(TEXT), size)]
    said: dict[str | None, str] = {}
    for event in trace.scan(pieces, "think"):
        if event.kind == "text":
            said[event.section] = said.get(event.section, "") + event.text
    assert said["thinking"].split() == ["1", "+", "1", "=", "3", "so", "2"]
    assert (said["reflection"], said["output"], said[None].strip()) == ("it is 2", "2", "")


def test_budgets_and_corrupted_steps_use_the_tags() -> None:
    begun = TEXT[: TEXT.index("it is 2")]
    assert trace.end_thinking(begun, "think") == "</reflection>\n</think>\n<output>"
    assert trace.reopen_thinking(TEXT, "think") == TEXT[: TEXT.index("\n</think>")] + "\n<reflection>"
    ending = "</think>\n<reflection>no</reflection>\n"
    assert trace.reopen_thinking(f"<think>\na\n{ending}<output>1</output>", "think", "sequential") == (
        f"<think>\na\n{ending}<reflection>"
    )
    assert trace.strip_partial_tag("so 2\n</thi", "think") == "so 2\n"
    assert trace.strip_partial_tag("so 2\n</thinki", "think") == "so 2\n</thinki"
    assert [TEXT[a:b] for a, b in trace.thinking_lines(TEXT, "think")] == ["1 + 1 = 3", "so 2"]
    assert list(trace.thinking_lines(TEXT)) == []


# The setting.


def test_the_default_prompt_names_the_tags_and_a_custom_prompt_is_unchanged(tmp_path: Path) -> None:
    assert config.load(None, {}).data.system_prompt == RunConfig().data.system_prompt == DEFAULT_SYSTEM_PROMPT
    think = config.load(None, {"thinking_tags": "think"})
    assert think.data.system_prompt == DataConfig(thinking_tags="think").system_prompt == THINK_PROMPT
    file = tmp_path / "config.yaml"
    file.write_text(think.to_yaml())
    assert config.load(file) == think
    assert config.load(file, {"thinking_tags": "thinking"}).data.system_prompt == DEFAULT_SYSTEM_PROMPT
    for own in ("Reason in <thinking> tags.", "", None):
        assert DataConfig(thinking_tags="think", system_prompt=own).system_prompt == own


@pytest.mark.parametrize("value", ["thought", ["think"], 3, {"a": 1}])
def test_other_tags_are_refused_in_one_line(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.thinking_tags is"):
        config.load_tree({"data": {"thinking_tags": value}}, {})


# Rows and prompts.


def renderer(**data: Any) -> Renderer:
    return open_renderer(ModelConfig(), DataConfig(**{"thinking_tags": "think", **data}))


@pytest.mark.parametrize("layout", ["nested", "sequential"])
@pytest.mark.parametrize("loss_on", ["last", "all"])
def test_labels_include_the_tags_of_every_trained_turn(layout: str, loss_on: str) -> None:
    earlier = trace.render(READ)  # as readers keep it
    talk = ({"role": "user", "content": "And 1 + 1?"}, {"role": "assistant", "content": earlier})
    opened = renderer(trace_layout=layout, loss_on=loss_on)
    written = trace.render(READ, layout, "think")  # type: ignore[arg-type]
    sample = opened.sample(replace(EXAMPLE, history=talk))
    assert isinstance(sample, Sample)
    assert opened.chat.decode(sample.ids).count(written) == 2
    supervised = opened.chat.decode([label for label in sample.labels if label != IGNORE])
    assert supervised == (written + "<|im_end|>") * (2 if loss_on == "all" else 1)
    assert "<thinking>" not in opened.chat.decode(sample.ids)


def test_a_row_whose_text_contains_the_tag_is_rejected() -> None:
    for part, output in (("R1 writes </think> here", "2"), ("a step", "it is <think>")):
        row = replace(EXAMPLE, trace=Trace((Part("think", part),), output))
        made = renderer().sample(row)
        assert isinstance(made, Reject)
        assert (made.reason, made.where) == ("misnested", "rows.jsonl:1")
        assert "think>; remove the tag" in made.detail
        assert isinstance(renderer(thinking_tags="thinking").sample(row), Sample)


def test_data_with_think_tags_is_read_the_same_and_its_system_prompt_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    row = {"system": "Reason in <think> tags.", "prompt": "3 + 4?", "response": "<think>\n3 + 4 = 7\n</think>\n7"}
    file.write_text(json.dumps(row) + "\n")
    loaded = {
        tags: load_examples(DataConfig(dataset=str(file), thinking_tags=tags), seed=1, eval_samples=0, eval_seed=1)  # type: ignore[arg-type]
        for tags in ("thinking", "think")
    }
    assert loaded["think"].examples == loaded["thinking"].examples
    assert "tags other than those that are trained" in str(loaded["thinking"].columns)
    assert "tags other than those that are trained" not in str(loaded["think"].columns)


def test_turns_of_a_client_get_their_tags_back() -> None:
    turn = {"role": "assistant", "content": "2", "reasoning_content": "1 + 1 = 2"}
    assert history(turn, "think")["content"] == "<think>\n1 + 1 = 2\n</think>\n<output>2</output>"
    assert history({"role": "assistant", "content": TEXT}, "think")["content"] == TEXT
    other = {"role": "assistant", "content": trace.render(READ)}
    assert history(other, "think")["content"] == TEXT


# Scoring and budgets.


def test_an_answer_is_scored_with_the_trained_tags() -> None:
    said = Completion("e", TEXT, 9, "stop")
    result = score.judge(EXAMPLE, said, tagged=True, thinking_tags="think")
    assert (result.correct, result.fault) == (True, None)
    assert score.judge(EXAMPLE, said, tagged=True).fault is not None


class Writer:
    """Writes a world's own solutions with `<think>`, three words at a time where a budget asks for it."""

    name = "writer"

    def __init__(self, examples: Sequence[Example]) -> None:
        self.whole = {e.question: trace.render(e.trace, thinking_tags="think") for e in examples}
        self.prefixes: list[str] = []

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, advance: Advance = lambda done: None
    ) -> list[Completion]:
        done = []
        for prompt in prompts:
            self.prefixes.append(prompt.prefix)
            text, written = self.whole[prompt.messages[-1]["content"]], prompt.prefix
            rest = text[len(written) :] if text.startswith(written) else "1</output>"
            whole = len(rest) < sampling.max_new_tokens
            said = written + rest[: sampling.max_new_tokens]
            done.append(Completion(prompt.id, said, sampling.max_new_tokens, "stop" if whole else "length"))
        advance(done)
        return done

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
        self.prefixes.append(prompt.prefix)
        text = self.whole[prompt.messages[-1]["content"]]
        yield from text if not prompt.prefix else "7</output>"


def test_budgets_and_error_injection_work_with_the_tags(tmp_path: Path) -> None:
    examples = tasks.generate("world:countdown", split="test", n=6, seed=1)
    prompter, writer = Prompter(DataConfig(thinking_tags="think")), Writer(examples)
    ladder = budget_settings((12, 4000), samples=1, extend=1)
    rungs = budget_forcing.answer_at_budgets(
        writer, prompter, examples, "tuned", SamplingParams(), ladder, RunDir(tmp_path)
    )
    assert {s.fault for s in rungs[0].scores[0]} == {None}
    assert all("</think>\n<output>1" in s.text for s in rungs[0].scores[0])
    assert any(prefix.endswith("<reflection>") and "</think>" not in prefix for prefix in writer.prefixes)
    assert budget_curve.budget_curve(examples, rungs, 4000, "think").by_tries["countdown"]
    scores = [s for s in rungs[1].scores[0] if s.correct]
    assert scores
    right = [e for e in examples if e.id in {s.id for s in scores}]
    result = error_injection.corrupt_right_answers(writer, prompter, right, scores, sampling=SamplingParams(), seed=1)
    assert result.n == len(right)


def test_thinking_ended_by_a_budget_is_closed_with_the_tag() -> None:
    writer = Writer([EXAMPLE])
    turn = Turn(writer, ({"role": "user", "content": EXAMPLE.question},), SamplingParams(200), 12, "think")
    said = [(each.section, each.text) for each in turn]
    assert turn.cut
    assert turn.text.endswith("\n</think>\n<output>7</output>")
    assert "".join(text for section, text in said if section == "output") == "7"


# A complete run.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run long enough to learn the format: short chains only, at the learning rate of the demo."""
    return short_run(
        tmp_path_factory.mktemp("think") / "run", "--thinking-tags", "think", "--dataset", "world:chains:2-3",
        "--world-samples", "600", "--max-steps", "60", "--save-steps", "30", "--per-device-train-batch-size", "8",
        "--lora-r", "32", "--no-use-rslora", "--max-new-tokens", "120", "--arms", "base_tags,tuned", "--recovery",
        "--gguf", "q8_0", "--merged", "--export-samples", "4",
    )  # fmt: skip


def test_a_run_trains_scores_and_exports_with_the_tags(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    card = json.loads(run.scorecard.read_text())
    assert card["thinking_tags"] == "think"
    assert card["arms"]["tuned"]["format_valid"] == card["arms"]["gguf"]["format_valid"] == 1.0
    assert card["recovery"]["n"] > 0
    assert all(row["text"].startswith("<think>\n") for row in read_jsonl(run.completions("tuned")))
    result = json.loads(run.token_accuracy.read_text())["sections"]
    assert result["thinking"]["tuned"]["share"] > 0.8
    verified = json.loads(run.verified.read_text())
    assert (verified["status"], verified["thinking_tags"]) == ("passed", "think")
    assert verified["system_prompt"] == THINK_PROMPT
    modelfile = (run.export / "Modelfile").read_text()
    assert "<think>\n{{ .Thinking }}\n</think>" in modelfile
    assert f'SYSTEM """{THINK_PROMPT}"""' in modelfile
    assert "between `<think>` tags" in (run.export / "README.md").read_text()
    assert "think_end_token=</think>" in lm_eval_command.command(run, "gsm8k")
    assert '<span class="thinking">Start' in run.report.read_text()
    for text in (modelfile, (run.export / "README.md").read_text(), run.completions("tuned").read_text()):
        assert "<thinking>" not in text
    capsys.readouterr()
    assert run_cli("inspect", str(run.path), "-n", "2") == 0
    shown = capsys.readouterr().out
    assert "<think>" in shown
    assert "<thinking>" not in shown


def test_the_adapter_and_the_merged_folder_record_the_tags(run: RunDir) -> None:
    for base, adapter in ((None, run.adapter), (str(run.merged), None)):
        data = resolve_target(base=base, adapter=adapter).config.data
        assert (data.thinking_tags, data.system_prompt) == ("think", THINK_PROMPT)


def test_a_run_resumes_with_its_tags_and_refuses_others(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = RunDir(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    for gone in (copy.adapter, copy.complete_checkpoints()[-1]):
        shutil.rmtree(gone)
    for file in (copy.scorecard, copy.report, copy.completions("tuned"), copy.fit_report):
        file.unlink()
    Manifest.read(copy.manifest).without("finished").write(copy.manifest)
    again = ["train", "--run-dir", str(copy.path), "--resume"]
    assert run_cli(*again, "--thinking-tags", "thinking") == 2
    assert "thinking_tags was 'think', now 'thinking'" in capsys.readouterr().err
    assert run_cli(*again) == 0
    assert copy.read_config().data.thinking_tags == "think"
    for one, other in zip(read_jsonl(copy.completions("tuned")), read_jsonl(run.completions("tuned")), strict=True):
        assert one["text"] == other["text"]


def test_the_exported_file_is_scored_with_the_tags_of_its_run(run: RunDir, tmp_path: Path) -> None:
    (file,) = run.exported_models()
    assert run_cli("evaluate", str(file), "--eval-samples", "4", "--out", str(tmp_path / "scores")) == 0
    card = json.loads((tmp_path / "scores" / "scorecard.json").read_text())
    assert card["thinking_tags"] == "think"
    assert card["arms"]["gguf"]["format_valid"] == 1.0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for source in (file, run.verified):
        shutil.copy(source, elsewhere / source.name)
    target = resolve_target(elsewhere / file.name)
    engine = target.load_streamer()
    assert isinstance(engine, LlamaCpp)
    engine.close()
    assert (target.config.data.thinking_tags, target.config.data.system_prompt) == ("think", THINK_PROMPT)
    known = json.loads(run.verified.read_text())
    del known["thinking_tags"]  # as an older export left it
    (elsewhere / "verified.json").write_text(json.dumps({**known, "system_prompt": DEFAULT_SYSTEM_PROMPT}))
    assert resolve_target(elsewhere / file.name).config.data.thinking_tags == "thinking"


def test_both_servers_separate_the_reasoning(run: RunDir) -> None:
    (file,) = run.exported_models()
    opened, llama = run.read_config(), LlamaCpp(file, context=1024, slots=1)
    example = next(kept_example(row) for row in read_jsonl(run.kept) if row["split"] == "test")
    prompt = Prompter(opened.data).prompt(example, "tuned")
    body = {"messages": [dict(m) for m in prompt.messages], "temperature": 0, "max_tokens": 120}
    (raw,) = llama.generate([prompt], SamplingParams(120))
    assert trace.parse(raw.text, "think").faults == ()
    reasoning, content = (text.strip() for text in raw.text.removeprefix("<think>").split("</think>"))

    message = llama._post("/v1/chat/completions", body)["choices"][0]["message"]
    assert (message["reasoning_content"].strip(), message["content"].strip()) == (reasoning, content)
    assert (content[:8], "think" in content + reasoning) == ("<output>", False)

    streamed: dict[str, str] = {"reasoning_content": "", "content": ""}
    with llama._request("/v1/chat/completions", {**body, "stream": True}) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    for key in streamed:
                        streamed[key] += choice["delta"].get(key) or ""
    assert (streamed["reasoning_content"].strip(), streamed["content"].strip()) == (reasoning, content)

    joined = OpenAiApi([f"{llama._address}/v1"], str(file), thinking_tags="think")
    (again,) = joined.generate([prompt], SamplingParams(120))
    assert again.text == raw.text

    with running_server(Served({"ours": llama}, opened)) as address:
        request = {"messages": body["messages"], "temperature": 0}
        answer = httpx.post(f"{address}/v1/chat/completions", json=request, timeout=60)
    ours = answer.json()["choices"][0]["message"]
    assert ours["reasoning_content"] == reasoning
    assert f"<output>{ours['content']}</output>" == content
    llama.close()
