"""`combine`: the result computes the weighted sum of the adapters' changes, or says how far it is from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapter_kinds import make_base
from helpers import run_cli
from models import TINY
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM as Auto

from cot_unsloth.core.errors import ConfigError, ModelError
from cot_unsloth.core.results.combination import read_combination
from cot_unsloth.export.deltas import LowRank
from cot_unsloth.lab import factors
from cot_unsloth.lab.combine import combine
from cot_unsloth.lab.factors import Part, Recipe

IDS = torch.randint(5, 400, (3, 24), generator=torch.Generator().manual_seed(3))
ALL = "all-linear"
PLAIN, WIDE, RS = {"r": 4, "lora_alpha": 8}, {"r": 8, "lora_alpha": 4}, {"r": 6, "lora_alpha": 5, "use_rslora": True}
PATTERNS = {"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3}}
SOME = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}


def base(folder: str | Path = TINY) -> Any:
    return Auto.from_pretrained(folder, dtype=torch.float32).eval()


def adapter(folder: Path, on: str | Path = TINY, seed: int = 0, std: float = 0.03, **settings: Any) -> Path:
    """An adapter with random factors that change the model noticeably."""
    torch.manual_seed(seed)
    settings = {"target_modules": ALL, "task_type": "CAUSAL_LM", **settings}
    changed = peft.get_peft_model(base(on), peft.LoraConfig(**settings))
    for name, parameter in changed.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    changed.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    counter = iter(range(1000))
    return lambda **settings: adapter(tmp_path_factory.mktemp("adapter"), seed=next(counter), **settings)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits  # type: ignore[no-any-return]


def with_sum(folders: list[Path], weights: list[float]) -> Any:
    """The base with PEFT's own change of each adapter added to its weights, times its weight."""
    model = base()
    for folder, weight in zip(folders, weights, strict=True):
        for name, layer in peft.PeftModel.from_pretrained(base(), str(folder)).named_modules():
            if isinstance(layer, peft.tuners.lora.LoraLayer):
                module = model.get_submodule(name.removeprefix("base_model.model."))
                module.weight.data += weight * layer.get_delta_weight("default")
    return model


@pytest.mark.parametrize("method", ["cat", "svd"])
@pytest.mark.parametrize(
    "kinds",
    [[PLAIN, WIDE], [RS, RS], [PLAIN, RS, SOME], [PATTERNS, RS]],
    ids=["ranks", "rslora", "modules", "patterns"],
)
def test_cat_and_svd_at_full_rank_are_the_weighted_sum(
    method: Any, kinds: list[Any], make: Any, tmp_path: Path
) -> None:
    folders, weights = [make(**kind) for kind in kinds], [1.0, -0.5, 2.0][: len(kinds)]
    record = combine(folders, weights, Recipe(method), tmp_path / "sum")
    combined = peft.PeftModel.from_pretrained(base(), str(tmp_path / "sum")).eval()
    expected = logits(with_sum(folders, weights))
    assert (logits(base()) - expected).abs().max() > 0.5
    assert (logits(combined) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert record.relative_error <= record.largest_error < 2e-6
    stored = load_file(tmp_path / "sum" / "adapter_model.safetensors")
    assert {tensor.shape[0] for name, tensor in stored.items() if "lora_A" in name} == {record.rank}
    assert read_combination(tmp_path / "sum") == record


def dense(parts: list[Part]) -> Any:
    return sum(part.factor * part.change.b @ part.change.a for part in parts)


def parts(*ranks: int, rows: int = 40, columns: int = 30) -> list[Part]:
    torch.manual_seed(5)
    return [
        Part(LowRank(torch.randn(r, columns), torch.randn(rows, r), 0.5), w)
        for r, w in zip(ranks, (1.0, -0.7), strict=False)
    ]


def test_svd_of_a_lower_rank_is_the_best_approximation() -> None:
    both = parts(4, 6)
    result = factors.combine(both, Recipe("svd", rank=3), "m")
    u, s, v = torch.linalg.svd(dense(both))
    best = u[:, :3] @ torch.diag(s[:3]) @ v[:3]
    torch.testing.assert_close(result.b @ result.a, best, rtol=1e-4, atol=1e-4)
    error, norm = factors.squared_error(result, both)
    assert error / norm == pytest.approx(float(s[3:].square().sum() / s.square().sum()), rel=1e-4)


def test_the_measured_error_is_that_of_the_change() -> None:
    """PEFT's linear is far from the sum, and its own error would not be seen without measuring it."""
    both = parts(5, 5)
    result = factors.combine(both, Recipe("linear"), "m")
    expected = float((result.b @ result.a - dense(both)).norm() / dense(both).norm())
    error, norm = factors.squared_error(result, both)
    assert (error / norm) ** 0.5 == pytest.approx(expected, rel=1e-5)
    assert expected > 0.5


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_pruning_keeps_the_share_of_each_change_that_is_asked_for(method: Any) -> None:
    (one, other), full = parts(4, 6), 30
    kept = factors.combine([one], Recipe(method, rank=full, density=0.25), "m")
    change = kept.b @ kept.a
    share = (change.abs() > 1e-4).float().mean()
    assert share == pytest.approx(0.25, abs=0.05)
    enlarged = 4 if method.startswith("dare") else 1
    expected = torch.where(change.abs() > 1e-4, enlarged * dense([one]), torch.zeros(()))
    torch.testing.assert_close(change, expected, rtol=1e-3, atol=1e-3)
    both = factors.combine([one, other], Recipe(method, rank=full, density=1.0), "m")
    if "ties" not in method:  # which leaves out numbers of opposite signs
        torch.testing.assert_close(both.b @ both.a, dense([one, other]), rtol=1e-3, atol=1e-3)


def test_what_dare_keeps_depends_on_the_seed_and_the_module_alone() -> None:
    both = parts(4, 6)

    def change(seed: int, module: str) -> torch.Tensor:
        torch.manual_seed(len(module) * seed)
        return factors.combine(both, Recipe("dare_linear", rank=30, seed=seed), module).b  # type: ignore[no-any-return]

    assert torch.equal(change(1, "a"), change(1, "a"))
    assert not torch.equal(change(1, "a"), change(2, "a"))
    assert not torch.equal(change(1, "a"), change(1, "b"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "a bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"embed_tokens"),
    ],
)
def test_what_has_no_weighted_sum_is_refused(settings: Any, message: str, make: Any, tmp_path: Path) -> None:
    on = tmp_path / "biased"
    make_base(on, tied=False)
    plain, other = adapter(tmp_path / "1", on, **PLAIN), adapter(tmp_path / "2", on, **{**PLAIN, **settings})
    with pytest.raises(ModelError, match=message):
        combine([plain, other], [1, 1], Recipe("cat"), tmp_path / "sum")
    assert not (tmp_path / "sum").exists()


def test_adapters_of_other_bases_are_refused_and_copies_of_one_base_are_not(make: Any, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("copy", 0), ("b", 1)):
        make_base(tmp_path / name, tied=True, seed=seed)
    of_a, of_copy, of_b = (adapter(tmp_path / f"of-{name}", tmp_path / name, **PLAIN) for name in ("a", "copy", "b"))
    combine([of_a, of_copy], [1, 1], Recipe("cat"), tmp_path / "sum")
    for other in (of_b, make(**PLAIN)):
        with pytest.raises(ModelError, match="is an adapter of"):
            combine([of_a, other], [1, 1], Recipe("cat"), tmp_path / "other")


def test_linear_refuses_other_ranks_and_modules(make: Any, tmp_path: Path) -> None:
    for other in (WIDE, SOME):
        with pytest.raises(ModelError, match="linear needs equal ranks"):
            combine([make(**PLAIN), make(**other)], [1, 1], Recipe("linear"), tmp_path / "sum")


def test_adapters_that_cancel_out_and_folders_that_exist_are_refused(make: Any, tmp_path: Path) -> None:
    one = make(**PLAIN)
    with pytest.raises(ModelError, match="the weighted sum is zero"):
        combine([one, one], [1, -1], Recipe("cat"), tmp_path / "sum")
    assert not (tmp_path / "sum").exists()
    with pytest.raises(ConfigError, match="already exists"):
        combine([one, one], [1, 1], Recipe("cat"), one)


def test_the_commands_take_a_combined_adapter(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is scored, continued and exported to a GGUF that verifies, like any adapter."""
    out = tmp_path / "sum"
    assert run_cli("combine", str(make(**PLAIN)), str(make(**RS)), "--weights", "0.3,0.3", "--out", str(out)) == 0
    assert "error against the weighted sum" in capsys.readouterr().out
    few = ("--dataset", "world:words", "--eval-samples", "4", "--max-new-tokens", "8")
    assert run_cli("evaluate", "--adapter", str(out), *few, "--arms", "tuned", "--out", str(tmp_path / "s")) == 0
    assert run_cli("export", "--adapter", str(out), "--gguf", "f16", "--lora-gguf", "--out", str(tmp_path / "e")) == 0
    assert {file.suffix for file in (tmp_path / "e").glob("*.gguf")} == {".gguf"}
    run = ("--run-dir", str(tmp_path / "run"), "--init-adapter", str(out), "--world-samples", "64", "--max-steps", "2")
    assert run_cli("train", *run, "--eval-samples", "2", "--max-new-tokens", "8") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rank", "4"], ["--density", "0.5"], ["--method", "svd", "--seed", "1"], ["--weights", "1"],
        ["--weights", "1,x"], ["--weights", "1,nan"],
    ],
)  # fmt: skip
def test_options_that_do_not_apply_are_refused(arguments: list[str], make: Any, tmp_path: Path) -> None:
    one = str(make(**PLAIN))
    assert run_cli("combine", one, one, *arguments, "--out", str(tmp_path / "sum")) == 2
