"""Markdown as one HTML file that loads nothing from anywhere."""

import base64
import html
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.2em; border-bottom: 1px solid #8884; }
img { max-width: 100%; image-rendering: pixelated; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1em 0; }
th, td { text-align: left; padding: .25em .8em .25em 0; border-bottom: 1px solid #8883; vertical-align: top; }
code { font: .92em ui-monospace, monospace; }
pre { overflow: auto; max-height: 24rem; background: #8881; padding: 1em; }
"""
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
"""What the page may load: only what it holds itself."""
KINDS = {".png": "image/png", ".gif": "image/gif", ".wav": "audio/wav", ".mp4": "video/mp4"}
"""Types of the pictures, sounds and videos that a page may hold."""


def page(markdown: str, title: str, folder: Path) -> str:
    """Return Markdown as HTML with its pictures inside.

    Args:
        markdown: CommonMark with tables; HTML in it is shown as text.
        title: Title of the page.
        folder: Where the pictures, sounds and videos lie; those outside are not shown.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")

    def image(
        renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, environment: MutableMapping[str, Any]
    ) -> str:
        path = folder / str(tokens[at].attrs["src"])
        name = html.escape(tokens[at].content)
        if path.suffix not in KINDS or not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            return f"<em>{name}: missing</em>"
        return embedded(path, name)

    reader.add_render_rule("image", image)
    head = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
    )
    return f"{head}\n{reader.render(markdown)}</body></html>\n"


def embedded(path: Path, name: str) -> str:
    """Return HTML that shows a picture or plays a sound or a video, with all of it inside.

    Args:
        path: The file, of one of the `KINDS`.
        name: What it is, escaped.
    """
    kind = KINDS[path.suffix]
    data = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    if kind.startswith("audio"):
        return f'<audio controls title="{name}" src="{data}"></audio>'
    if kind.startswith("video"):
        return f'<video controls loop muted autoplay playsinline title="{name}" src="{data}"></video>'
    return f'<img alt="{name}" src="{data}">'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines of Markdown; characters that would break it are escaped."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(heads), line(["---"] * len(heads)), *map(line, rows)]
