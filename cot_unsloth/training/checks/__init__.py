"""Everything that is wrong, or worth knowing, before a run starts; no weights are loaded.

`examine` runs all checks on the user's target; `setup` checks settings, model and machine; rows are checked in
`data.checks`. `cot-unsloth check` prints the findings, and `train` runs the same checks before it starts.
"""

from cot_unsloth.core.findings import Finding, faults, summary
from cot_unsloth.training.checks.examine import check_prepared, check_target
from cot_unsloth.training.checks.setup import check_machine, check_model_files, forgetting_task, in_short

__all__ = [
    "Finding", "check_machine", "check_model_files", "check_prepared", "check_target", "faults", "forgetting_task", "in_short",
    "summary",
]  # fmt: skip
