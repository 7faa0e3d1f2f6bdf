"""The adapter as PEFT saved it: nothing is written, but it is uploaded beside the exported files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cot_unsloth.core.results.verification import Verification
from cot_unsloth.export.hub import ADAPTER, Content
from cot_unsloth.export.public_names import public_adapter_config
from cot_unsloth.export.targets.target import ExportTarget
from cot_unsloth.models.adapter_files import CONFIG, WEIGHTS
from cot_unsloth.prompts import tokenizer_files

if TYPE_CHECKING:
    from cot_unsloth.export.subject import Subject

_FILES = (CONFIG, WEIGHTS, *tokenizer_files.FILES, tokenizer_files.TEMPLATE)
"""The files that are uploaded; other trainers leave their optimizer state (a pickle) and checkpoints there too."""


class AdapterFolder(ExportTarget):
    """The folder that training wrote."""

    repository = ADAPTER

    def uploads(self, subject: Subject, out: Path, record: Verification) -> dict[str, Content]:
        """It was not converted, so there is nothing to verify."""
        if subject.adapter is None:
            return {}
        files: dict[str, Content] = {file.name: file for file in subject.adapter.iterdir() if file.name in _FILES}
        return files | {CONFIG: public_adapter_config(subject.adapter / CONFIG)}
