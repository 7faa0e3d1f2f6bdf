"""`check` reports each deliberate fault by its name, and nothing for the same file without it.

Each case is a small file or model folder with one fault, and the same without it. `check` runs in this process and
loads no weights.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers import forked, run_cli

from cot_unsloth import config as settings
from cot_unsloth.core.results import Contamination
from cot_unsloth.core.types import Example, Part, Trace
from cot_unsloth.data import checks as check_rows
from cot_unsloth.models import registry
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.training import checks, preparation
from cot_unsloth.training.checks import Finding, setup

ROOT = Path(__file__).parent.parent
TINY = Path(model_path("tiny-base"))

Content = str | bytes | Callable[[Path], None]
"""The content of a file, or a function that writes it."""


@dataclass(frozen=True)
class Case:
    """A file with one fault, and the same file without it."""

    id: str
    name: str
    """Name of the expected finding."""
    faulty: Content
    clean: Content
    file: str = "config.yaml"
    """File the content is written to; `model` is a folder with a copy of the embedded model, which the content changes."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Settings for both."""
    level: str = "fault"
    says: str = ""
    """Part of the expected message, position or hint."""

    def findings(self, content: Content, folder: Path) -> list[Finding]:
        """Findings of `check` with that content."""
        flags = {leaf: str(value).replace("DIR", str(folder)) for leaf, value in self.flags.items()}
        path = folder / self.file
        if self.file == "model":
            shutil.copytree(TINY, path)
            assert callable(content)
            content(path)
            return checks.check_target(
                None, {**SMALL, "model_name_or_path": str(path), "dataset": "world:chains:2", **flags}
            )
        if callable(content):
            content(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")
        if self.file == "config.yaml":
            return checks.check_target(str(path), flags)
        return checks.check_target(str(path), {**SMALL, **flags})


SMALL: Mapping[str, Any] = {"world_samples": 60, "eval_samples": 4, "max_steps": 100}


# Settings.


def config(**sections: Mapping[str, Any]) -> str:
    """A config file for a small task, with changes."""
    tree: dict[str, dict[str, Any]] = {
        "data": {"dataset": "world:chains:2", "world_samples": 60},
        "train": {"max_steps": 100, "learning_rate": 0.001},
        "evaluate": {"eval_samples": 4},
    }
    for section, leaves in sections.items():
        tree.setdefault(section, {}).update(leaves)
    return json.dumps(tree, indent=1)


def setting(id_: str, name: str, section: str, leaf: str, bad: Any, good: Any, **more: Any) -> Case:
    """A config file with a bad value of one setting, and one with a good value."""
    return Case(id_, name, config(**{section: {leaf: bad}}), config(**{section: {leaf: good}}), **more)


CLEAN = config()
SETTINGS = [
    Case("unknown setting", "unknown_setting", config(lora={"rnak": 8}), config(lora={"lora_r": 8}), says="lora.rnak"),
    Case("another trainer's name", "unknown_setting", config(lora={"rank": 8}), CLEAN, says="did you mean lora.lora_r"),
    Case("unknown section", "unknown_section", config(trian={"seed": 1}), config(train={"seed": 1}), says="did you mean train"),
    Case("misplaced setting", "misplaced_setting", config(train={"lora_r": 8}), config(lora={"lora_r": 8}), says="belongs in section lora"),
    setting("text for a number", "wrong_type", "train", "seed", "many", 5, says="config.yaml:"),
    setting("a fraction for a whole number", "wrong_type", "train", "save_steps", 1.5, 1),
    Case("a list for a section", "wrong_type", "lora: [8]\n", "lora: {lora_r: 8}\n", flags={**SMALL, "learning_rate": 0.001}),
    setting("wrong choice", "wrong_choice", "model", "dtype", "float8", "float32", says="float32"),
    setting("one wrong choice of a list", "wrong_choice", "export", "gguf", ["q9_0"], ["q8_0"], says="export.gguf"),
    setting("out of range", "out_of_range", "lora", "lora_dropout", 1.5, 0.1),
    setting("zero rows a batch", "out_of_range", "train", "per_device_train_batch_size", 0, 1),
    setting("an empty name", "out_of_range", "model", "model_name_or_path", "", "tiny-base"),
    Case("set twice", "set_twice", "train:\n  seed: 1\n  seed: 2\n", "train:\n  seed: 1\n", flags={**SMALL, "learning_rate": 0.001}, says="config.yaml:3"),
    Case("no YAML", "not_yaml", "train: {seed: 1\n", "train: {seed: 1}\n", flags={**SMALL, "learning_rate": 0.001}, says="config.yaml:"),
    Case("a tab in YAML", "not_yaml", "train:\n\tseed: 1\n", "train:\n  seed: 1\n", flags={**SMALL, "learning_rate": 0.001}, says="config.yaml:2"),
    Case("a list of settings", "no_settings", "- seed\n", CLEAN, says="write sections"),
    Case("settings in UTF-16", "unreadable_settings", CLEAN.encode("utf-16"), CLEAN, says="UTF-8"),
    Case("settings that are not there", "config_missing", lambda path: None, CLEAN),
    setting("no steps", "conflicting_settings", "train", "max_steps", 0, 60, says="max_steps"),
    Case("4 and 8 bits", "conflicting_settings", config(model={"load_in_4bit": True, "load_in_8bit": True}), CLEAN, says="choose one"),
    Case("vLLM with hf", "conflicting_settings", config(model={"fast_inference": True, "engine": "hf"}), config(model={"engine": "hf"})),
    Case("a benchmark's path alone", "conflicting_settings", config(evaluate={"benchmark_path": "x.jsonl"}), CLEAN, says="evaluate.benchmark"),
    Case("all-linear and another", "conflicting_settings", config(lora={"target_modules": ["all-linear", "q_proj"]}), config(lora={"target_modules": ["q_proj"]})),
    Case("every weight, in 4 bits", "conflicting_settings", config(train={"full_finetuning": True}, model={"load_in_4bit": True}), config(train={"full_finetuning": True})),
    Case("every weight, as an adapter", "conflicting_settings", config(train={"full_finetuning": True}, export={"lora_gguf": True}), config(train={"full_finetuning": True})),
    Case("nothing to push", "conflicting_settings", config(train={"full_finetuning": True}, export={"push_to_hub": "me/mine"}), config(train={"full_finetuning": True})),
    setting("unknown task", "unknown_task", "data", "dataset", "world:chians", "world:chains", says="chains"),
    setting("unknown task for forgetting", "unknown_task", "evaluate", "forgetting", "world:wrods", "world:words:2", says="words"),
    setting("forgetting of what is trained on", "trained_on", "evaluate", "forgetting", "world:words,chains:3", "world:words", says="chains"),
    setting("steps of a task that cannot be", "unknown_task", "data", "dataset", "world:chains:0", "world:chains:2"),
    setting("learning rate of full weights' like", "unusual_learning_rate", "train", "learning_rate", 1.0, 0.001, level="warning"),
    setting("learning rate too low", "unusual_learning_rate", "train", "learning_rate", 1e-9, 0.001, level="warning"),
    setting("large batch", "large_batch", "train", "gradient_accumulation_steps", 100, 4, level="warning"),
    setting("unusual alpha", "unusual_alpha", "lora", "lora_alpha", 4096, 64, level="warning"),
    setting("nothing scored", "nothing_scored", "evaluate", "eval_samples", 0, 4, level="warning"),
    setting("few problems", "few_problems", "evaluate", "eval_samples", 4, 200, level="warning"),
    setting("few steps", "few_steps", "train", "max_steps", 10, 60, level="warning", says="100 or more"),
    Case("no checkpoint", "no_checkpoint", config(train={"max_steps": 200, "save_steps": 300}), config(train={"max_steps": 200}), level="warning", says="save_steps"),
    setting("no such module", "no_such_module", "lora", "target_modules", ["query"], ["q_proj"], says="q_proj"),
    setting("beyond positions", "beyond_positions", "data", "max_seq_length", 4096, 2048, level="warning", says="2,048"),
    setting("unsloth missing", "unsloth_missing", "model", "engine", "unsloth", "hf"),
    setting("bitsandbytes missing", "bitsandbytes_missing", "model", "load_in_4bit", True, False, says="pip install bitsandbytes"),
    setting("8-bit optimizer without bitsandbytes", "bitsandbytes_missing", "train", "optim", "adamw_8bit", "adamw_torch"),
    setting("vLLM missing", "needs_unsloth", "model", "fast_inference", True, False),
    setting("no such template", "no_such_template", "model", "chat_template", "qwenn3", "chatml", says="qwen3"),
    setting("padding token that is not there", "no_padding_token", "model", "pad_token", "<nothing>", "<|endoftext|>"),
    setting("budget below the answers", "budget_below_answers", "evaluate", "max_new_tokens", 16, 400, level="warning", says="--max-new-tokens"),
    setting("a limit that no row keeps", "no_row_left", "data", "max_seq_length", 70, 640, says="too_long"),
    setting("a model that is not here", "no_tokenizer", "model", "model_name_or_path", "nowhere/at-all-3B", "tiny-base"),
]  # fmt: skip


# Data.


def row(n: int) -> dict[str, str]:
    """A sum."""
    a, b = 3 + n, 5 + n * n
    return {"question": f"What is {a} plus {b}?", "thinking": f"I add: {a} + {b} = {a + b}", "answer": str(a + b)}


ROWS = [row(n) for n in range(12)]


def lines(*more: Any, rows: list[Any] | None = None) -> str:
    """JSON lines: twelve sums, or the given rows, and more."""
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in [*(ROWS if rows is None else rows), *more])


def messages(*turns: tuple[str, Any], **columns: Any) -> dict[str, Any]:
    """A conversation."""
    return {"messages": [{"role": role, "content": content} for role, content in turns], **columns}


def asked(answer: str) -> dict[str, Any]:
    """A conversation of a question and this answer."""
    return messages(("user", "How many are 2 and 2?"), ("assistant", answer))


TALKS = [
    messages(("user", item["question"]), ("assistant", f"<think>{item['thinking']}</think>{item['answer']}"))
    for item in ROWS
]
GOOD_TALK = asked("<think>2 + 2 = 4</think>4")


def data(id_: str, name: str, faulty: Content, clean: Content | None = None, **more: Any) -> Case:
    """A data file."""
    return Case(id_, name, faulty, lines() if clean is None else clean, file=more.pop("file", "mine.jsonl"), **more)


def one_row(id_: str, name: str, bad: Any, good: Any = None, **more: Any) -> Case:
    """A data file with one bad row, which is rejected and does not stop the run."""
    good = row(40) if good is None else good
    return data(id_, name, lines(bad), lines(good), level="warning", says=more.pop("says", "mine.jsonl:13"), **more)


def one_talk(id_: str, name: str, bad: Any) -> Case:
    """A data file with one bad conversation."""
    return data(id_, name, lines(bad, rows=TALKS), lines(GOOD_TALK, rows=TALKS), level="warning", says="mine.jsonl:13")


def archive(path: Path) -> None:
    """Write a zip archive with the name of a data file."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.txt", "x")


def workbook(path: Path) -> None:
    """Write the first file of an Excel workbook."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("[Content_Types].xml", "<Types/>")
        file.writestr("xl/workbook.xml", "<workbook/>")


def gzipped(path: Path) -> None:
    """Write the clean rows, compressed."""
    path.write_bytes(gzip.compress(lines().encode()))


def parquet(path: Path) -> None:
    """Write the clean rows as Parquet."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


APPLES = "Ann has seven red apples and gives two of them to her brother Bob before lunch; how many are left"
PROSE = (
    "Because the light of the sun is scattered by the air, and the short waves of it are scattered much more than the "
    "long ones, which is why we see the sky as blue wherever we look, and the sun as a little yellow."
)
BENCH = "A farmer has seven fields with six rows of corn in each of the fields; how many rows of corn are there in all?"
CSV = "question,thinking,answer\n" + "".join(
    f"{item['question']},{item['thinking']},{item['answer']}\n" for item in ROWS
)
LONG = "word " * 4000
SUMS = [row(n) for n in range(300)]
DATA = [
    data("no such file", "file_missing", lambda path: path.with_name("mine2.jsonl").write_text(lines()), says="mine2.jsonl"),
    data("no rows", "no_rows", ""),
    data("no rows but a header", "no_rows", "question,thinking,answer\n", CSV, file="mine.csv"),
    data("no JSON", "not_json", '[{"question": ', json.dumps(ROWS), file="mine.json"),
    data("words as JSON lines", "not_data", "what is this\nnot data\n", says="mine.jsonl:1"),
    data("one line in cp1252", "not_utf8", lines({**row(20), "question": "Wie groß ist 3?"}).encode("cp1252"), lines({**row(20), "question": "Wie groß ist 3?"}), level="warning", says="1252"),
    data("a table in cp1252", "not_utf8", (CSV + "Wie groß ist 3?,3,3\n").encode("cp1252"), CSV + "Wie groß ist 3?,3,3\n", file="mine.csv", says="1252"),
    data("broken line", "broken_json", lines() + '{"question": "half\n', level="warning", says="mine.jsonl:13"),
    data("a list on a line", "not_an_object", lines([1, 2]), level="warning", says="mine.jsonl:13"),
    data("a key twice", "repeated_key", lines() + '{"question": "a b", "question": "c d", "thinking": "e", "answer": "f"}\n', level="warning"),
    data("ragged row", "ragged_row", CSV + "one,two,three,four,five\n", CSV, file="mine.csv", level="warning", says="mine.csv:14"),
    data("stray quote", "broken_csv", CSV + 'what,"is" this,5\nWhat is 1 plus 1?,1 + 1 = 2,2\n', CSV, file="mine.csv", level="warning", says="mine.csv:14"),
    data("repeated column", "repeated_column", CSV.replace("thinking", "question"), CSV, file="mine.csv", says="question"),
    data("an Excel workbook", "excel_workbook", workbook, CSV, file="mine.csv", says="CSV"),
    data("a web page", "web_page", "<!DOCTYPE html><html><body>Sign in</body></html>\n", says="web page"),
    data("a zip archive", "not_data", archive, says="zip"),
    data("a PDF", "not_data", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", says="PDF"),
    data("no Parquet", "not_parquet", b"PAR1 and nothing else", parquet, file="mine.parquet"),
    data("half of a gzip", "damaged_file", gzip.compress(lines().encode())[:-60], gzipped, file="mine.jsonl.gz"),
    data("unknown layout", "unknown_layout", lines(rows=[{"foo": "a", "bar": "b"}] * 3), says="foo, bar"),
    data("columns that are not there", "no_such_column", lines(rows=[{"q": "a"}]), lines(rows=[{"q": r["question"], "w": r["thinking"], "r": r["answer"]} for r in ROWS]), flags={"question_column": "q", "reasoning_column": "w", "answer_column": "r"}, says="reasoning-column w"),
    data("answers alone", "no_reasoning", lines(rows=[{"question": r["question"], "answer": r["answer"]} for r in ROWS]), says="reasoning"),
    data("every row with an image", "all_rows_rejected", lines(rows=[messages(("user", [{"type": "image_url", "image_url": "x"}]), ("assistant", "<think>4</think>4"))] * 4), lines(rows=TALKS), says="4 image_part"),
    data("every row without a question", "unknown_layout", lines(rows=[{**r, "question": ""} for r in ROWS]), says="question is empty in every row"),
    data("no such split", "no_such_split", json.dumps({"dev": ROWS}), json.dumps({"train": ROWS}), file="mine.json", says="dev"),
    one_row("no reasoning in a row", "no_reasoning", {**row(40), "thinking": ""}),
    one_row("empty question", "empty_question", {**row(40), "question": " "}),
    one_row("control token", "control_token", {**row(40), "thinking": "so <|im_end|> it is"}),
    one_row("thinking too long", "too_long", {**row(40), "thinking": LONG}, says="in the thinking"),
    one_row("question too long", "too_long", {**row(40), "question": LONG}, says="in the prompt"),
    one_row("output too long", "too_long", {**row(40), "answer": LONG}, says="in the output"),
    data("half a surrogate pair", "bad_unicode", lines() + json.dumps({**row(40), "thinking": "\ud83d alone"}) + "\n", level="warning", says="mine.jsonl:13"),
    one_talk("tool turn", "tool_turn", messages(("user", "2+2?"), ("tool", "4"), ("assistant", "<think>4</think>4"))),
    one_talk("image", "image_part", messages(("user", [{"type": "image_url", "image_url": "x"}]), ("assistant", "<think>4</think>4"))),
    one_talk("unknown role", "unknown_role", messages(("user", "2+2?"), ("narrator", "hm"), ("assistant", "<think>4</think>4"))),
    one_talk("no turn with loss", "no_loss", {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "<think>4</think>4", "weight": 0}]}),
    one_talk("no assistant", "no_assistant_turn", messages(("user", "2+2?"))),
    one_talk("no user", "no_user_turn", messages(("assistant", "<think>4</think>4"))),
    one_talk("two system prompts", "two_system_prompts", messages(("system", "a"), ("user", "2+2?"), ("assistant", "<think>4</think>4"), system="b")),
    one_talk("two reasonings", "two_reasonings", {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "<think>2 + 2 = 4</think>4", "reasoning_content": "It is four."}]}),
    one_talk("unclosed thinking", "unclosed_thinking", asked("<thinking>2 + 2 = 4\n<output>4</output>")),
    one_talk("misnested tags", "misnested", asked("<thinking>2 + 2 <output>4</thinking></output>")),
    one_talk("no output", "missing_output", asked("<thinking>2 + 2 = 4</thinking>")),
    one_talk("nothing after <think>", "missing_output", asked("<think>2 + 2 = 4</think>")),
    data("unused columns", "unused_columns", lines(rows=[{**r, "license": "x"} for r in ROWS]), level="warning", says="license"),
    one_row("row twice", "exact_duplicates", row(3)),
    data("nearly the same question", "near_duplicates", lines({**row(40), "question": APPLES + " now?"}, {**row(41), "question": APPLES + " then?"}), lines({**row(40), "question": APPLES}), level="warning", says="mine.jsonl:13 and "),
    one_row("two answers", "conflicting_answers", {**row(3), "thinking": "I add: 6 + 14 = 21", "answer": "21"}),
    one_row("answer contradicts solution", "contradicted_answers", {**row(40), "answer": "7"}),
    data("all held-out answers are prose", "prose_answers", lines(rows=[{**r, "answer": PROSE} for r in ROWS]), level="warning", flags={"test_fraction": "0.3"}),
    data("fifteen rows", "few_steps", lines(row(20), row(21), row(22)), lines(rows=SUMS), level="warning", flags={"max_steps": "-1", "num_train_epochs": "2"}, says="100 or more"),
    data("few tokens with loss", "few_supervised_tokens", lines(rows=[{**r, "question": r["question"] + " Mind the dog." * 90} for r in ROWS]), level="warning"),
    data("long chains", "long_chains", lines(rows=[{**r, "thinking": "1 + 1 = 2. " * 400 + r["thinking"]} for r in ROWS]), level="warning", flags={"max_seq_length": "100000"}),
    data("test questions among the rows", "test_overlap", lines({"question": BENCH, "thinking": "7 * 6 = 42", "answer": "42"}), level="warning", flags={"benchmark": "gsm8k", "benchmark_path": "DIR/test.jsonl"}, says="left out"),
    data("test questions that stay", "test_overlap", lines({"question": BENCH, "thinking": "7 * 6 = 42", "answer": "42"}), level="warning", flags={"benchmark": "gsm8k", "benchmark_path": "DIR/test.jsonl", "decontaminate": "false"}, says="they are kept"),
]  # fmt: skip


# Model, template and machine.


def edited(file: str, **changes: Any) -> Callable[[Path], None]:
    """Change values of a JSON file of the model; None removes them."""

    def change(folder: Path) -> None:
        path = folder / file
        tree = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({name: value for name, value in tree.items() if value is not None}))

    return change


def without(*files: str) -> Callable[[Path], None]:
    """Delete files of the model."""

    def change(folder: Path) -> None:
        for file in files:
            (folder / file).unlink()

    return change


def template(text: str) -> Callable[[Path], None]:
    """Replace the chat template."""
    return lambda folder: (folder / "chat_template.jinja").write_text(text) and None


def unchanged(folder: Path) -> None:
    """Change nothing."""


def own_tokens(folder: Path) -> None:
    """Rename ChatML's tokens, so that no training template fits."""
    tokenizer = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(
        tokenizer.replace("<|im_start|>", "<|open|>").replace("<|im_end|>", "<|close|>")
    )
    edited("tokenizer_config.json", eos_token="<|close|>")(folder)


def unknown_template(text: str) -> Callable[[Path], None]:
    """Set a template of a family that none of our training templates fits."""

    def change(folder: Path) -> None:
        own_tokens(folder)
        template(text.replace("<|im_start|>", "<|open|>").replace("<|im_end|>", "<|close|>"))(folder)

    return change


def cut_short(folder: Path) -> None:
    """Truncate the weights, as an interrupted download does."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def no_safetensors(folder: Path) -> None:
    """Replace the weights with a web page."""
    (folder / "model.safetensors").write_text("<html>404</html>")


def one_shard(folder: Path) -> None:
    """Write an index that lists a missing shard."""
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    (folder / "model.safetensors").rename(folder / first)
    listed = {"model.embed_tokens.weight": first, "model.layers.9.x": second}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))


def _llama_tokens(folder: Path) -> None:
    """Replace ChatML's control tokens with those of Llama 3."""
    tokens = {"<|endoftext|>": "<|end_header_id|>", "<|im_start|>": "<|start_header_id|>", "<|im_end|>": "<|eot_id|>"}
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        text = (folder / file).read_text()
        for before, after in tokens.items():
            text = text.replace(before, after)
        (folder / file).write_text(text)


OWN_CHATML = (TINY / "chat_template.jinja").read_text()
HUGE = {"hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 60, "num_attention_heads": 128, "num_key_value_heads": 128, "head_dim": 128}  # fmt: skip
BIG = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 64}  # fmt: skip


def model(
    id_: str, name: str, change: Callable[[Path], None], clean: Callable[[Path], None] = unchanged, **more: Any
) -> Case:
    """A copy of the embedded model with one change."""
    return Case(id_, name, change, clean, file="model", **more)


MODELS = [
    model("no tokenizer", "no_tokenizer", without("tokenizer.json", "tokenizer_config.json")),
    model("broken tokenizer", "no_tokenizer", lambda folder: (folder / "tokenizer.json").write_text("{") and None),
    model("no chat template", "no_chat_template", without("chat_template.jinja"), says="qwen2.5"),
    model("no padding token", "no_padding_token", lambda folder: (edited("tokenizer_config.json", pad_token=None)(folder), (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace("<|endoftext|>", "<|nothing|>")), None)[-1]),
    model("template drops reasoning", "template_breaks_a_rule", unknown_template(OWN_CHATML.replace("message['content']", "message['content'].split('</thinking>')[-1]")), unknown_template(OWN_CHATML), says="thinking"),
    model("template never ends the turn", "template_breaks_a_rule", unknown_template(OWN_CHATML.replace("<|im_end|>", "")), unknown_template(OWN_CHATML)),
    model("prompt is not a prefix", "template_breaks_a_rule", unknown_template(OWN_CHATML.replace("{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>model\\n' }}")), unknown_template(OWN_CHATML)),
    model("template is no Jinja", "template_breaks_a_rule", unknown_template("{% for m in %}"), unknown_template(OWN_CHATML), says="line 1"),
    model("template refuses", "template_breaks_a_rule", unknown_template("{{ raise_exception('never') }}"), unknown_template(OWN_CHATML), says="never"),
    model("template of another family", "template_of_another_family", unchanged, lambda folder: _llama_tokens(folder), flags={"chat_template": "llama3"}, says="<|start_header_id|>"),
    model("no weights", "weights_missing", without("model.safetensors")),
    model("pickled weights alone", "weights_missing", lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin") and None, says="safetensors"),
    model("weights cut short", "damaged_weights", cut_short, says="bytes"),
    model("a page for weights", "damaged_weights", no_safetensors),
    model("a shard that is not there", "shard_missing", one_shard, says="model-00002-of-00002"),
    model("no config.json", "no_model_config", without("config.json")),
    model("broken config.json", "broken_model_config", lambda folder: (folder / "config.json").write_text("{") and None),
    model("an architecture that is not known", "unknown_architecture", edited("config.json", model_type="nonesuch", architectures=["NoneSuch"]), says="nonesuch"),
    model("code of its own", "remote_code", edited("config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}), says="never run"),
    model("not for GGUF", "not_for_gguf", edited("config.json", model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"], rope_parameters=None), flags={"gguf": "q8_0"}),
    model("too little memory", "too_little_memory", edited("config.json", **HUGE), says="GiB"),
    model("tight memory", "tight_memory", edited("config.json", **BIG), level="warning", flags={"full_finetuning": "true", "learning_rate": "5e-5"}),
    model("takes long", "takes_long", edited("config.json", **BIG), level="warning", flags={"max_steps": "5000", "full_finetuning": "true", "learning_rate": "5e-5"}),
]  # fmt: skip

TABLE = [*SETTINGS, *DATA, *MODELS]


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free disk space, which differs between machines, is 4 TiB in these tests."""
    monkeypatch.setattr(setup, "free_space", lambda path: (path, 1 << 42))


def _set_up(folder: Path) -> None:
    (folder / "test.jsonl").write_text(json.dumps({"question": BENCH, "answer": "7 * 6 = 42\n#### 42"}) + "\n")


@pytest.mark.parametrize("case", TABLE, ids=[case.id for case in TABLE])
def test_each_fault_is_reported_by_name_and_the_same_file_without_it_is_clean(case: Case, tmp_path: Path) -> None:
    folders = tmp_path / "faulty", tmp_path / "clean"
    for folder in folders:
        folder.mkdir()
        _set_up(folder)
    faulty, clean = case.findings(case.faulty, folders[0]), case.findings(case.clean, folders[1])
    named = [finding for finding in faulty if finding.name == case.name]
    assert named, [(finding.name, finding.message) for finding in faulty]
    assert {finding.level for finding in named} == {case.level}
    text = "\n".join(f"{finding.where}: {finding.message} {finding.hint}" for finding in named)
    assert case.says in text
    others = {finding.name for finding in checks.faults(faulty)} - {case.name}
    assert not others, [(finding.name, finding.message) for finding in checks.faults(faulty)]
    assert all(finding.hint for finding in named), named
    assert case.name not in {finding.name for finding in clean}
    assert not checks.faults(clean), [(finding.name, finding.message) for finding in checks.faults(clean)]


def names(findings: list[Finding]) -> set[str]:
    """Names of the faults."""
    return {finding.name for finding in checks.faults(findings)}


def test_the_table_covers_at_least_seventy_kinds_of_fault() -> None:
    assert len({case.id for case in TABLE}) == len(TABLE)
    assert len({case.name for case in TABLE}) >= 70


def test_faults_of_settings_data_and_model_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(lines(messages(("user", "2+2?")), rows=TALKS) + "{broken\n")
    shutil.copytree(TINY, tmp_path / "model")
    cut_short(tmp_path / "model")
    (tmp_path / "config.yaml").write_text(
        f"model: {{model_name_or_path: {tmp_path / 'model'}, dtype: float8}}\n"
        f"lora: {{rnak: 8, target_modules: [query]}}\n"
        f"data: {{dataset: {tmp_path / 'mine.jsonl'}}}\n"
        f"train: {{seed: many, lora_r: 8}}\n"
        f"trian: {{seed: 1}}\n"
    )
    findings = checks.check_target(str(tmp_path / "config.yaml"), {"save_steps": "0"})
    assert names(findings) == {
        "unknown_setting", "unknown_section", "misplaced_setting", "wrong_type", "wrong_choice", "out_of_range",
        "damaged_weights", "no_such_module",
    }  # fmt: skip
    assert {"broken_json", "no_assistant_turn", "few_steps"} <= {f.name for f in findings if f.level == "warning"}
    levels = [finding.level for finding in findings]
    assert levels == sorted(levels, key=["fault", "warning", "note"].index)


def test_data_are_checked_even_if_the_model_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(lines(row(3), {**row(40), "license": "x"}) + "{broken\n")
    findings = checks.check_target(str(tmp_path / "mine.jsonl"), {"model_name_or_path": "nowhere/at-all"})
    assert names(findings) == {"no_tokenizer"}
    assert {"broken_json", "exact_duplicates", "unused_columns"} <= {finding.name for finding in findings}


def test_a_run_folder_that_cannot_be_used_is_a_fault(tmp_path: Path) -> None:
    taken, full, fresh, file = (tmp_path / name for name in ("taken", "full", "fresh", "file"))
    taken.mkdir()
    (taken / "config.yaml").write_text("{}")
    full.mkdir()
    (full / "thesis.docx").write_text("")
    file.write_text("")
    expected = {taken: "run_folder_taken", full: "run_folder_not_empty", file: "run_folder_is_a_file", fresh: None}
    for path, name in expected.items():
        findings = checks.check_target(None, {**SMALL, "run_dir": str(path)})
        assert names(findings) == ({name} if name else set()), path
    assert not fresh.exists()


@pytest.mark.parametrize("name", ["runs/none", "nowhere/at/all"])
def test_a_start_that_does_not_exist_is_a_fault_that_says_what_can_be_named(name: str, tmp_path: Path) -> None:
    """A relative path looks like a hub id; the hint was the page about data."""
    config = settings.load(None, {"init_adapter": name, "run_dir": str(tmp_path / "run")})
    (fault,) = setup.check_model_files(config)
    assert (fault.level, fault.where) == ("fault", name)
    assert fault.hint == "name a run, the folder of an adapter, or a hub id"


def test_too_little_disk_space_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, expected in ((2**20, {"too_little_disk"}), (2**40, set())):
        monkeypatch.setattr("cot_unsloth.training.checks.setup.free_space", lambda path, free=free: (path, free))
        assert names(checks.check_target(None, dict(SMALL))) == expected


def test_without_llama_cpp_an_export_cannot_be_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no_llama_cpp" not in names(checks.check_target(None, {**SMALL, "gguf": "q8_0"}))
    installed = registry.installed
    monkeypatch.setattr(registry, "installed", lambda name: name != "xllamacpp" and installed(name))
    assert names(checks.check_target(None, {**SMALL, "gguf": "q8_0"})) == {"no_llama_cpp"}
    findings = checks.check_target(None, {**SMALL, "gguf": "q8_0", "allow_unverified": True})
    assert [finding.level for finding in findings if finding.name == "no_llama_cpp"] == ["warning"]


def test_the_demo_has_no_faults_or_warnings() -> None:
    findings = checks.check_target(None, {})
    assert [finding.name for finding in findings if finding.level != "note"] == []


def test_the_example_data_have_no_fault_and_are_reported_as_small() -> None:
    findings = checks.check_target(str(ROOT / "examples" / "own_data.jsonl"), {})
    assert {finding.name for finding in findings if finding.level != "note"} == {"few_steps", "few_problems"}


@pytest.mark.parametrize(
    "file",
    sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "examples" / "applications").glob("*/[!t]*.yaml")]),
    ids=lambda file: f"{file.parent.name}/{file.stem}",
)
def test_the_shipped_configs_have_no_fault(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their models and data are on the hub, so the embedded model and a small data set are used instead.

    A second stage needs the adapter and the pass rates of the first, which are not here.
    """
    installed = registry.installed
    monkeypatch.setattr(registry, "installed", lambda name: name == "bitsandbytes" or installed(name))
    (tmp_path / "mine.jsonl").write_text(lines(rows=SUMS))
    here = {"dataset": str(tmp_path / "mine.jsonl"), "benchmark": "none", "init_adapter": "none", "pass_rates": "none"}
    findings = checks.check_target(str(file), {"model_name_or_path": "tiny-base", **here})
    assert names(findings) <= {"base_in_few_bits"}, [(f.name, f.message) for f in checks.faults(findings)]


def test_gsm8k_has_no_fault(published_data: Path, own_data: Path, tmp_path: Path) -> None:
    text = (published_data / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:600]
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(text) + "\n", encoding="utf-8")
    flags = {"model_name_or_path": "tiny-base", "num_train_epochs": "1"}
    findings = checks.check_target(str(tmp_path / "gsm8k.jsonl"), flags)
    assert names(findings) == set()
    # Line 357 computes 64 and answers 66: GSM8K has about ten such rows. Line 7 of our own rows answers 231 for 229.
    wrong = "7" if published_data == own_data else "357"
    assert [f.where.rpartition(":")[2] for f in findings if f.name == "contradicted_answers"] == [wrong]
    false_alarms = {"near_duplicates", "conflicting_answers", "prose_answers", "unused_columns"}
    assert not false_alarms & {finding.name for finding in findings}


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("120 / 1.5 = 80, and 80 * 1.5 = 120.", None),
        ("So 3 + 4 = 80.", False),
        ("So 3 + 4 = 81.", True),
        ("The answer is 79", True),
        ("It is $80.", None),
    ],
)
def test_an_answer_is_compared_with_the_result_of_the_last_line(last: str, expected: bool | None) -> None:
    from cot_unsloth.core.types import Example, Part, Trace
    from cot_unsloth.data.checks import conclusion

    example = Example(id="x", question="q", trace=Trace((Part("think", last),), "80"), answer="80", where="f:1")
    assert bool(conclusion(example).differs) == bool(expected)


# The command line.


def test_check_exits_with_2_on_a_fault_and_fits_80_columns(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(lines(row(3)) + "{broken\n")
    args = ("check", "mine.jsonl", "--lora-alpha", "4096", "--target-modules", "query")
    done = forked("cot_unsloth", *args, at=tmp_path, COLUMNS="80")
    assert done.returncode == 2, done.stderr
    assert done.stdout.rstrip().splitlines()[-1].startswith("1 fault, ")
    assert done.stdout.startswith("FAULT   no_such_module\n")
    assert "warning broken_json\n        mine.jsonl:14: " in done.stdout
    assert "hint: " in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not [line for line in done.stdout.splitlines() if line != line.rstrip()]
    assert "FAULT" not in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]


def test_check_exits_with_0_if_there_are_only_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.jsonl").write_text(lines(row(3)) + "{broken\n")
    assert run_cli("check", str(tmp_path / "mine.jsonl")) == 0
    output = capsys.readouterr()
    assert output.out.rstrip().splitlines()[-1] == "0 faults, 4 warnings"
    assert "\x1b" not in output.out


def test_check_exits_with_2_if_the_config_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("check", str(tmp_path / "none.yaml")) == 2
    assert "config_missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("no_such_module", ["--target-modules", "query"]),
        ("damaged_weights", ["--model-name-or-path", "DIR/model"]),
        ("too_little_memory", ["--model-name-or-path", "DIR/huge"]),
        ("no_such_column", ["--question-column", "text"]),
    ],
)
def test_train_runs_the_checks_first_and_writes_nothing_on_a_fault(
    name: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.jsonl").write_text(lines())
    for folder, change in (("model", cut_short), ("huge", edited("config.json", **HUGE))):
        shutil.copytree(TINY, tmp_path / folder)
        change(tmp_path / folder)
    given = [flag.replace("DIR", str(tmp_path)) for flag in flags]
    run = tmp_path / "run"
    assert run_cli("train", "--dataset", str(tmp_path / "mine.jsonl"), "--run-dir", str(run), *given) == 2
    output = capsys.readouterr()
    findings = checks.check_target(str(tmp_path / "mine.jsonl"), _flags(given))
    assert names(findings) == {name}
    assert checks.faults(findings)[0].message.split(" (")[0] in output.err
    assert "Traceback" not in output.err
    assert not run.exists()


def _flags(given: list[str]) -> dict[str, str]:
    return {
        flag.removeprefix("--").replace("-", "_"): value for flag, value in zip(given[::2], given[1::2], strict=True)
    }


def test_train_prints_the_warnings_of_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.jsonl").write_text(lines(row(3)))
    given = {"dataset": str(tmp_path / "mine.jsonl"), "lora_alpha": "4096", "target_modules": "query"}
    flags = [part for leaf, value in given.items() for part in ("--" + leaf.replace("_", "-"), value)]
    assert run_cli("train", "--run-dir", str(tmp_path / "run"), *flags) == 2
    output = capsys.readouterr().err
    warned = {f.name for f in checks.check_target(None, given) if f.level == "warning"} - {"few_steps"}
    assert {"unusual_alpha", "exact_duplicates"} <= warned
    for name in warned:
        assert f"warning, {name}: " in output


def test_check_loads_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda *args, **more: pytest.fail("weights were loaded"))
    prepared = preparation.prepare(settings.load(None, dict(SMALL)))
    assert checks.check_target(None, dict(SMALL))
    assert prepared.samples


def findings_by_name(path: Path, **flags: str) -> dict[str, Finding]:
    """The findings about a data set, by name."""
    return {finding.name: finding for finding in checks.check_target(str(path), flags)}


def test_system_prompts_in_the_data_are_reported_with_what_chat_and_export_use(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(lines(rows=[{**r, "system": "Be brief."} for r in ROWS]))
    named = findings_by_name(tmp_path / "mine.jsonl")["own_system_prompts"]
    assert "have their own system prompt" in named.message
    assert "--system-prompt 'Be brief.'" in named.hint
    (tmp_path / "other.jsonl").write_text(lines(rows=ROWS))
    assert "own_system_prompts" not in findings_by_name(tmp_path / "other.jsonl")


def test_a_long_system_prompt_is_not_shown_as_a_flag_that_is_cut_off(tmp_path: Path) -> None:
    """`--system-prompt 'Your role as an assi'…`, typed as it was shown, trained with half a prompt."""
    for prompt in ("Be brief. " * 20, "Be brief.\nBe right."):
        (tmp_path / "mine.jsonl").write_text(lines(rows=[{**r, "system": prompt} for r in ROWS]))
        hint = findings_by_name(tmp_path / "mine.jsonl")["own_system_prompts"].hint
        assert "--system-prompt" not in hint
        assert "data.system_prompt in a settings file" in hint


def test_unused_columns_that_are_not_listed_are_counted(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(lines(rows=[{**r, **{f"x{i}": "y" for i in range(10)}} for r in ROWS]))
    message = findings_by_name(tmp_path / "mine.jsonl")["unused_columns"].message
    assert message.startswith("10 columns hold data but are not used: x0, ")
    assert message.endswith("x7 and 2 more")


def test_an_empty_column_name_takes_back_that_of_a_settings_file(tmp_path: Path) -> None:
    """A run with column names could not be scored on a file with other columns: '' was looked for as a name."""
    (tmp_path / "mine.jsonl").write_text(lines(rows=ROWS))
    hint = findings_by_name(tmp_path / "mine.jsonl", question_column="Frage")["no_such_column"].hint
    assert "to have columns recognized instead: --question-column ''" in hint
    assert "no_such_column" not in findings_by_name(tmp_path / "mine.jsonl", question_column="")


def test_rows_that_call_tools_are_rejected_with_what_to_do(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "tool", "content": "4"}]}]
    (tmp_path / "mine.jsonl").write_text(lines(rows=rows))
    assert "leave such conversations out" in findings_by_name(tmp_path / "mine.jsonl")["all_rows_rejected"].hint


def test_answers_with_a_decimal_comma_are_reported_as_compared_by_their_text(tmp_path: Path) -> None:
    """They were called "not numbers", and nothing said that 187 is then wrong where the answer is 187,00."""
    rows = [{**r, "thinking": f"{i} + 0,50 = {i},50", "answer": f"{i},50"} for i, r in enumerate(ROWS)]
    (tmp_path / "mine.jsonl").write_text(lines(rows=rows))
    message = findings_by_name(tmp_path / "mine.jsonl")["answers_follow"].message
    assert "answers have a decimal comma, so only the same text counts as right" in message
    assert "not numbers" not in message


def test_a_data_set_too_small_to_score_is_reported(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(lines(rows=ROWS[:1]))
    assert findings_by_name(tmp_path / "one.jsonl")["nothing_scored"].where == "data.test_fraction"


def test_the_number_of_answers_that_could_be_checked_is_reported(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(lines(rows=ROWS))
    assert re.search(
        r"\d+ of \d+ rows could be checked: each solution ends in its answer",
        findings_by_name(tmp_path / "mine.jsonl")["answers_follow"].message,
    )


@pytest.mark.parametrize(
    ("thinking", "answer", "contradicted"),
    [
        ("626 times 5 is 3130.", "123456", True),
        ("626 times 5 is 3130.", "3130", False),
        ("I add 3 and 4.\nThat makes 7 apples", "8", True),
        ("I add 3 and 4, 7 in all.\nNow I check it 2 times", "7", False),
        ("120 / 1.5 = 80, and 80 * 1.5 = 120", "80", False),
        ("It costs 250 cents = 250", "2.5", False),
        ("10 / 3 = 3.33", "3", False),
        ("It is a matter of taste", "7", None),
    ],
)
def test_reasoning_that_contradicts_its_answer_is_detected(
    thinking: str, answer: str, contradicted: bool | None
) -> None:
    example = Example("e", "how many?", Trace((Part("think", thinking),), answer), answer)
    assert (check_rows.conclusion(example).differs or False) is (contradicted or False)


@pytest.mark.parametrize(
    ("output", "answer", "contradicted"),
    [
        ("It is \\boxed{7}.", "8", True),
        ("7", "8", True),
        ("B", "(A)", True),
        ("It is \\boxed{7}.", "7.0", False),
        ("(A)", "A", False),
        ("Paris", "London", False),
        ("It is 7, which we know from 8.", "8", False),
    ],
)
def test_an_output_that_is_not_the_gold_answer_is_detected(output: str, answer: str, contradicted: bool) -> None:
    """A model's wrong response: its reasoning, which mentions the gold answer, does not show it."""
    example = Example("e", "?", Trace((Part("think", "We look at 7 and 8 and all of A and B again"),), output), answer)
    assert bool(check_rows.conclusion(example).differs) is contradicted


def test_answers_that_contradict_are_shown_with_what_their_solutions_end_in() -> None:
    wrong = [
        Example(f"e{n}", "how many?", Trace((Part("think", f"Together = {n + 50}"),), str(n)), str(n), where=f"f:{n}")
        for n in range(1, 6)
    ]
    (finding,) = check_rows.contradictions(wrong[:1])
    assert finding.message.endswith(
        "could be checked ends in another number or letter than the answer: f:1 ends in 51, answer 1"
    )
    (finding,) = check_rows.contradictions(wrong)
    assert finding.message.startswith("5 rows of 5 ")
    assert finding.message.endswith(": f:1 ends in 51, answer 1; f:2 ends in 52, answer 2; f:3 ends in 53, answer 3")
    assert finding.where == "f:1, f:2, f:3 and 2 more"


def test_why_no_answer_could_be_checked_is_said() -> None:
    def says(*rows: tuple[str, str]) -> str:
        examples = [
            Example("e", "how many?", Trace((Part("think", text),) if text else (), answer), answer, where="f:1")
            for text, answer in rows
        ]
        (finding,) = check_rows.contradictions(examples)
        assert finding.name == "answers_follow"
        return finding.message

    assert says(("5 is big.", "yes"), ("1 is not.", "no")) == "0 of 2 rows could be checked: 2 answers are not numbers"
    assert says(("It is so.", "7")) == "0 of 1 row could be checked: 1 solution ends in no number"
    assert says(("3 + 4 = 7", "7"), ("", "7"), ("7, of 2 checks", "7")) == (
        "1 of 3 rows could be checked: each solution ends in its answer; not checked: 1 row has no solution, "
        "1 solution states its answer before another number"
    )
    assert says(("3 + 4 = 7", "7")).endswith("each solution ends in its answer")


def test_shared_words_are_counted_only_where_rows_are_left_out_for_them() -> None:
    found = Contamination(training_rows=20, exact=1, ngram_13=8, ngram_8=9, dropped=1)
    (held_out,) = check_rows.overlap(found, by_words=False)
    assert held_out.message == "1 training row asks a test question: 1 is left out of training"
    (benchmark,) = check_rows.overlap(found, by_words=True)
    assert "8 share 13 words in a row with one" in benchmark.message


def test_two_causes_of_the_same_reason_are_both_reported(tmp_path: Path) -> None:
    bad = ["{broken\n", '{"question": 7\n']
    (tmp_path / "mine.jsonl").write_text(lines(rows=ROWS) + "".join(bad))
    named = findings_by_name(tmp_path / "mine.jsonl")["broken_json"]
    assert named.where.startswith(str(tmp_path / "mine.jsonl") + f":{len(ROWS) + 1}")
    assert f":{len(ROWS) + 2}: " in named.message


def test_a_run_that_cannot_begin_is_not_told_its_memory(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"frage": "1 + 1?", "antwort": "2"}\n')
    findings = findings_by_name(tmp_path / "mine.jsonl")
    assert findings["unknown_layout"].level == "fault"
    assert not {"memory", "time", "disk"} & findings.keys()


def test_a_missing_path_is_not_looked_up_on_the_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("inspect", "check"):
        assert run_cli(verb, str(tmp_path / "nope")) == 2
        assert "there is no such file or folder" in capsys.readouterr().err


def test_check_downloads_no_weights_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` loads no weights; what an export requires of them is checked when `train` has loaded them."""
    config = settings.load_tree({}, {"model_name_or_path": "me/model-3B", "gguf": "q8_0"})
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *args, **kwargs: pytest.fail("weights were fetched")
    )
    prepared = preparation.prepare(settings.load_tree({}, {"world_samples": "8", "eval_samples": "2"}))
    assert not checks.faults([*setup.check_model_files(config), *setup.exports(config, prepared)])
