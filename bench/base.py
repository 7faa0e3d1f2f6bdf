"""What the embedded base can do without an adapter: `python bench/base.py --out bench/results/base.json`.

Accuracy of direct answers to held-out problems by number of steps, and of the single skills that it was pre-trained on,
with n and Wilson's 95% interval. `python -m scripts.figures` writes its model card from the result.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import pretrain_tiny_base as script

from cot_unsloth import config, tasks
from cot_unsloth.core.statistics import wilson
from cot_unsloth.core.types import SamplingParams
from cot_unsloth.evaluation import score
from cot_unsloth.models.target import Target
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment

STEPS = {"chains": (1, 2, 4, 6, 8), "words": (1, 2, 3, 4, 5), "countdown": (2,)}


def share(right: int, n: int) -> dict[str, Any]:
    """A share with its interval."""
    low, high = wilson(right, n)
    return {"n": n, "accuracy": right / n, "ci95": [round(low, 4), round(high, 4)]}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--texts", type=int, default=1000, help="texts of single skills")
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--model", default=config.TINY_BASE)
    args = parser.parse_args()
    settings = config.load_tree({"model": {"model_name_or_path": args.model}}, {})
    renderer, engine = Target(settings).load()
    sampling = SamplingParams(max_new_tokens=64, batch_size=100)
    direct: dict[str, Any] = {}
    for name, lengths in STEPS.items():
        for steps in lengths:
            # There are too few one-step problems to fill the test split.
            split = "test" if steps > 1 else "train"
            n = args.n if steps > 1 else min(args.n, 100)
            examples = tasks.generate(f"world:{name}:{steps}", split=split, n=n, seed=args.seed)
            completions = engine.generate([renderer.prompt(e, "base_direct") for e in examples], sampling)
            right = sum(score.judge(e, c, tagged=False).correct for e, c in zip(examples, completions, strict=True))
            direct[f"{name}, {steps} steps"] = share(right, n) | {"split": split}
    counts = script.skills(engine.model, renderer.chat.tokenizer, script.texts(args.seed, script.LAST_MIX), args.texts)
    skills = {skill: share(right, n) for skill, (right, n) in counts.items()}
    write_json(
        args.out,
        {
            "command": f"python bench/base.py --n {args.n} --texts {args.texts} --seed {args.seed}",
            "environment": environment().as_json(),
            "decoding": {"temperature": 0, "max_new_tokens": sampling.max_new_tokens},
            "interval": "Wilson, 95%",
            "direct": direct,
            "skills": skills,
        },
    )


if __name__ == "__main__":
    main()
