"""Look at data and settings before anything is trained: `python examples/06_check.py mine.jsonl`. No weights are loaded."""

from __future__ import annotations

import argparse

from cot_unsloth import CotError, check, dry_run, load_config


def main() -> None:
    """Print what is wrong or worth knowing, then a row as the model would see it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--config", help="such as configs/llama3.2-3b-sft.yaml; without it, the embedded tiny model")
    args = parser.parse_args()
    findings = check(args.config, dataset=args.dataset)
    for finding in findings:
        print(f"{finding.level}: {finding.message}" + (f" ({finding.hint})" if finding.hint else ""))
    if any(finding.level == "fault" for finding in findings):
        raise SystemExit("nothing can be trained until the faults are fixed")
    print(dry_run(load_config(args.config, dataset=args.dataset)))


if __name__ == "__main__":
    try:
        main()
    except CotError as error:
        raise SystemExit(f"error: {error}") from None
