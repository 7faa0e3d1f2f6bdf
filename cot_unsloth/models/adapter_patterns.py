"""Tests the regular expressions in an adapter's settings in a separate process, before PEFT matches them in this one.

`target_modules` may be a pattern, and so may the keys of `rank_pattern`. Python's `re` takes time exponential in the length of a
name for some patterns, such as `(a+)+$`, and cannot be interrupted; an untrusted adapter may contain one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from cot_unsloth.core.errors import ModelError

SECONDS = 10.0
"""For all patterns and names together, with the start of the process; Unsloth's own pattern takes 30 ms."""
_MOST_CHARACTERS = 10_000
_PLAIN = re.compile(r"[\w.-]*")
_PARTS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.experts.0.down_proj",
)  # fmt: skip
_LAYERS = 100
_TRY = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        continue
    for name in names:
        compiled.fullmatch(name)
        compiled.match(name)
"""


def require_quick(config: Mapping[str, object], folder: Path) -> None:
    """Check that the patterns in an adapter's settings can be matched with the names of modules.

    Raises:
        ModelError: one is absurdly long, or matching takes too long.
    """
    patterns = [pattern for pattern in _patterns(config) if not _PLAIN.fullmatch(pattern)]
    if not patterns:
        return
    where = str(folder / "adapter_config.json")
    if max(map(len, patterns)) > _MOST_CHARACTERS:
        raise ModelError("holds a pattern of more than 10,000 characters", where=where, name="damaged_adapter")
    command = [sys.executable, "-I", "-S", "-c", _TRY]
    try:
        subprocess.run(command, input=json.dumps([patterns, _names()]), text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"its patterns take more than {SECONDS:.0f} s to match: {', '.join(patterns)[:200]}",
            where=where,
            hint="name the modules in target_modules as a list",
            name="damaged_adapter",
        ) from None


def _patterns(config: Mapping[str, object]) -> Iterator[str]:
    """As PEFT puts them together (`check_target_module_exists`, `get_pattern_key`)."""
    for name in ("target_modules", "exclude_modules"):
        value = config.get(name)
        if isinstance(value, str):
            yield value
    layers = config.get("layers_pattern")
    for value in layers if isinstance(layers, list) else [layers]:
        if isinstance(value, str) and not _PLAIN.fullmatch(value):
            yield rf".*\.{value}\.(\d+)\."
    for name in ("rank_pattern", "alpha_pattern"):
        value = config.get(name)
        for key in value if isinstance(value, dict) else ():
            if isinstance(key, str) and not _PLAIN.fullmatch(key):
                yield rf"(.*\.)?({key})$"


def _names() -> list[str]:
    """Names of modules as they are in models: with PEFT's prefix and without."""
    names = [f"model.layers.{layer}.{part}" for layer in range(_LAYERS) for part in _PARTS]
    return [*names, *(f"base_model.model.{name}" for name in names), "model.embed_tokens", "lm_head"]
