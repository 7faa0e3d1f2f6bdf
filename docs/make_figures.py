"""Write the figures of README and docs from the committed results: `python docs/make_figures.py`.

The plots in `docs/images` are drawn from the same results; each carries the hash of the result it was
drawn from, so that a test can tell an old one.

Between `<!-- NAME -->` and `<!-- /NAME -->` nothing is written by hand; a test holds the pages to it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from cot_unsloth.core import trace
from cot_unsloth.core.statistics import wilson
from cot_unsloth.evaluation import curves
from cot_unsloth.tasks import parse_spec

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
IMAGES = ROOT / "docs" / "images"
ARMS = {
    "base_direct": "base, asked directly",
    "base_cot": "base, “think step by step”",
    "base_tags": "base, our system prompt",
    "tuned": "**tuned**",
    "gguf": "the same as a Q8_0 GGUF, in llama.cpp",
}


def _result(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _cell(share: float, ci95: list[float]) -> str:
    return f"{share:.1%} [{100 * ci95[0]:.0f}, {100 * ci95[1]:.0f}]"


def _hardware(found: dict[str, Any]) -> str:
    where = found["environment"]
    versions = ", ".join(f"{name} {where['versions'][name]}" for name in ("torch", "transformers", "trl"))
    return f"{where['cpu_count']} cores of an {where['cpu']} ({versions})"


def _best_base(run: dict[str, Any]) -> str:
    """The base arm with most right answers."""
    return max((arm for arm in run["arms"] if arm.startswith("base_")), key=lambda arm: run["arms"][arm]["accuracy"])


def _families(run: dict[str, Any]) -> list[str]:
    """The heads of the columns that `_accuracies` fills."""
    steps = {f.world.name: "–".join(map(str, sorted(set(f.steps)))) for f in parse_spec(run["dataset"])}
    tasks = [f"{task}, {steps[task]} steps" for task in run["arms"]["tuned"]["by_task"]]
    return ["all", *tasks]


def _accuracies(found: dict[str, Any]) -> list[str]:
    """One arm over all and by family."""
    return [_cell(cell["accuracy"], cell["ci95"]) for cell in (found, *found["by_task"].values())]


def _first_try(found: dict[str, Any]) -> str:
    """One arm's countdown problems that were right without a retry."""
    first = found["by_task"]["countdown"]["first_try"]
    return _cell(first["accuracy"], first["ci95"])


def _format(found: dict[str, Any]) -> str:
    return f"{found['format_valid']:.1%}"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))


def _settings(run: dict[str, Any]) -> str:
    each = min(family["n"] for family in run["arms"]["tuned"]["by_task"].values())
    return (
        f"n = {run['n']} held-out problems a row ({each} a family), greedy, at most {run['decoding']['max_new_tokens']} "
        "new tokens, Wilson's 95% intervals"
    )


def demo() -> str:
    """The table of `make demo`, and how long it took."""
    found = _result("demo.json")
    first, *others = found["runs"]
    arms = first["arms"]
    rows = [[label, *_accuracies(arms[arm]), _format(arms[arm])] for arm, label in ARMS.items()]
    pair = next(pair for pair in first["paired"] if pair["before"] == _best_base(first))
    more = " and ".join(f"{run['arms']['tuned']['accuracy']:.1%}" for run in others)
    plain = found["make_demo"]
    return "\n".join(
        [
            _table(["arm", *_families(first), "format valid"], rows),
            "",
            f"`{first['command']}`:",
            f"{_settings(first)} in brackets.",
            f"Against the best base arm {pair['gained']} problems gained, {pair['lost']} lost, exact McNemar "
            f"p = {pair['mcnemar_p']:.0e}.",
            f"Countdown at the first try, without a retry: {_first_try(arms['tuned'])}.",
            f"Two more runs, with other seeds and other problems: {more}. `make demo` itself scores n = {plain['n']}",
            f"and took {plain['wall_seconds']:.0f} s after installation, {plain['fit_seconds']:.0f} s of them training, "
            f"on {_hardware(found)}.",
        ]
    )


def seeds() -> str:
    """Every run of the demo: its seeds and, where it was measured, another difficulty."""
    found = _result("demo.json")
    parts = []
    harder = [("Harder ones", [found["harder"]])] if "harder" in found else []
    for title, runs in (("The demo's problems", found["runs"]), *harder):
        rows = []
        for run in runs:
            where = f"{run['seed']} / {run['eval_seed']}"
            for name, arm in (("best base arm", _best_base(run)), ("tuned", "tuned")):
                found_arm = run["arms"][arm]
                rows.append([where, name, *_accuracies(found_arm), _first_try(found_arm), _format(found_arm)])
        heads = ["seeds, training / problems", "arm", *_families(runs[0]), "countdown, first try", "format valid"]
        parts += [f"{title} (`{runs[0]['dataset']}`):", "", _table(heads, rows), "", f"{_settings(runs[0])}.", ""]
    return "\n".join([*parts, f"Made by `{found['command']}` on {_hardware(found)}."])


def traces() -> str:
    """Answers of the tuned model, to be read."""
    shown = {task: found for task, found in _result("demo.json")["runs"][0]["shown"].items() if task != "chains"}
    spoilt = _result("recovery.json")["runs"][0]["with reflections"]["shown"]
    thought = [part.text for part in trace.parse(spoilt["text"]).parts if part.kind == "think"]
    numbers = [line.partition(")")[0] for text in thought for line in text.splitlines()]
    steps = ", ".join(f"{numbers[at - 1]})" for at in spoilt["made_wrong"])
    parts = []
    for title, found in (
        *((f"**{task}**", each) for task, each in sorted(shown.items(), reverse=True)),
        (f"**chains**, step {steps} made wrong by us while the model wrote", spoilt),
    ):
        parts += [f"{title}:", "", "```", found["question"], "", *found["text"].splitlines(), "```", ""]
    return "\n".join(parts).rstrip()


def skills() -> str:
    """What the base can do by itself."""
    found = _result("base.json")
    parts = []
    for title, key in (("problem, asked directly", "direct"), ("skill", "skills")):
        rows = [
            [
                name,
                f"{cell['accuracy']:.1%}",
                f"{100 * cell['ci95'][0]:.0f}–{100 * cell['ci95'][1]:.0f}",
                str(cell["n"]),
            ]
            for name, cell in found[key].items()
        ]
        parts += [_table([title, "right", "95%", "n"], rows), ""]
    return "\n".join(
        [f"`{found['command']}` on {_hardware(found)}: greedy, Wilson's 95% intervals.", "", *parts]
    ).rstrip()


def bases() -> str:
    """What was tried for a base; of the shipped one, its recipe and the figures of the demo."""
    made = json.loads((ROOT / "cot_unsloth" / "assets" / "tiny-base" / "pretrain.json").read_text(encoding="utf-8"))
    recipe, arms = made["stages"][0]["recipe"], _result("demo.json")["runs"][0]["arms"]
    shipped = {
        "name": "**shipped**",
        "layers": recipe["num_hidden_layers"],
        "width": recipe["hidden_size"],
        "parameters": made["parameters"],
        "diet": "the same, then more lines of chains; a solution restates its start",
        "tokens": sum(stage["steps"] * stage["recipe"]["tokens_per_step"] for stage in made["stages"]),
        "made_with": "as the two stages, and a third",
        "base_direct": arms["base_direct"],
        "tuned": arms["tuned"],
    }
    rows = [
        [
            base["name"],
            f"{base['layers']} × {base['width']}, {base['parameters'] / 1e6:.2f}M",
            base["diet"],
            f"{base['tokens'] / 1e6:.1f}M",
            base["made_with"],
            *(_cell(base[arm]["accuracy"], base[arm]["ci95"]) for arm in ("base_direct", "tuned")),
        ]
        for base in (*_result("bases.json")["bases"], shipped)
    ]
    return _table(["base", "layers × width", "diet", "tokens", "made with", "asked directly", "tuned"], rows)


def export() -> str:
    """What an export to Q4_K_M costs, ours and the chain that others take, by size."""
    found = _result("export.json")
    rows = []
    for each in found["sizes"].values():
        for name, way in (("ours", each["ours"]), ("peft, llama.cpp", each.get("peer"))):
            if way is None:
                continue
            extra = way["extra_anonymous_mib"]
            memory = f"{extra} MiB beyond what it starts with" if extra else f"{max(way['anonymous_mib'].values())} MiB"
            rows.append([f"{each['parameters'] / 1e9:.2f}B", name, f"{way['seconds']:.0f} s", memory,
                         f"{way['written_over_file']:.2f} × the file"])  # fmt: skip
    heads = ["parameters", "way", "time", "anonymous memory, at most", "written to disk"]
    lines = [
        _table(heads, rows),
        "",
        f"`{found['command']}` on {_hardware(found)}: medians of {found['n']} goes in turn;",
    ]
    if "peer" in next(iter(found["sizes"].values())):
        ratios = [each["ours_over_peer_seconds"] for each in found["sizes"].values()]
        spread = f"{min(r['min'] for r in ratios):.2f} to {max(r['max'] for r in ratios):.2f}"
        lines.append(
            f"ours takes {spread} times as long, go by go. The tensors' types are llama.cpp's own, and of those"
        )
        worst = max(each["agreement"]["largest_ratio_of_rmse"] for each in found["sizes"].values())
        lines.append(f"compared the error is at most {worst:.3f} times that of its quantizer.")
    return "\n".join(lines)


GPU_ROWS = {"gsm8k": "GSM8K's lengths, at most 2,048", "traces": "1,000 to 6,000 tokens, at most 8,192"}


def few_bits() -> str:
    """The demo with its base in fewer bits, and what becomes of it on the base's whole weights."""
    found, rows = _result("bits.json"), []
    names = {"whole": "whole", "8": "8 bits", "4": "4 bits (NF4)"}
    for at, first in enumerate(found["runs"]["whole"]):
        for bits, name in names.items():
            run = found["runs"][bits][at]
            tuned, file = (_cell(run["arms"][arm]["accuracy"], run["arms"][arm]["ci95"]) for arm in ("tuned", "gguf"))
            pair = next(pair for pair in run["paired"] if (pair["before"], pair["after"]) == ("tuned", "gguf"))
            low, high = (100 * bound for bound in pair["ci95"])
            change = f"{100 * pair['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
            rows.append(
                [f"{first['seed']} / {first['eval_seed']}", name, tuned, file, change, _format(run["arms"]["gguf"])]
            )
    heads = ["seeds, training / problems", "weights of the base", "tuned, on these", "exported, on the whole ones",
             "points between", "format valid, exported"]  # fmt: skip
    run = found["runs"]["whole"][0]
    return "\n".join(
        [
            _table(heads, rows),
            "",
            f"The recipe of `make demo` and its model of 2.3M parameters; {_settings(run)}, between by paired bootstrap. "
            "Exported as Q8_0, asked in llama.cpp. What so small a model shows need not hold of a large one.",
            f"Made by `{found['command']}` on {_hardware(found)} ([bits.json](../bench/results/bits.json)).",
        ]
    )


def gpu() -> str:
    """Contenders on one GPU, a row each; what was not measured says so."""
    rows, measured = [], []
    rates: dict[tuple[str, str, str], tuple[float, float]] = {}
    for model in ("llama-3.2-3b", "qwen2.5-7b"):
        for lengths, label in GPU_ROWS.items():
            for contender in ("ours", "ours-unpacked", "unsloth-notebook", "trl"):
                result = _gpu_result(f"train-{model}-{lengths}-{contender}")
                if result is None:
                    rows.append([model, label, contender, *["not measured yet"] * 4])
                    continue
                found, measured = result["found"], [*measured, result]
                rates[model, label, contender] = found["tokens_per_second"], found["peak_memory_gib"]
                used, busy = found.get("model_flop_utilisation"), (found.get("profile") or {}).get("gpu_busy")
                rows.append([model, label, contender, f"{found['tokens_per_second']:,.0f}",
                             f"{found['peak_memory_gib']:.2f} GiB", f"{used:.1%}" if used else "—",
                             f"{busy:.0%}" if busy else "—"])  # fmt: skip
    heads = ["model", "rows", "contender", "real tokens a second", "peak memory", "model-FLOP utilisation", "GPU busy"]
    if not measured:
        return _table(heads, rows)
    ratios = []
    for (model, label, contender), (rate, memory) in rates.items():
        for peer in ("trl", "unsloth-notebook"):
            if contender.startswith("ours") and (model, label, peer) in rates:
                theirs = rates[model, label, peer]
                ratios.append(
                    f"- {model}, {label}: {contender} has {rate / theirs[0]:.1f} times the tokens a second of {peer} "
                    f"at {memory / theirs[1]:.2f} times its memory."
                )
    first = measured[0]["found"]
    cards = sorted({each["gpu"]["name"] for each in measured})
    return "\n".join(
        [
            _table(heads, rows),
            "",
            *ratios,
            "",
            f"On one {', '.join(cards)}, {measured[0]['environment']['cpu_count']} CPU cores, one process a row, "
            f"{first['steps']} timed steps after {len(first['warm_up_seconds'])} of warm-up; GPU busy is the share of "
            f"{first['profile']['steps']} more steps in which a kernel ran. Each file of `bench/results/gpu` holds its "
            "command, versions and kernels by time.",
        ]
    )


def gpu_checks() -> str:
    """What else was run on a GPU: float16, a resume, caps of memory."""
    lines = []
    half, resumed = _gpu_result("fp16-llama-3.2-3b"), _gpu_result("resume-llama-3.2-3b")
    if half is not None:
        losses = half["found"]["losses"]
        finite = "every loss a finite number" if half["found"]["finite"] else "not every loss a finite number"
        lines.append(f"- float16, as a T4 computes, {len(losses)} steps, packed: {finite}.")
    if resumed is not None:
        lines.append(
            f"- Resumed from a checkpoint: losses differ by {resumed['found']['largest_gap']:g} at most from those of the "
            "run that was not interrupted."
        )
    for model in ("llama-3.2-3b", "qwen2.5-7b"):
        for cap in (15, 12, 8):
            result = _gpu_result(f"cap-{model}-{cap}")
            if result is not None:
                fits = result["found"]["longest"]
                peak = result["found"]["tried"][str(fits)]["peak_gib"]
                lines.append(
                    f"- {model} in 4 bits within {cap} GiB, a row at a time: rows of {fits:,} tokens train (the longest "
                    f"tried), with {peak:.1f} GiB reserved."
                )
    return "\n".join(lines)


def real_model() -> str:
    """A real instruct model after a few steps: each exported file against the adapter."""
    found, rows = _result("real.json"), []
    answers = found["answers"]
    for file in dict.fromkeys(check["file"] for check in found["verified"]["checks"]):
        checks = {check["name"]: check for check in found["verified"]["checks"] if check["file"] == file}
        quant = file.rpartition("-")[2].removesuffix(".gguf")
        same = sum(answer[quant] == answer["adapter"] for answer in answers)
        rows.append([
            quant, f"{checks['weights']['relative_rmse']:.3f}", f"{checks['next_token']['same_as_trained']:.0%}",
            f"{checks['kl_to_trained']['mean_nats']:.4f}", f"{checks['greedy']['agreement']:.1%}",
            f"{same} of {len(answers)}",
        ])  # fmt: skip
    heads = ["type", "largest error of a weight's tensor", "next token the adapter's", "KL to the adapter, nats",
             "greedy tokens likeliest by the file's weights", "answers word for word the adapter's"]  # fmt: skip
    manifest = found["manifest"]
    steps, n = found["fit"]["steps"], checks["next_token"]["places"]
    return "\n".join(
        [
            _table(heads, rows),
            "",
            f"SmolLM2-135M-Instruct, unpacked from a Q4_1 file, after {steps} steps on GSM8K; {n} places, all checks passed. "
            f"On {_hardware({'environment': manifest})} ([real.json](../bench/results/real.json), which holds the answers). "
            "So few steps teach next to nothing: this shows that the files are the model, not that it reasons.",
        ]
    )


def verify_memory() -> str:
    """The most memory that an export with its verification takes, by size."""
    found = _result("verify_memory.json")
    kinds = [kind for kind in found["bytes_a_parameter"] if found["bytes_a_parameter"][kind] is not None]
    rows = [
        [f"{each['parameters'] / 1e9:.2f}B", *(f"{each[kind]['anonymous_mib']:,} MiB" for kind in kinds)]
        for each in found["sizes"].values()
    ]
    growth = "; ".join(f"{kind} {found['bytes_a_parameter'][kind]:.2f}" for kind in kinds)
    return "\n".join(
        [
            _table(["parameters", *kinds], rows),
            "",
            f"Growth in bytes a parameter: {growth}. `{found['command']}` on {_hardware(found)}; the most anonymous memory of the "
            "process, mapped weights left out; Llama's shape with random weights and Llama 3.2's vocabulary of 128,256 tokens.",
        ]
    )


def _gpu_result(stage: str) -> dict[str, Any] | None:
    """What a stage of `bench/gpu.py` found; None where it was not run."""
    file = RESULTS / "gpu" / f"{stage}.json"
    found: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    return found


def recovery() -> str:
    """Recovery from injected errors, with and without reflections in the training data."""
    found = _result("recovery.json")
    rows = []
    for arm, label in (("without", "clean steps"), ("with reflections", "steps with mended errors")):
        for run in found["runs"]:
            cells = [
                run[arm]["undisturbed"]["accuracy"],
                run[arm]["injected"]["accuracy"],
                run[arm]["injected"]["mended"],
                run[arm]["undisturbed"]["false_alarms"],
            ]
            rows.append([label, str(run["seed"]), *(_cell(cell["share"], cell["ci95"]) for cell in cells)])
    heads = ["trained on", "seed", "undisturbed", "20% injected", "errors mended", "false alarms"]
    tokens = [run[arm]["tokens"] for run in found["runs"] for arm in ("without", "with reflections")]
    return "\n".join(
        [
            _table(heads, rows),
            "",
            f"`{found['command']}`:",
            f"n = {found['runs'][0]['without']['injected']['n']} held-out chains of 4–8 steps a cell; {min(tokens):,} to",
            f"{max(tokens):,} training tokens, for both arms of a seed the same to within a row; Wilson's 95% intervals;",
            f"on {_hardware(found)}.",
        ]
    )


def test_time() -> str:
    """Countdown: one chain with more tokens, against independent ones."""
    found = _result("evidence.json")["countdown"]
    test = found["test_time"]
    rows = [
        [f"one chain, cut at {row['rung']}", f"{row['tokens']:.0f}", _cell(row["accuracy"], row["ci95"])]
        for row in test["sequential"]
    ]
    control = next(iter(test["parallel"]))
    for row in test["parallel"][control]:
        for kind, name in (("majority", "majority"), ("pass", "any")):
            cell = _cell(row[kind]["accuracy"], row[kind]["ci95"])
            rows.append([f"{name} of {row['k']}, each cut at {control}", f"{row['tokens']:.0f}", cell])
    tries = test["by_tries"]["countdown"]
    rows += [
        [
            f"one chain, right within {row['tries']} {'try' if row['tries'] == 1 else 'tries'}",
            f"{row['tokens']:.0f}",
            _cell(row["accuracy"], row["ci95"]),
        ]
        for row in tries
    ]
    cool = _result("evidence.json")["countdown_cool"]
    gains = [
        100
        * (
            each["test_time"]["by_tries"]["countdown"][-1]["accuracy"]
            - each["test_time"]["by_tries"]["countdown"][0]["accuracy"]
        )
        for each in (found, cool)
    ]
    s1 = test["s1"]
    return "\n".join(
        [
            _table(["how", "tokens an answer", "right"], rows),
            "",
            f"`{found['command']}`:",
            f"n = {found['n']} held-out problems of countdown, seed {found['seed']}, {found['ladder']['samples']} samples of each at "
            f"temperature {found['ladder']['temperature']:g}, all counted; {_hardware(found)}.",
            f"From one try to {tries[-1]['tries']} it gains {gains[0]:.1f} points, and {gains[1]:.1f} at temperature "
            f"{cool['ladder']['temperature']:g} ({cool['ladder']['samples']} samples); the goal was 15. In the terms of s1: control {s1['control']:.0%}, "
            f"scaling {100 * s1['scaling_per_1000_tokens']:+.1f} points a 1,000 tokens, maximum {s1['maximum']:.1%}.",
        ]
    )


def train_time() -> str:
    """All families: accuracy at checkpoints, over the seeds."""
    found = _result("evidence.json")["training"]
    rows = []
    for at, row in enumerate(found["train_time"]["mean"]):
        each = [f"{curve[at]['accuracy']:.1%}" for curve in found["train_time"]["runs"].values()]
        rows.append([str(row["step"]), f"{row['training_tokens']:,.0f}", _cell(row["accuracy"], row["ci95"]), *each])
    seeds = [f"seed {seed}" for seed in found["train_seeds"]]
    return "\n".join(
        [
            _table(["step", "tokens trained on", "mean, Student's 95%", *seeds], rows),
            "",
            f"`{found['command']}`:",
            f"n = {found['n']} held-out problems of `{found['dataset']}`, seed {found['seed']}, greedy; {_hardware(found)}.",
        ]
    )


def reflecting() -> str:
    """Chains: what reflections do, with and without errors put under the model's pen."""
    found = _result("evidence.json")["chains"]
    clean, under = found["as_written"], found["under_errors"]

    def cell(each: dict[str, Any]) -> str:
        return "none to tell" if each["share"] is None else _cell(each["share"], each["ci95"]) + f" of {each['of']}"

    names = {
        ("reflection", "first"): "right at the first answer",
        ("reflection", "final"): "right at the final answer",
        ("reflection", "repair_rate"): "wrong → right",
        ("reflection", "corruption_rate"): "right → wrong",
        ("reflection", "only_confirm"): "reflections that only confirm",
        ("reflection", "alarm_precision"): "reflections that were called for",
        ("reflection", "alarm_recall"): "wrong steps that were heeded",
        ("aims", "decomposition"): "decomposition",
        ("aims", "sequential_reasoning"): "sequential reasoning",
        ("aims", "transparency"): "transparency",
    }
    rows = [[name, cell(clean[table][key]), cell(under[table][key])] for (table, key), name in names.items()]
    rows.append(
        [
            "self-correction, points",
            *(f"{100 * each['aims']['self_correction']['share']:+.1f}" for each in (clean, under)),
        ]
    )
    rows.append(["right in the end", f"{clean['accuracy']:.1%}", cell(under["accuracy"])])
    one = found["one_step_wrong"]
    return "\n".join(
        [
            _table(["", "as the model writes", f"with {found['rate']:.0%} of its steps made wrong"], rows),
            "",
            f"n = {found['n']} held-out chains of 4–8 steps, seed {found['seed']}, greedy, adapter of seed 3407. With *one* step of each "
            f"right answer made wrong afterwards: {cell(one['accuracy'])} are right in the end, {cell(one['heeded'])} heeded at once.",
        ]
    )


def filled(page: str) -> str:
    """A page with its blocks of figures written anew.

    Raises:
        ValueError: a block is not there, or not ended.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in PAGES[page]:
        begin, end = f"<!-- {block.__name__} -->", f"<!-- /{block.__name__} -->"
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise ValueError(f"{page} has no block {begin} … {end}")
        text = f"{before}{begin}\n{block()}\n{end}{after}"
    return text


def pooled(family: str) -> dict[int, dict[str, tuple[int, int]]]:
    """Right answers and problems of each arm by number of steps, over all runs of the demo."""
    found: dict[int, dict[str, tuple[int, int]]] = {}
    for run in _result("demo.json")["runs"]:
        for steps, arms in run["by_length"][family].items():
            for arm, cell in arms.items():
                right, n = found.setdefault(int(steps), {}).get(arm, (0, 0))
                found[int(steps)][arm] = (right + round(cell["accuracy"] * cell["n"]), n + cell["n"])
    return found


def lengths() -> str:
    """What becomes of solutions longer than those trained on."""
    lines = []
    runs = _result("demo.json")["runs"]
    trained = {family.world.name: family.steps for family in parse_spec(runs[0]["dataset"])}
    for family in runs[0]["by_length"]:
        low, high = trained[family]
        rows, fails = [], None
        for steps, arms in pooled(family).items():
            cells = {arm: right / n for arm, (right, n) in arms.items()}
            fails = steps if fails is None and cells["tuned"] < 0.9 else fails
            shown = [_cell(cells[arm], list(wilson(*arms[arm]))) for arm in ("base_direct", "tuned")]
            rows.append([str(steps), *shown])
        says = f"is {fails} steps" if fails else "is longer than any tried"
        lines += [f"**{family}**, trained on {low}–{high} steps:", ""]
        lines += [_table(["steps", "base, asked directly", "tuned"], rows)]
        lines += ["", f"The shortest that it does not solve 9 times in 10 {says}.", ""]
    each = sum(n for arm, (_, n) in next(iter(pooled("chains").values())).items() if arm == "tuned")
    lines.append(f"n = {each} held-out problems a row, over the {len(runs)} seeds of the table above; Wilson's 95%")
    lines.append("intervals, which leave out how training differs from seed to seed.")
    return "\n".join(lines)


def draw_lengths(path: Path) -> None:
    """Accuracy by number of steps, base and tuned, with intervals and the range trained on."""
    plt = _pyplot()
    runs = _result("demo.json")["runs"]
    trained = {family.world.name: family.steps for family in parse_spec(runs[0]["dataset"])}
    families = list(runs[0]["by_length"])
    figure, axes = plt.subplots(1, len(families), figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, family in zip(axes, families, strict=True):
        low, high = trained[family]
        axis.axvspan(low - 0.5, high + 0.5, color="0.93", label="trained on")
        found = pooled(family)
        for arm, label, colour in (("tuned", "tuned", "#0b6e4f"), ("base_direct", "base, asked directly", "#b0413e")):
            _interval_line(axis, list(found), [found[steps][arm] for steps in found], label, colour)
        axis.set(title=family, xlabel="steps of the solution", ylim=(-3, 103), xticks=list(found))
    axes[0].set_ylabel("right answers, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    _save(figure, path, "demo.json")


def draw_recovery(path: Path) -> None:
    """Accuracy undisturbed and under injected errors, by what was trained on, a dot a seed."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    runs = _result("recovery.json")["runs"]
    spots = ("undisturbed", "injected")
    for offset, arm, label, colour in (
        (-0.12, "without", "trained on clean steps", "#b0413e"),
        (0.12, "with reflections", "trained on mended errors, as many tokens", "#0b6e4f"),
    ):
        for at, run in enumerate(runs):
            cells = [run[arm][spot]["accuracy"] for spot in spots]
            places = [i + offset + 0.05 * (at - (len(runs) - 1) / 2) for i in range(len(spots))]
            shares = [(round(cell["share"] * cell["of"]), cell["of"]) for cell in cells]
            _interval_line(axis, places, shares, label if at == 0 else None, colour, joined=False)
    axis.set(ylim=(-3, 103), ylabel="right answers, %", xticks=[0, 1], xlim=(-0.5, 1.5))
    axis.set_xticklabels(["undisturbed", "each step made wrong\nwith a chance of 20%"])
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    _save(figure, path, "recovery.json")


def draw_test_time(path: Path) -> None:
    """Countdown: accuracy against tokens of an answer, one chain and several."""
    curves.draw_test_time(_result("evidence.json")["countdown"], path, source("evidence.json"))


def draw_train_time(path: Path) -> None:
    """All families: accuracy against tokens trained on, each seed and their mean."""
    curves.draw_train_time(_result("evidence.json")["training"], path, source("evidence.json"))


def _interval_line(
    axis: Any, at: list[Any], shares: list[tuple[int, int]], label: str | None, colour: str, joined: bool = True
) -> None:
    middle = [100 * right / n for right, n in shares]
    bounds = [wilson(right, n) for right, n in shares]
    below = [max(0, m - 100 * low) for m, (low, _) in zip(middle, bounds, strict=True)]
    above = [max(0, 100 * high - m) for m, (_, high) in zip(middle, bounds, strict=True)]
    style = "o-" if joined else "o"
    axis.errorbar(at, middle, yerr=(below, above), fmt=style, color=colour, label=label, capsize=3, markersize=4)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["axes.spines.top"] = plt.rcParams["axes.spines.right"] = False
    return plt


def _save(figure: Any, path: Path, result: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Source": source(result)})


def source(result: str) -> str:
    """Which result a plot was drawn from, as it stands in the plot's metadata."""
    return f"{result} {hashlib.sha256((RESULTS / result).read_bytes()).hexdigest()[:16]}"


PAGES = {
    "README.md": (demo, export),
    "docs/evaluation.md": (test_time, train_time, reflecting),
    "docs/demo.md": (seeds, lengths, recovery, traces),
    "docs/bases.md": (bases,),
    "docs/gpu.md": (few_bits, gpu, gpu_checks),
    "docs/export.md": (verify_memory, real_model),
    "cot_unsloth/assets/tiny-base/README.md": (skills,),
}
"""Which figures stand where."""

PLOTS = {
    "lengths.png": (draw_lengths, "demo.json"),
    "recovery.png": (draw_recovery, "recovery.json"),
    "curves-test-time.png": (draw_test_time, "evidence.json"),
    "curves-train-time.png": (draw_train_time, "evidence.json"),
}

if __name__ == "__main__":
    for name, (draw, _) in PLOTS.items():
        draw(IMAGES / name)
    for name in PAGES:
        made = filled(name)
        (ROOT / name).write_text(made, encoding="utf-8")
