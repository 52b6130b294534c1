"""The playground's page, in Gradio: generate, compare, fog, edit, measure, vote."""

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware

from unfog.app import FOLDER, studio
from unfog.app.blind import Booth
from unfog.app.door import LARGEST, Door
from unfog.app.guard import guard, painting, said, upload
from unfog.app.studio import Studio, Wish
from unfog.app.visitors import Visitors
from unfog.app.votes import CHOICES, Votes
from unfog.data.pictures import row_of, save_film, save_picture
from unfog.recipes.kinds import KINDS
from unfog.runtime.errors import EnvironmentFailure, UserError

STYLE = """
img { image-rendering: pixelated; } footer { opacity: .6; }
.image-frame, .image-frame img { width: 100%; height: 100%; object-fit: contain; }
.grid-wrap { height: auto !important; max-height: none !important; } .thumbnail-lg { aspect-ratio: auto !important; }
"""
HOLD = 1800
"""Seconds that pictures of the page are kept."""
MILLISECONDS = 80
"""Milliseconds that a frame of a film is shown."""
MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
"""One request computes at a time: two at once would each take longer than both in turn."""
LIVE: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden"}
"""For what follows a slider: only the last value counts."""
Frames = list[tuple[Image.Image, Image.Image]]


def answer(label: str) -> gr.Image:
    """Return an output for a picture, shown pixel by pixel."""
    return gr.Image(label=label, format="png", interactive=False, height=360, buttons=["download", "fullscreen"])


class Playground:
    """The page of a studio."""

    def __init__(self, rooms: Studio, places: int, votes: Votes) -> None:
        """Lay the page out.

        Args:
            rooms: Does the work.
            places: Requests that may wait.
            votes: Keeps the votes of the blind comparison, which needs two runs.
        """
        self.studio, self.booth = rooms, Booth(rooms, votes)
        self.names = list(rooms.paths)
        with gr.Blocks(title="unfog", analytics_enabled=False, delete_cache=(HOLD, HOLD)) as self.blocks:
            gr.Markdown("# unfog\nwatch a model sample, compare settings, edit pictures, and see how it was measured")
            tabs = {"Generate": self._generate, "Compare": self._compare, "Fog": self._fog, "Edit": self._edit}
            tabs["Measure"] = self._measure
            if len(self.names) > 1:
                tabs["Blind comparison"] = self._blind
            for name, build in tabs.items():
                with gr.Tab(name):
                    build()
        self.blocks.queue(max_size=places, default_concurrency_limit=4)
        self.visitors = Visitors()
        guard(self.blocks, self.visitors)

    # ------------------------------------------------------------------------------------------- shared by tabs

    def _wish(self, image: bool = False, own: bool = True) -> list[Any]:
        """Lay out the fields of a wish, in their order; without `own` only those that two wishes share."""
        run = gr.Dropdown(self.names, value=self.names[0], label="Run")
        words = gr.Textbox(label="Show", placeholder="a class, a prompt, or numbers; empty: some of everything")
        negative = gr.Textbox(label="Do not show", placeholder="empty: nothing")
        fields: list[Any] = [run, words, negative]
        fields += self._rule() if own else []
        with gr.Row():
            fields.append(gr.Number(0, label="Seed", precision=0, minimum=0))
            fields.append(gr.Slider(1, studio.MOST, 4, step=1, label="Count"))
        if image:
            with gr.Accordion("Picture, for models that are conditioned on one", open=False):
                fields.append(upload(label="Picture"))
        return fields

    def _rule(self) -> list[Any]:
        """Lay out solver, steps and guidance."""
        solvers = [("the run's own", ""), *((name, name) for name in sorted(KINDS["solver"]))]
        with gr.Row():
            return [
                gr.Dropdown(solvers, value="", label="Solver"),
                gr.Number(0, label="Steps (0: the run's own)", precision=0, minimum=0),
                gr.Number(0, label="Guidance (1: off, 0: the run's own)", minimum=0),
            ]

    # ------------------------------------------------------------------------------------------------- the tabs

    def _generate(self) -> None:
        """Lay out sampling, shown while it happens."""
        with gr.Row():
            with gr.Column(scale=1):
                wish = self._wish(image=True)
                with gr.Row():
                    go, stop = gr.Button("Generate", variant="primary"), gr.Button("Stop", variant="stop")
            with gr.Column(scale=2):
                status = gr.Textbox(label="Progress", interactive=False)
                with gr.Row():
                    x = answer("x_t: as it is now")
                    x0 = answer("x0: what the model predicts from it")
                playing = gr.HTML(label="Sounds and videos play here", min_height=0)
                place = gr.Slider(0, 1, 0, step=1, label="Moment of the film", interactive=True)
                command = gr.Textbox(label="The same on the command line", interactive=False, buttons=["copy"])
                with gr.Row():
                    png = gr.DownloadButton("PNG")
                    gif = gr.DownloadButton("GIF")
        film = gr.State([], time_to_live=HOLD)

        @said
        def generate(*fields: Any) -> Iterator[Any]:
            """Draw samples, and yield them while they are denoised: x_t, x0, progress, command line, PNG, GIF."""
            asked = _wished(fields)
            line, seen = self.studio.command(asked), 0.0
            shots: Frames = []
            for shot in self.studio.generate(asked):
                shots.append((shot.x, shot.x0))
                if len(shots) == 1 or time.monotonic() - seen > studio.PAUSE:
                    seen = time.monotonic()
                    yield shot.x, shot.x0, shot.words, line, gr.skip(), gr.skip(), gr.skip(), gr.skip(), ""
            last = len(shots) - 1
            slider = gr.Slider(maximum=last, value=last)
            yield shot.x, shot.x0, shot.words, line, *_saved(shots), shots, slider, shot.player

        @said
        def scrub(shots: Frames, number: float | None) -> tuple[Image.Image, Image.Image]:
            """Show one moment of the film."""
            if not shots:
                raise UserError("there is no film yet: generate something first")
            return shots[min(_whole(number), len(shots) - 1)]

        outputs = [x, x0, status, command, png, gif, film, place, playing]
        begun = go.click(generate, wish, outputs, api_name="generate", show_progress="hidden", **MODEL)
        stop.click(lambda: "stopped", None, status, cancels=[begun], queue=False, api_visibility="private")
        place.input(scrub, [film, place], [x, x0], queue=False, api_visibility="private", **LIVE)

    def _compare(self) -> None:
        """Lay out two settings side by side, and a sweep through one of them."""
        with gr.Row():
            with gr.Column(scale=1):
                shared = self._wish(own=False)
                gr.Markdown("### One")
                one = self._rule()
                gr.Markdown("### The other")
                other = self._rule()
                go = gr.Button("Compare", variant="primary")
                gr.Markdown("### Or a sweep of the first")
                name = gr.Dropdown(list(studio.SWEPT), value="steps", label="Sweep")
                values = gr.Textbox("2, 5, 10, 20", label="Values")
                through = gr.Button("Draw the sweep")
            with gr.Column(scale=2):
                words = gr.Textbox(label="Difference in numbers", interactive=False)
                with gr.Row():
                    shown = [answer(label) for label in ("One", "The other", "Difference")]
                row = gr.Gallery(label="Sweep", format="png", columns=4, interactive=False, object_fit="contain")

        @said
        def compare(*fields: Any) -> Any:
            """Draw the samples of two settings from the same noise: one, the other, their difference, its size."""
            common, rules = fields[:5], (fields[5:8], fields[8:11])
            wishes = [_wished((*common[:3], *rule, *common[3:])) for rule in rules]
            return self.studio.compare(*wishes)

        @said
        def sweep(*fields: Any) -> Any:
            """Draw the samples of one setting for several values of one field: pictures with their captions."""
            common, rule, (part, given) = fields[:5], fields[5:8], fields[8:]
            return self.studio.sweep(_wished((*common[:3], *rule, *common[3:])), part, given)

        go.click(compare, [*shared, *one, *other], [*shown, words], api_name="compare", **MODEL)
        through.click(sweep, [*shared, *one, name, values], row, api_name="sweep", **MODEL)

    def _fog(self) -> None:
        """Lay out the forward process."""
        with gr.Row():
            with gr.Column(scale=1):
                picture = upload(label="Picture", format="png", height=280)
                with gr.Row():
                    run = gr.Dropdown(self.names, value=self.names[0], label="Or a row of the data of")
                    number = gr.Number(0, label="Row", precision=0, minimum=0)
                take = gr.Button("Take the row")
                t = gr.Slider(0, 1, 0.3, step=0.01, label="t, from clean data to pure noise")
            with gr.Column(scale=2):
                shown = gr.Gallery(label="x_t", format="png", columns=3, interactive=False, object_fit="contain")
                curves = gr.Plot(label="alpha, sigma and log SNR", show_label=False, format="png")

        @said
        def fog(image: str | None, share: float) -> Any:
            """Fog a picture to time t by each schedule: pictures with their numbers, and the curves."""
            drawn = gr.skip() if image is None else studio.fog(image, share)
            return drawn, studio.draw_curves(share)

        self.blocks.load(said(studio.draw_curves), t, curves, api_visibility="private", show_progress="hidden")
        row = said(lambda name, place: self.studio.row(name, _whole(place)))
        take.click(row, [run, number], picture, api_name="row")
        t.input(fog, [picture, t], [shown, curves], api_name="fog", **LIVE)
        picture.change(fog, [picture, t], [shown, curves], api_visibility="private", **LIVE)

    def _edit(self) -> None:
        """Lay out the edits of a picture."""
        with gr.Row():
            with gr.Column(scale=1):
                wish = self._wish()
            with gr.Column(scale=2):
                with gr.Tab("Restyle"):
                    image = upload(label="Picture", height=280)
                    strength = gr.Slider(0, 1, 0.6, step=0.05, label="Strength: 0 keeps the picture, 1 forgets it")
                    restyling = gr.Button("Restyle", variant="primary")
                with gr.Tab("Inpaint"):
                    board = painting("Picture: paint what is to be redrawn")
                    inpainting = gr.Button("Inpaint", variant="primary")
                with gr.Tab("Interpolate"):
                    with gr.Row():
                        ends = [upload(label=label, height=280) for label in ("From", "To")]
                    interpolating = gr.Button("Interpolate", variant="primary")
                shown = answer("Result")

        @said
        def restyle(*fields: Any) -> Image.Image:
            """Draw versions of a picture."""
            return self.studio.restyle(_wished(fields[:-2]), fields[-2], fields[-1])

        @said
        def inpaint(*fields: Any) -> Image.Image:
            """Redraw the painted part of a picture."""
            drawn = fields[-1]
            if not drawn or drawn["background"] is None:
                raise UserError("give a picture, and paint what is to be redrawn")
            return self.studio.inpaint(_wished(fields[:-1]), drawn["background"], _painted(drawn))

        @said
        def interpolate(*fields: Any) -> Image.Image:
            """Draw the steps from one picture to another."""
            return self.studio.interpolate(_wished(fields[:-2]), fields[-2], fields[-1])

        restyling.click(restyle, [*wish, image, strength], shown, api_name="restyle", **MODEL)
        inpainting.click(inpaint, [*wish, board], shown, api_name="inpaint", **MODEL)
        interpolating.click(interpolate, [*wish, *ends], shown, api_name="interpolate", **MODEL)

    def _measure(self) -> None:
        """Lay out what is known about a run."""
        run = gr.Dropdown(self.names, value=self.names[0], label="Run")
        look = gr.Button("Look", variant="primary")
        drawn = gr.Gallery(
            label="Curves and pictures", format="png", columns=2, interactive=False, object_fit="contain"
        )
        words = gr.Markdown()
        look.click(said(self.studio.measures), run, [words, drawn], api_name="measure")

    def _blind(self) -> None:
        """Lay out two samples whose runs are not named, and the vote on them."""
        with gr.Row():
            with gr.Column(scale=1):
                pair = zip(self.names, ("First run", "Second run"), strict=False)
                runs = [gr.Dropdown(self.names, value=name, label=label) for name, label in pair]
                words = gr.Textbox(label="Show", placeholder="a class or a prompt; empty: what both know, in turn")
                go = gr.Button("Show two samples", variant="primary")
                condition = gr.Textbox(label="Both are to show", interactive=False)
                tally = gr.Textbox(label="Votes on these two runs", interactive=False, lines=4)
            with gr.Column(scale=2):
                gr.Markdown("Which one is better? The two runs change sides at random.")
                with gr.Row():
                    sides = [answer(choice.capitalize()) for choice in (CHOICES[0], CHOICES[-1])]
                with gr.Row():
                    players = [gr.HTML(label="Sounds and videos play here", min_height=0) for _ in sides]
                with gr.Row():
                    buttons = [gr.Button(choice.capitalize(), variant="primary") for choice in CHOICES]
        ticket = gr.State(None, time_to_live=HOLD)  # stays here: a browser gets the samples and nothing of their runs

        @said
        def blind(*fields: Any) -> Any:
            """Draw a sample of each of two runs, sides at random: left, right, players, condition, votes so far."""
            first, second, asked, before = fields
            seen = self.booth.show(first, second, asked or "", before)
            return seen.left, seen.right, *seen.players, seen.words, seen.tally, seen.ticket

        @said
        def vote(choice: str, given: str | None) -> tuple[str, None]:
            """Keep the vote on the two samples that were drawn last: left, same or right. Returns the votes so far."""
            return self.booth.vote(given, choice), None

        shown = [*sides, *players, condition, tally, ticket]
        go.click(blind, [*runs, words, ticket], shown, api_name="blind", **MODEL)
        for button in buttons:
            names: dict[str, Any] = {"api_name": "vote"} if button is buttons[0] else {"api_visibility": "private"}
            kept = button.click(vote, [button, ticket], [tally, ticket], **names)
            kept.success(blind, [*runs, words, ticket], shown, api_visibility="private", **MODEL)

    def launch(self, host: str, port: int, names: Sequence[str] = ()) -> str:
        """Serve the page in the background, and return its address.

        Args:
            host: Address to listen on.
            port: Port to listen on.
            names: Further names that the page has, of tunnels or proxies.

        Raises: EnvironmentFailure: If the port is taken.
        """
        works = [work for work in self.blocks.fns.values() if work.fn is not None]
        endpoints = {part for work in works for part in (work._id, str(work.api_name))}
        door = Middleware(Door, visitors=self.visitors, endpoints=endpoints, folder=FOLDER, host=host, names=names)
        try:
            return str(
                self.blocks.launch(
                    server_name=host,
                    server_port=port,
                    quiet=True,
                    prevent_thread_lock=True,
                    share=False,
                    inbrowser=False,
                    ssr_mode=False,
                    run_history=False,
                    enable_monitoring=False,
                    footer_links=["api"],
                    max_file_size=LARGEST,
                    app_kwargs={"middleware": [door]},
                    theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
                    css=STYLE,
                )[1]
            )
        except OSError as error:
            raise EnvironmentFailure(
                f"the page cannot be served at {host}:{port} ({error}): choose another port"
            ) from None


def _wished(fields: Any) -> Wish:
    """Return the wish in the fields of the page; empty fields, and zeros where 0 is the run's own, are None."""
    run, words, negative, solver, steps, guidance, seed, count, *image = fields
    own = (negative or None, solver or None, _whole(steps) or None, _number(guidance) or None)
    return Wish(run, words or "", *own, _whole(seed), _whole(count) or 1, *image)


def _number(given: object) -> float:
    """Return a number of the page; an empty field is 0.

    Raises: UserError: If it is none, or not finite.
    """
    try:
        number = float(given or 0)  # type: ignore[arg-type]  # refused below
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{str(given)[:40]!r} is no number that the page takes: give a finite one")
    return number


def _whole(given: object) -> int:
    """Return a whole number of the page, as `_number`."""
    number = _number(given)
    return given if isinstance(given, int) else int(number)


def _saved(shots: Frames) -> tuple[str, str]:
    """Write the last samples and the film into a folder whose name nobody can guess; return where they are."""
    folder = Path(tempfile.mkdtemp(dir=FOLDER))
    picture, film = folder / "samples.png", folder / "film.gif"
    save_picture(shots[-1][0], picture)
    save_film([_side_by_side(*pair) for pair in shots], film, MILLISECONDS)
    return str(picture), str(film)


def _side_by_side(one: Image.Image, other: Image.Image) -> Image.Image:
    """Put two pictures side by side, enlarged for the eye."""
    wide, factor = row_of([one, other]), max(1, round(256 / max(one.size)))
    return wide.resize((wide.width * factor, wide.height * factor), Image.Resampling.NEAREST)


def _painted(drawn: dict[str, Any]) -> Image.Image:
    """Return where the layers of a board are painted, white on black."""
    mask = Image.new("L", drawn["background"].size, 0)
    for layer in drawn["layers"]:
        if layer.size != mask.size:
            raise UserError(f"a layer of {layer.size} pixels does not lie on a picture of {mask.size}")
        mask.paste(255, mask=layer.convert("RGBA").getchannel("A").point(lambda alpha: 255 * (alpha > 0)))
    return mask
