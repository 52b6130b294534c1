"""What stands between Gradio and the page's functions: whose files a request may name, and what an error says."""

import functools
import html
import inspect
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from unfog.app import FOLDER
from unfog.app.door import VISITOR
from unfog.app.visitors import Visitors, paths
from unfog.data.pictures import UnreadableError, describe_picture
from unfog.runtime.errors import EnvironmentFailure, UserError

LAYERS = 4
"""Most layers of a painting."""
PIXELS = 3 << 24
"""Most pixels of a painting's parts together: each is decoded as a whole, with four bytes a pixel."""


def said(work: Callable[..., Any]) -> Callable[..., Any]:
    """Show a user's mistake as a toast with its sentence, and a bug as a toast that says only that it is one."""

    def toast(error: Exception) -> gr.Error:
        if isinstance(error, UserError | EnvironmentFailure):
            return mistake(str(error))
        traceback.print_exception(error)
        return mistake("this is a bug of the page, not your mistake: see its terminal")

    @functools.wraps(work)
    def once(*arguments: Any) -> Any:
        try:
            return work(*arguments)
        except Exception as error:  # a toast for a mistake, and a bug is logged, see `toast`
            raise toast(error) from None

    @functools.wraps(work)
    def streamed(*arguments: Any) -> Iterator[Any]:
        try:
            yield from work(*arguments)
        except Exception as error:  # as above
            raise toast(error) from None

    return streamed if inspect.isgeneratorfunction(work) else once


def mistake(sentence: str) -> gr.Error:
    """Return a toast, as plain text; `guard` makes it the HTML that Gradio takes toasts for."""
    return gr.Error(sentence, print_exception=False)


def upload(**options: Any) -> gr.Image:
    """Return an input for a picture from a file or the clipboard."""
    return closed(gr.Image(type="filepath", image_mode=None, sources=["upload", "clipboard"], **options))  # as it is


def painting(label: str) -> gr.ImageEditor:
    """Return an input for a picture that can be painted on."""
    brush = gr.Brush(default_size=24, colors=["#d02090"], color_mode="fixed")
    board = gr.ImageEditor(
        type="pil",
        label=label,
        brush=brush,
        layers=False,
        sources=["upload", "clipboard"],
        transforms=(),
        format="png",
        height=420,
    )
    return closed(board)


Place = TypeVar("Place", gr.Image, gr.ImageEditor)


def closed(place: Place) -> Place:
    """Make an input refuse addresses, files that were not uploaded to the page, and what is no picture of a fair size.

    Gradio looks at a path itself only where the request marks it as a file's, which is for whoever sends it to do, and
    decodes all parts of a painting before anybody sees how large they are.
    """
    read = place.preprocess

    def preprocess(payload: Any) -> Any:
        named = payload if payload is None or isinstance(payload, str | dict | list) else payload.model_dump()
        files = list(paths(named))
        if not all(map(_uploaded, files)):
            raise mistake("this file was not uploaded to this page: upload the picture")
        try:
            pixels = sum(height * width for _, height, width in (describe_picture(Path(file)) for file in files))
        except UnreadableError:
            raise mistake("this file is no picture that can be read: choose another") from None
        layers = len(named.get("layers") or ()) if isinstance(named, dict) else 0
        if isinstance(place, gr.ImageEditor) and (layers > LAYERS or pixels > PIXELS):
            raise mistake(f"a painting has at most {LAYERS} layers, and {PIXELS // 3:,} pixels each: make it smaller")
        return read(payload)

    place.preprocess = preprocess  # type: ignore[method-assign]  # of a class Gradio would write a file next to this
    return place


def _uploaded(path: str) -> bool:
    """Return whether a path, its links followed, is that of a file in the page's own folder."""
    try:
        real = Path(path).resolve()
        return real.is_relative_to(FOLDER.resolve()) and real.is_file()
    except (ValueError, OSError, RuntimeError):  # a zero byte, a name too long, a loop of links
        return False


def guard(blocks: gr.Blocks, visitors: Visitors) -> None:
    """Have a page read only files of the visitor who asks, remember what it gives them, and answer with sentences.

    All that can be asked passes here, whichever way it came in: by a name or a number, at once or through the queue.
    """
    process, read, write = blocks.process_api, blocks.preprocess_data, blocks.postprocess_data
    asking: ContextVar[str | None] = ContextVar("asking", default=None)

    async def process_api(*arguments: Any, **options: Any) -> Any:
        asked = getattr(options.get("request"), "request", None)
        asking.set(asked.scope.get(VISITOR) if asked is not None else None)
        try:
            return await process(*arguments, **options)
        except gr.Error as error:
            readable = str(error.message).encode(errors="replace").decode()  # a path need not be UTF-8
            error.message = html.escape(readable, quote=False)
            raise

    async def preprocess_data(block_fn: Any, inputs: list[Any], *arguments: Any, **options: Any) -> Any:
        for path in paths(inputs):
            if "://" in path:
                raise mistake("the page fetches no pictures from addresses: upload the file")
            if not (visitors.owns(asking.get(), path) and _uploaded(path)):
                raise mistake("this file was not uploaded to this page: upload the picture, and keep the page's cookie")
        try:
            return await read(block_fn, _without_addresses(inputs), *arguments, **options)
        except gr.Error as error:
            raise mistake(error.message) from None
        except Exception:
            raise mistake("a field has a value that it cannot take: use those of the page") from None

    async def postprocess_data(*arguments: Any, **options: Any) -> Any:
        given = await write(*arguments, **options)
        if (visitor := asking.get()) is not None:
            visitors.give(visitor, filter(_uploaded, paths(given)))
        return given

    mended = {"process_api": process_api, "preprocess_data": preprocess_data, "postprocess_data": postprocess_data}
    vars(blocks).update(mended)


def _without_addresses(value: Any) -> Any:
    """Return an input without the addresses that stand beside paths: Gradio reads some of them instead."""
    if isinstance(value, dict):
        return {key: _without_addresses(part) for key, part in value.items() if key != "url"}
    return [_without_addresses(part) for part in value] if isinstance(value, list) else value
