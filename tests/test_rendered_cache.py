"""The cache of rendered rows: rendered once, the same afterwards, and never a reason for a run to fail."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cot_unsloth import config as settings
from cot_unsloth import tasks
from cot_unsloth.config import DataConfig, ModelConfig
from cot_unsloth.core.types import Example, Message
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.render import Rendered, Renderer
from cot_unsloth.storage import cache
from cot_unsloth.training import checks, preparation, rendered_cache, run_record
from tests.helpers import count_calls

ROWS = 12


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, used from the first row on."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(rendered_cache, "FEWEST_ROWS", 1)
    return tmp_path / "cache" / rendered_cache.KIND


def rows() -> list[Example]:
    made = list(tasks.generate("world:chains:2-4", split="train", n=ROWS, seed=1, error_rate=0.5))
    made[3] = replace(made[3], question="<|im_end|>")
    return made


def renderer(model: ModelConfig | None = None, **data: Any) -> Renderer:
    return open_renderer(model or ModelConfig(), DataConfig(**data))


def render(made: list[Example] | None = None, **data: Any) -> tuple[Rendered, list[int]]:
    advanced: list[int] = []
    return rendered_cache.rendered(renderer(**data), made or rows(), advanced.append), advanced


def assert_same(one: Rendered, other: Rendered) -> None:
    assert list(one.samples) == list(other.samples)
    assert (one.kept, one.rejects) == (other.kept, other.rejects)


def test_what_is_kept_is_what_was_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    direct = renderer().samples(rows())
    first, advanced = render()
    assert (len(first.samples), len(first.rejects), sum(advanced)) == (ROWS - 1, 1, ROWS)
    calls = count_calls(monkeypatch, Renderer, "samples")
    second, advanced = render()
    assert (calls, sum(advanced)) == ([], ROWS)
    assert_same(first, direct)
    assert_same(second, direct)


def test_check_train_and_resume_render_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch, Renderer, "samples")
    data = tmp_path / "rows.jsonl"
    lines = [{"question": f"{n} + 1?", "reasoning": f"{n} + 1 = {n + 1}", "answer": f"{n + 1}"} for n in range(ROWS)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = {"dataset": str(data), "eval_samples": "2"}
    checks.check_target(None, flags)
    assert len(calls) == 2  # the rows to train on, and those held out
    train = preparation.prepare(settings.load(None, flags))
    template = tmp_path / "template.jinja"
    template.write_text(train.renderer.chat.tokenizer.chat_template)
    resumed = preparation.prepare(settings.load(None, flags), run_template=template)
    assert list(resumed.samples) == list(train.samples)
    assert len(calls) == 2


HISTORY: tuple[Message, ...] = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


@pytest.mark.parametrize(
    "change",
    [
        {"system": "Think."}, {"question": "1 + 1?"}, {"where": "x:1"}, {"id": "x"}, {"history": HISTORY},
        {"history_loss": (True,)}, {"trace": replace(rows()[0].trace, output="x")},
    ],
)  # fmt: skip
def test_another_row_is_another_entry(change: dict[str, Any]) -> None:
    key = rendered_cache._key
    made = rows()
    assert key(renderer(), made) == key(renderer(), rows())
    assert key(renderer(), [replace(made[0], **change), *made[1:]]) != key(renderer(), made)


def test_another_setting_template_stop_token_or_version_is_another_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    made = rows()
    first = renderer()
    keys = [rendered_cache._key(first, made)]
    for data in ({"max_seq_length": 100}, {"loss_on": "all"}, {"mask_wrong_steps": False}, {"system_prompt": ""}):
        keys.append(rendered_cache._key(renderer(**data), made))  # type: ignore[arg-type]
    keys.append(rendered_cache._key(renderer(ModelConfig(date_string="1 Jan 2000")), made))
    first.chat.use(str(first.chat.tokenizer.chat_template) + " ")
    keys.append(rendered_cache._key(first, made))
    first.chat.stops |= {5}
    keys.append(rendered_cache._key(first, made))
    first.chat.tokenizer.backend_tokenizer.add_tokens(["another"])
    keys.append(rendered_cache._key(first, made))
    monkeypatch.setattr(rendered_cache, "_code", lambda: "changed")
    keys.append(rendered_cache._key(first, made))
    assert len(set(keys)) == len(keys)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def change_a_token(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "change",
    [{"rejected": [2]}, {"rejected": []}, {"rejects": []}, {"rejects": [["too", "short"]]}, {"rejected": None}],
)
def test_facts_that_do_not_fit_the_samples_are_not_believed(change: dict[str, Any], folder: Path) -> None:
    first, _ = render()
    (file,) = folder.glob("*/*.json")
    entry = json.loads(file.read_text())
    file.write_text(json.dumps(entry | {"facts": entry["facts"] | change}))
    assert_same(render()[0], first)


@pytest.mark.parametrize("damage", [truncate, change_a_token, Path.unlink])
@pytest.mark.parametrize("which", ["*/*.arrow", "*/*.json"])
def test_a_damaged_entry_is_made_again(
    damage: Callable[[Path], None], which: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = render()
    direct = list(first.samples)
    del first
    (file,) = folder.glob(which)
    damage(file)
    calls = count_calls(monkeypatch, Renderer, "samples")
    assert list(render()[0].samples) == direct
    assert list(render()[0].samples) == direct
    assert len(calls) == 1


def test_a_folder_that_cannot_be_written_fails_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file"))
    assert len(render()[0].samples) == ROWS - 1


def test_a_full_disk_fails_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cot_unsloth.core.samples import Samples

    def full(batches: Any, path: Path) -> Samples:
        next(iter(batches))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Samples, "written", full)
    assert len(render()[0].samples) == ROWS - 1
    assert not [*folder.glob("*/*")]
    monkeypatch.setattr(cache, "_FREE_BYTES", 2**60)
    assert len(render()[0].samples) == ROWS - 1


@pytest.mark.parametrize("value", ["", "off", "0"])
def test_the_cache_can_be_turned_off(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert len(render()[0].samples) == ROWS - 1
    assert not (tmp_path / "xdg").exists()


def test_few_rows_are_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendered_cache, "FEWEST_ROWS", ROWS + 1)
    render()
    assert not folder.exists()


def test_entries_are_in_the_users_cache_folder_and_only_its_owner_can_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    render()
    (entry,) = (tmp_path / "xdg" / "cot_unsloth" / "rendered").iterdir()
    if os.name != "nt":
        assert entry.stat().st_mode & 0o077 == 0


def test_the_oldest_entries_are_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for length in (1000, 1001, 1002):
        render(max_seq_length=length)
        for path in folder.iterdir():
            os.utime(path, (path.stat().st_mtime - 100,) * 2)
    first_used_again = min(folder.iterdir(), key=lambda path: path.stat().st_mtime)
    render(max_seq_length=1000)
    size = max(cache._size(path) for path in folder.iterdir())
    monkeypatch.setattr(cache, "MOST_BYTES", int(2.5 * size))
    render(max_seq_length=2000)
    left = {path.name for path in folder.iterdir()}
    assert len(left) == 2
    assert first_used_again.name in left


def test_prepared_data_have_the_same_identity_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings.load(None, {"world_samples": "8", "eval_samples": "2"})
    first, second = (run_record.identity(preparation.prepare(config)) for _ in range(2))
    monkeypatch.setenv(cache.VARIABLE, "off")
    assert first == second == run_record.identity(preparation.prepare(config))
