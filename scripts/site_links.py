"""Hook of mkdocs: links from the pages to files of the repository that are not part of the site.

In the repository, `[demo.json](../bench/results/demo.json)` is a link. In the site it becomes a link to the file at the address in
the environment variable `REPOSITORY` (such as https://host/owner/cot_unsloth/blob/main), and without one the name of the file.
A file that does not exist is an error in both.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"\[(?P<text>[^\]]+)\]\(\.\./(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
ROOT = Path(__file__).resolve().parent.parent
log = logging.getLogger("mkdocs.hooks.site_links")


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Called by mkdocs for each page, before it is rendered."""

    def replaced(link: re.Match[str]) -> str:
        if not (ROOT / link["path"]).exists():
            log.warning("%s links to %s, which does not exist", page.file.src_path, link["path"])
        base = os.environ.get("REPOSITORY")
        if base:
            return f"[{link['text']}]({base.rstrip('/')}/{link['path']}{link['anchor'] or ''})"
        text = link["text"].strip("`")
        return f"`{link['path']}`" if text in link["path"] else f"{link['text']} (`{link['path']}`)"

    return LINK.sub(replaced, markdown)
