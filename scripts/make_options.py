"""Write the option reference, docs/options.md: `python scripts/make_options.py`.

tests/test_docs.py compares the committed page with the settings.
"""

from __future__ import annotations

from pathlib import Path

from cot_unsloth.config import SECTIONS, reference

PAGE = Path(__file__).parent.parent / "docs" / "options.md"
HEAD = """# Every setting

Generated from the settings by `python scripts/make_options.py`. In a YAML file, write a setting inside its section; on the
command line each setting is a flag (`learning_rate` is `--learning-rate`). A flag overrides the file, and the file overrides
the defaults below. A run without a file starts from `configs/tiny-cpu.yaml`.
"""


def options() -> str:
    """The page: one table per section."""
    lines = [HEAD]
    current = ""
    for section, leaf, default, text in reference():
        if section != current:
            title = (SECTIONS[section].__doc__ or "").strip()
            lines += [f"\n## {section}\n\n{title}\n\n| setting | default | what it does |\n| --- | --- | --- |"]
            current = section
        lines.append(f"| `{leaf}` | `{default}` | {text} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(options(), encoding="utf-8")
