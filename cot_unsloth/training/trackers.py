"""Experiment trackers (`train.report_to`): TensorBoard, Weights & Biases, MLflow and Trackio.

The metrics of training go through the Trainer's own integrations, and the scorecard follows at the end. Everything is written
into `RUN/trackers` and nothing is sent, unless a variable of the tracker's own (WANDB_MODE, MLFLOW_TRACKING_URI, ...) says so.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping

from cot_unsloth.config import RunConfig, TrainConfig
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.results import FitReport, Scorecard
from cot_unsloth.storage.run_folder import RunDir

PROJECT = "cot_unsloth"
FOLDER = "trackers"
_set: dict[str, str] = {}
"""Environment variables set by `use`. The next round of a run replaces them; variables set by the user are kept."""


def check(train: TrainConfig) -> None:
    """Check that the libraries of the trackers are installed.

    Raises:
        ConfigError: one is not.
    """
    missing = [name for name in train.report_to if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            where="train.report_to",
            hint=f"pip install {' '.join(missing)}",
        )


def use(run: RunDir) -> None:
    """Make the trackers write into this run's folder, unless their environment variables say otherwise."""
    folder = (run.path / FOLDER).absolute()
    defaults = {
        "TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard"),
        "WANDB_DIR": str(folder),
        "WANDB_MODE": "offline",
        "WANDB_PROJECT": PROJECT,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_EXPERIMENT_NAME": PROJECT,
        "TRACKIO_DIR": str(folder / "trackio"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in defaults.items():
        if os.environ.get(name, _set.get(name)) == _set.get(name):
            os.environ[name] = _set[name] = value


def arguments(train: TrainConfig, run: RunDir) -> Mapping[str, object]:
    """Fields of the trainer's arguments."""
    if not train.report_to:
        return {"report_to": "none"}
    use(run)
    return {
        "report_to": list(train.report_to),
        "run_name": name_of(run),
        "project": PROJECT,
        "trackio_static_space_id": False,
    }


def name_of(run: RunDir) -> str:
    """The name of a run in a tracker; of a round of rft, that of its run with the round's number."""
    path = run.path.absolute()
    return f"{path.parent.parent.name}-round-{path.name}" if path.parent.name == "rounds" else path.name


def log_scorecard(config: RunConfig, run: RunDir, card: Scorecard) -> None:
    """Log accuracies, their differences and the forgetting figure at the last step."""
    if not config.train.report_to:
        return
    use(run)
    figures, step = figures_of(card), FitReport.read(run.fit_report).steps
    for tracker in config.train.report_to:
        _LOG[tracker](name_of(run), figures, step)


def figures_of(card: Scorecard) -> dict[str, float]:
    """The scorecard as numbers by name."""
    figures = {f"score/{arm}/accuracy": result.accuracy for arm, result in card.arms.items()}
    figures |= {f"score/{arm}/format_valid": result.format_valid for arm, result in card.arms.items()}
    for pair in card.paired:
        figures[f"score/{pair.before}_to_{pair.after}/difference"] = pair.difference
        figures[f"score/{pair.before}_to_{pair.after}/mcnemar_p"] = pair.mcnemar_p
    if card.forgetting is not None:
        figures["score/forgetting/difference"] = card.forgetting.paired.difference
    return figures


def _tensorboard(name: str, figures: Mapping[str, float], step: int) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(log_dir=os.environ["TENSORBOARD_LOGGING_DIR"]) as writer:
        for key, value in figures.items():
            writer.add_scalar(key, value, step)


def _wandb(name: str, figures: Mapping[str, float], step: int) -> None:
    import wandb

    run = wandb.run or wandb.init(project=os.environ["WANDB_PROJECT"], name=name)
    run.summary.update(dict(figures))
    run.finish()


def _mlflow(name: str, figures: Mapping[str, float], step: int) -> None:
    import mlflow

    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    mlflow.set_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])
    last = mlflow.last_active_run()
    # The run that training has just ended; after a resume of a trained run there is none, and the scores get their own.
    with mlflow.start_run(run_id=last.info.run_id if last else None, run_name=name):
        mlflow.log_metrics(dict(figures), step=step)


def _trackio(name: str, figures: Mapping[str, float], step: int) -> None:
    import trackio

    trackio.init(project=PROJECT, name=name, resume="allow")
    trackio.log(dict(figures))
    trackio.finish()


_LOG: Mapping[str, Callable[[str, Mapping[str, float], int], None]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
