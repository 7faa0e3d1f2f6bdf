"""What is wrong, or worth knowing, before a run: every finding at once, without loading weights.

Owns the findings and their names (`finding`), what is looked for in data (`rows`), in settings, template and machine
(`setup`), and the order they are looked for in (`examine`). `check` prints them; `train` runs the same before it
begins.
"""

from cot_unsloth.core.findings import Finding, faults, summary
from cot_unsloth.training.checks.examine import examine, of_prepared
from cot_unsloth.training.checks.setup import machine, model_files

__all__ = ["Finding", "examine", "faults", "machine", "model_files", "of_prepared", "summary"]
