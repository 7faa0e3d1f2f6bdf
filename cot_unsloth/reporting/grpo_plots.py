"""The plots of a run of reinforcement learning, from the metrics of its steps: rewards, accuracy, signal, entropy, length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cot_unsloth.core.statistics import mean
from cot_unsloth.reporting.plots import Axes, Line, lines

Row = Mapping[str, float | None]
SMOOTHED = 10
"""Steps of the moving mean: a step has about 64 attempts, so its share of right ones is off by 6 points either way."""


def draw(rows: Sequence[Row]) -> dict[str, str]:
    """The plots as SVG by name; none where the rows are not those of reinforcement learning."""
    if not any("reward" in row for row in rows):
        return {}
    parts = [name for name in rows[-1] if name.startswith("rewards/") and name.endswith("/mean")]
    rewards = [
        _line(rows, "reward", "reward, weighted sum"),
        *(_line(rows, name, name.split("/")[1]) for name in parts),
    ]
    shares = [
        _line(rows, "rewards/correct/mean", "attempts that are right"),
        Line("development problems, greedy", list(_points(rows, "development")), dashed=True),
        _line(rows, "frac_reward_zero_std", "groups without signal"),
        _line(rows, "completions/clipped_ratio", "attempts cut off"),
    ]
    spread = [_line(rows, "entropy", "entropy"), _line(rows, "kl", "KL from the start")]
    length = [_line(rows, "completions/mean_length", "tokens of an attempt")]
    step = f"step (mean of {SMOOTHED})"
    return {
        "rewards": lines("rewards of the attempts", rewards, Axes(step, "reward", markers=False)),
        "attempts": lines("attempts by step", shares, Axes(step, "", share=True, markers=False)),
        "entropy": lines("entropy of the attempts", _drawn(spread), Axes(step, "nats a token", markers=False)),
        "attempt length": lines("length of the attempts", length, Axes(step, "tokens", markers=False)),
    }


def _drawn(curves: Sequence[Line]) -> list[Line]:
    return [curve for curve in curves if curve.points]


def _points(rows: Sequence[Row], name: str) -> Iterator[tuple[float, float]]:
    for row in rows:
        value, step = row.get(name), row["step"]
        if value is not None and step is not None:
            yield float(step), float(value)


def _line(rows: Sequence[Row], name: str, label: str) -> Line:
    """The moving mean of a metric."""
    points = list(_points(rows, name))
    smooth = [
        (step, mean([value for _, value in points[max(0, i + 1 - SMOOTHED) : i + 1]]))
        for i, (step, _) in enumerate(points)
    ]
    return Line(label, smooth)
