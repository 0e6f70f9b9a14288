"""The page of `common.report.demo`, in gradio: what is shown and what a click does."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup, escape
from PIL import Image
from starlette.middleware import Middleware

from common.data.images import ImageError
from common.pipeline.lookup import Answer, Result, Search
from common.report.loopback import HOST, OnlyHere
from common.report.matches import drawn
from common.report.sheets import number, thumbnail, tile
from common.rerank.features import load

TOP = 24
SIDE = 224  # of a result's picture in pixels
CSS = """
.gradio-container { max-width: 1500px !important; }
#about h1 { margin: 0; font-size: 1.35rem; }
#about p { margin: 0; opacity: .75; }
#said p { margin: 0 0 .2rem; }
#said .wrong { color: #b3261e; font-weight: 600; }
.dark #said .wrong { color: #ff8a80; }
#results, #examples { min-height: 0 !important; }
#results .grid-wrap, #examples .grid-wrap {
  height: auto !important; min-height: 0 !important; max-height: none !important; padding: 4px;
}
#examples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
#results .caption-label { font-size: .8rem; max-width: 100%; }
footer { display: none !important; }
@media (max-width: 640px) {
  .gradio-container, .gradio-container main { padding: 8px !important; }
  #results .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
}
"""
SHOW_MORE = "() => document.getElementById('more')?.scrollIntoView({block: 'center'})"
_CHOOSE = ["Choose a result to compare it with the query."]
FONT = ["Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]  # whatever is installed


def launch(search: Search, port: int) -> Any:
    """The running page, a `gr.Blocks`; served to this machine alone.

    Gradio 6 wants theme and style here, gradio 5 with the page: each gets what it knows.
    """
    theme = gr.themes.Base(font=FONT, font_mono=["Consolas", "Menlo", "monospace"])
    style = {"theme": theme, "css": CSS}
    page = build(search, style)
    options = dict(
        server_name=HOST,
        server_port=port,
        share=False,
        inbrowser=False,
        quiet=True,
        prevent_thread_lock=True,
        show_error=True,
        ssr_mode=False,
        footer_links=[],
        show_api=False,
        app_kwargs={"middleware": [Middleware(OnlyHere)]},
        **style,
    )
    page.launch(**_known(gr.Blocks.launch, options))
    return page


def build(search: Search, style: dict[str, Any]) -> Any:
    """The page of a run."""
    actions = Actions(search)
    first = next(iter(search.galleries))
    blocks = gr.Blocks(
        analytics_enabled=False,
        title=f"Search {search.run.folder.name}",
        **_known(gr.Blocks.__init__, style),
    )
    bare = {"buttons": [], "show_share_button": False, "show_download_button": False}
    pictures, titles = ("image" in search.inputs, "tokens" in search.inputs)
    with blocks:
        answer = gr.State(None)
        gr.HTML(actions.about(), elem_id="about")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                picture = gr.Image(
                    label="Picture",
                    type="filepath",
                    image_mode=None,
                    format="png",
                    sources=["upload", "clipboard"],
                    height=240,
                    visible=pictures,
                    **_known(gr.Image.__init__, bare),
                )
                # Pillow would open the file first, and its error would say nothing to anybody.
                picture.preprocess = lambda payload: payload and payload.path
                title = gr.Textbox(label="Title", visible=titles, max_lines=3)
                if pictures:
                    gr.HTML("Or begin with an image of the test:")
                examples = gr.Gallery(
                    actions.examples() if pictures else [],
                    label="Or begin with an image of the test",
                    show_label=False,
                    elem_id="examples",
                    columns=4,
                    height="auto",
                    object_fit="contain",
                    format="jpeg",
                    allow_preview=False,
                    interactive=False,
                    visible=pictures,
                    **_known(gr.Gallery.__init__, bare),
                )
                gallery = gr.Dropdown(
                    [(f"{name} ({count:,})", name) for name, count in search.galleries.items()],
                    value=first,
                    label="Search in",
                )
                steps = gr.CheckboxGroup(label="Steps", **actions.steps(first))
                button = gr.Button("Search", variant="primary")
                with gr.Accordion("What the steps do", open=False):
                    about = gr.Markdown(actions.explained(first))
            with gr.Column(scale=3, min_width=320):
                said = gr.HTML(actions.hint, elem_id="said")
                pair = gr.Image(
                    label="Keypoint matches",
                    elem_id="pair",
                    format="jpeg",
                    interactive=False,
                    visible=False,
                    **_known(gr.Image.__init__, bare),
                )
                more = gr.HTML("", elem_id="more")
                results = gr.Gallery(
                    label="Results",
                    show_label=False,
                    elem_id="results",
                    columns=6,
                    height="auto",
                    object_fit="contain",
                    format="jpeg",
                    allow_preview=False,
                    interactive=False,
                    **_known(gr.Gallery.__init__, bare),
                )
        asked, shown = [picture, title, gallery, steps], [results, said, answer, pair, more]
        changed = [picture.change] if pictures else []
        gr.on(
            [button.click, title.submit, steps.input, *changed],
            actions.look,
            asked,
            shown,
            api_name="search",
            concurrency_limit=1,
        )
        gallery.input(actions.switch, gallery, [steps, about], api_name="steps").then(
            actions.look, asked, shown, concurrency_limit=1
        )
        compared = results.select(actions.compare, answer, [pair, more], api_name=False)
        compared.then(None, js=SHOW_MORE)  # the chosen result may be far below
        examples.select(actions.begin, None, picture, api_name=False)
    return blocks


class Actions:
    """What the page does; everything that is shown as HTML is escaped.

    Args:
        search: of the run.
    """

    def __init__(self, search: Search) -> None:
        self.search = search
        words = {"image": "drop a picture", "tokens": "type a title"}
        told = " or ".join(words[name] for name in search.inputs)
        self.hint = f"<p>{told[:1].upper()}{told[1:]}, and the results are shown here.</p>"

    def about(self) -> str:
        """Heading: which run, and what its galleries hold."""
        run = self.search.run
        counts = ", ".join(f"{name} {count:,}" for name, count in self.search.galleries.items())
        name, dim = run.folder.resolve().name, run.vectors.train.vectors.shape[1]
        left = [step for steps in self.search.left_out.values() for step in steps]
        more = f" Without {', '.join(left)}, which match whole lists." if left else ""
        return str(
            Markup("<h1>{}: {}</h1><p>{}, {} dimensions; {}.{}</p>").format(
                run.competition, name, run.model.name, dim, counts, more
            )
        )

    def steps(self, gallery: str) -> dict[str, Any]:
        """Choices and chosen ones of the check boxes."""
        known = self.search.choices(gallery)
        named = [(f"{c.key} (this run's)" if c.own else c.key, c.key) for c in known]
        return {"choices": named, "value": self.search.usual(gallery)}

    def explained(self, gallery: str) -> str:
        """Markdown: a line for each step."""
        known = {choice.step["name"]: choice.about for choice in self.search.choices(gallery)}
        return "\n".join(f"- **{name}**: {about}" for name, about in known.items())

    def switch(self, gallery: str) -> tuple[Any, str]:
        """Other check boxes for another gallery."""
        return gr.CheckboxGroup(**self.steps(gallery)), self.explained(gallery)

    def look(
        self, image: str | None, title: str | None, gallery: str, steps: Sequence[str]
    ) -> tuple[list[Any], str, Any, Any, str]:
        """Results, what is said of them, what `compare` needs, and no comparison yet."""
        hidden = gr.Image(None, visible=False)
        if image is None and not (title or "").strip():
            return [], self.hint, None, hidden, ""
        try:
            found = self.search.ask(image, title or "", gallery=gallery, steps=steps, top=TOP)
        except (ValueError, OSError) as error:
            text = str(error).replace(str(image), Path(str(image)).name)
            return [], str(Markup('<p class="wrong">{}</p>').format(text)), None, hidden, ""
        shown = [(_tile(result), _caption(result)) for result in found.results]
        return shown, _said(found), (image, found), hidden, ""

    def compare(self, answer: Any, event: gr.SelectData) -> tuple[Any, str]:
        """The chosen result beside the query, with their local matches."""
        image, found = answer
        result = found.results[event.index]
        lines = [Markup("<b>{}</b>").format(result.id), _caption(result), result.title]
        picture: Any = None
        if image is not None:
            try:
                mine, theirs, seen = self.search.match(image, found.gallery, result.row)
                picture = Image.open(io.BytesIO(drawn(mine, theirs, seen)))
                lines.append(
                    f"{seen.inliers} of {seen.matches} keypoint matches agree on one geometry "
                    "(green), the others are faint"
                )
            except ImageError as error:
                lines.append(f"nothing to compare: {error}")
        text = Markup(" · ").join(escape(line) for line in lines if line)
        return gr.Image(picture, visible=picture is not None), str(Markup("<p>{}</p>").format(text))

    def examples(self) -> list[Any]:
        """Test images to begin with."""
        return [_tile(result) for result in self.search.examples()]

    def begin(self, event: gr.SelectData) -> Any:
        """The chosen test image as the query, as much of it as the run looks at."""
        result = self.search.examples()[event.index]
        try:
            return load(result.path, None, result.box)
        except ImageError as error:
            raise gr.Error(str(error)) from None


def _said(found: Answer) -> str:
    """HTML: the classes, the steps, what is to be kept in mind."""
    lines = []
    if found.classes:
        named = ", ".join(f"{name} ({number(score)})" for name, score in found.classes)
        lines.append(Markup("<b>{}</b>").format(f"Answer: {named}"))
    lines.append(escape(f"{len(found.results)} of {found.gallery} by {' → '.join(found.steps)}"))
    lines += [escape(line) for line in (*found.remarks, *_CHOOSE[: len(found.results)])]
    return str(Markup("").join(Markup("<p>{}</p>").format(line) for line in lines))


def _caption(result: Result) -> str:
    return " · ".join(part for part in (number(result.score), result.label) if part)


def _tile(result: Result) -> Image.Image:
    """The picture, or a square that says that it cannot be read."""
    box = None if result.box is None else result.box.tolist()
    small = thumbnail(result.path, side=SIDE, box=box)
    return Image.open(io.BytesIO(small)) if small else tile({"path": result.path}, side=SIDE)


def _known(call: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Those options that this version of gradio has."""
    there = signature(call).parameters
    return {key: value for key, value in options.items() if key in there}
