"""MkDocs hook: publish the tables of benchmarks/results as pages, and render Sphinx roles in docstrings as code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RESULTS = Path("benchmarks/results")
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):<code>(?:~[\w.]*?)?(\w+(?:\.\w+)*)</code>")


def on_files(files: Files, config: Any) -> Files:
    """Add each Markdown file of benchmarks/results as results/benchmarks/NAME.md."""
    root = Path(config.config_file_path).parent
    for path in sorted((root / RESULTS).glob("*.md")):
        files.append(File.generated(config, f"results/benchmarks/{path.name}", content=path.read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links at `../../benchmarks/results/NAME.md`, right in the repository, to the pages made of them."""
    if page.file.src_uri in ("results/timm-networks.md", "results/zoo.md"):
        page.meta["hide"] = ["toc"]  # room for a wide table
    up = "../" * page.file.src_uri.count("/")
    return markdown.replace(f"]({up}../{RESULTS}/", f"]({up}results/benchmarks/")


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Replace roles such as :class:`~sparkmim.Backbone` by the name in code."""
    return ROLE.sub(lambda match: f"<code>{match[1].rsplit('.', 1)[-1]}</code>", html)
