"""The page itself: tabs of Gradio, wired to the functions that fill them."""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from dinov2_jax.data.decode import image_decoder
from dinov2_jax.demo import heads as heads_lib
from dinov2_jax.demo import neighbours as neighbours_lib
from dinov2_jax.demo import session as session_lib

_TITLE = "What a DINOv2 model sees"
_CHOICES = ("first", "second")
_FOUND = 12  # images of a folder that are shown
_INPUTS = 200  # height of an image that is chosen, px
_PHOTOGRAPHS = "Click a patch to see what is similar to it in both images."


def make(
    session: session_lib.Session,
    *,
    name: str,
    examples: Sequence[pathlib.Path],
    neighbours: neighbours_lib.Neighbours | None = None,
    heads: Sequence[heads_lib.Tab] = (),
) -> Any:
    """Return the page, a `gradio.Blocks`.

    Args:
      session: The model.
      name: Name of the model.
      examples: Two files of images to start with.
      neighbours: Images of a folder to search, if there is one.
      heads: Heads, each of which gets a tab.
    """
    import gradio as gr

    config = session.model.config
    with gr.Blocks(title=_TITLE, analytics_enabled=False) as page:
        gr.Markdown(
            f"# {_TITLE}\n{name}: {session.model.num_params / 1e6:.1f} M parameters, "
            f"patches of {config.patch_size} px, images of {session.size} px. The "
            "first image of each shape takes some seconds longer."
        )
        with gr.Tab("Similar patches"):
            chosen = _similarity_tab(gr, page, session, examples)
        with gr.Tab("Principal components"):
            _components_tab(gr, session, chosen)
        with gr.Tab("Attention"):
            _attention_tab(gr, session, examples[0])
        if neighbours is not None:
            with gr.Tab("Neighbours"):
                _neighbours_tab(gr, session, neighbours, examples[0])
        for number, head in enumerate(heads):
            with gr.Tab(head.title):
                _head_tab(gr, session, head, examples[0], f"head_{number}")
    return page


def _similarity_tab(gr: Any, page: Any, session: Any, examples: Any) -> list[Any]:
    """Add the tab in which patches are clicked; return its two images."""
    with gr.Row():
        chosen = [
            _image_input(gr, f"{choice.capitalize()} image", value)
            for choice, value in zip(_CHOICES, examples)
        ]
    result = gr.Markdown(_PHOTOGRAPHS, elem_id="result")
    with gr.Row():
        shown = [
            _picture(
                gr, f"Patches of the {choice} image: click one", f"{choice}_patches"
            )
            for choice in _CHOICES
        ]
    with gr.Accordion("Choose a patch by its place", open=False), gr.Row():
        which = gr.Radio(_CHOICES, value=_CHOICES[0], label="Image")
        row = gr.Number(1, label="Row", precision=0, minimum=1)
        column = gr.Number(1, label="Column", precision=0, minimum=1)
        by_place = gr.Button("Show")
    outputs = [*shown, result]

    def photographs(*paths):
        return [*session.photographs(paths), _PHOTOGRAPHS]

    def similar(first, second, choice, row, column):
        paths, index = (first, second), _CHOICES.index(choice)
        if not paths[index]:
            raise _problem(gr, f"there is no {choice} image: choose one")
        place = int(row or 1) - 1, int(column or 1) - 1
        found = session.similarities(
            paths, index, *session.inside(paths[index], *place)
        )
        return [*found.pictures, found.text]

    def clicked(choice):
        def at(first, second, event: gr.SelectData):
            path = (first, second)[_CHOICES.index(choice)]
            place = session.patch_at(path, *event.index)
            numbers = [number + 1 for number in place]
            return [*similar(first, second, choice, *numbers), choice, *numbers]

        return at

    run = functools.partial(_reported, gr)
    for image in chosen:
        image.change(run(photographs), chosen, outputs, api_visibility="private")
    page.load(run(photographs), chosen, outputs, api_name="photographs")
    by_place.click(
        run(similar), [*chosen, which, row, column], outputs, api_name="similar"
    )
    for choice, picture in zip(_CHOICES, shown):
        picture.select(
            run(clicked(choice)),
            chosen,
            [*outputs, which, row, column],
            api_name=f"click_{choice}",
        )
    return chosen


def _components_tab(gr: Any, session: Any, chosen: list[Any]) -> None:
    """Add the tab of principal components; without files it takes two images."""
    files = gr.File(
        file_count="multiple",
        file_types=["image"],
        label="Images; without any, the two of the first tab",
        height=_INPUTS,
    )
    foreground = gr.Checkbox(label="Also without the background")
    button = gr.Button("Draw", variant="primary")
    sheet = _picture(gr, "Principal components of all images together")

    def draw(files, foreground, *chosen):
        paths = [path for path in files or chosen if path]
        if not paths:
            raise _problem(gr, "there are no images: choose some")
        return session.principal_components(paths, foreground=foreground)

    button.click(
        _reported(gr, draw), [files, foreground, *chosen], sheet, api_name="pca"
    )


def _attention_tab(gr: Any, session: Any, example: pathlib.Path) -> None:
    depth = session.model.config.depth
    image = _image_input(gr, "Image", example)
    block = gr.Slider(
        0,
        depth - 1,
        value=depth - 1,
        step=1,
        precision=0,
        label="Block",
    )
    button = gr.Button("Draw", variant="primary")
    sheet = _picture(gr, "What each head of the block attends to")

    def draw(path, block):
        return session.attention(_given(gr, path), block=int(block))

    button.click(_reported(gr, draw), [image, block], sheet, api_name="attention")


def _neighbours_tab(gr: Any, session: Any, neighbours: Any, example: Any) -> None:
    count = len(neighbours)
    gr.Markdown(
        f"The {min(_FOUND, count)} most similar of {count:,} images, the most similar "
        "first, with the cosine of the class tokens."
    )
    image = _image_input(gr, "Image", example)
    button = gr.Button("Find", variant="primary")
    gallery = gr.Gallery(
        show_label=False, columns=6, format="png", height="auto", buttons=[]
    )

    def find(path):
        found = neighbours.find(session.pixels(_given(gr, path)), _FOUND)
        return [(n.picture, f"{n.similarity:.3f} {n.name}") for n in found]

    button.click(_reported(gr, find), image, gallery, api_name="neighbours")


def _head_tab(gr: Any, session: Any, head: Any, example: Any, api_name: str) -> None:
    image = _image_input(gr, "Image", example)
    button = gr.Button("Predict", variant="primary")
    picture = _picture(gr, "Prediction")
    text = gr.Textbox(label="In words", interactive=False)

    def predict(path):
        return head.predict(session.pixels(_given(gr, path)))

    button.click(_reported(gr, predict), image, [picture, text], api_name=api_name)


def _image_input(gr: Any, label: str, value: pathlib.Path) -> Any:
    """Return an image to choose; its file comes to the functions as it was sent."""
    return gr.Image(
        value=str(value),
        label=label,
        type="filepath",
        image_mode=None,  # decoded by the session, within its limits
        sources=["upload", "clipboard"],
        height=_INPUTS,
    )


def _picture(gr: Any, text: str, elem_id: str | None = None) -> Any:
    """Return a picture to look at; a visible label would cover a part of it."""
    return gr.Image(
        label=text,
        show_label=False,
        alt_text=text,
        format="png",
        interactive=False,
        buttons=["download"],
        elem_id=elem_id,
    )


def _given(gr: Any, path: str | None) -> str:
    if not path:
        raise _problem(gr, "there is no image: choose one")
    return path


def _reported(gr: Any, function: Callable) -> Callable:
    """Return a function that shows images that cannot be used as an error."""

    @functools.wraps(function)
    def run(*arguments):
        try:
            return function(*arguments)
        except image_decoder.BadImage as error:
            raise _problem(gr, str(error)) from error

    return run


def _problem(gr: Any, text: str) -> Exception:
    """Return the error that the page shows in words, and the terminal not at all."""
    return gr.Error(text, print_exception=False)
