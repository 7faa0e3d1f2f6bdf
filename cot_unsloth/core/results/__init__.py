"""Results that are written to disk, as documented types: one module, one reader and one writer for each file.

`Scorecard.read(path)` and `scorecard.write(path)`, and likewise for `Curves`, `FitReport`, `TokenAccuracy` and
`Manifest`. No other code indexes these files by key. See `record` for how older and newer files are read.
"""

from cot_unsloth.core.results.curves import Curves
from cot_unsloth.core.results.environment import Commit, Environment
from cot_unsloth.core.results.fit_report import EngineFacts, FitReport
from cot_unsloth.core.results.manifest import EngineChoice, Manifest, Resumption, RowCounts
from cot_unsloth.core.results.record import VERSION
from cot_unsloth.core.results.rounds import PassPoint, RoundResult, Rounds
from cot_unsloth.core.results.scorecard import (
    Aims,
    ArmResult,
    Contamination,
    Decoding,
    Forgetting,
    Gate,
    Outcome,
    Paired,
    Reading,
    Recovery,
    ReflectionMetrics,
    Scorecard,
    Settings,
    StepsResult,
    TaskResult,
    Tone,
    Verdict,
    VerdictKind,
)
from cot_unsloth.core.results.shares import Accuracy, Interval, Share
from cot_unsloth.core.results.token_accuracy import SectionAccuracy, TokenAccuracy

__all__ = [
    "VERSION", "Accuracy", "Aims", "ArmResult", "Commit", "Contamination", "Curves", "Decoding", "EngineChoice", "EngineFacts", "Environment",
    "FitReport", "Forgetting", "Gate", "Interval", "Manifest", "Outcome", "Paired", "PassPoint", "Reading", "Recovery", "ReflectionMetrics",
    "Resumption", "RoundResult", "Rounds", "RowCounts", "Scorecard", "SectionAccuracy", "Settings", "Share", "StepsResult", "TaskResult", "TokenAccuracy", "Tone", "Verdict", "VerdictKind",
]  # fmt: skip
