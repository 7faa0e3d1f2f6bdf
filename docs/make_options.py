"""Write the option reference: `python docs/make_options.py`; a test holds it true."""

from __future__ import annotations

from pathlib import Path

from cot_unsloth.config import SECTIONS, reference

HEAD = """# Every setting

Made by `python docs/make_options.py` from the settings themselves. In a YAML file a setting stands
in its section; on the command line it is a flag (`learning_rate` is `--learning-rate`). A flag
outranks the file, the file outranks these defaults. A run with no file starts from
`configs/tiny-cpu.yaml`.
"""


def options() -> str:
    """The whole page."""
    lines = [HEAD]
    seen = ""
    for section, leaf, default, text in reference():
        if section != seen:
            title = (SECTIONS[section].__doc__ or "").strip()
            lines += [f"\n## {section}\n\n{title}\n\n| setting | default | what it does |\n| --- | --- | --- |"]
            seen = section
        lines.append(f"| `{leaf}` | `{default}` | {text} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("options.md").write_text(options(), encoding="utf-8")
