"""A page in Chromium: its numbers against those of Python, and its use.

It is served below a path, by a plain server that sends no special headers.
"""

import os
import shutil
import subprocess

import browser
import numpy as np
import pytest
import random_weights
from PIL import Image

import dinov2_jax
from dinov2_jax.data import preprocessing
from dinov2_jax.export_page import __main__ as export_page
from dinov2_jax.visualize import examples, pca
from dinov2_jax.weights import torch_writer

pytestmark = pytest.mark.extra
SIZE = 112  # 8 x 8 patches
CANVASES = "document.querySelectorAll('.pane canvas')"
RESULT = "document.querySelector('#result').textContent"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with weights, and a page in sites/demo."""
    root = tmp_path_factory.mktemp("root")
    drawn = random_weights.tensors(random_weights.small_shapes("vits14"))
    torch_writer.write(root / "small.pth", drawn)
    (root / "sites").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        if "npm_config_registry" not in os.environ and shutil.which("npm"):
            asked = ("npm", "config", "get", "registry")
            found = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
            patch.setenv("npm_config_registry", found)
        flags = [f"--model={root / 'small.pth'}", "--num-heads=2", f"--size={SIZE}"]
        assert export_page.main([*flags, str(root / "sites/demo")]) == 0
    return root


@pytest.fixture(scope="module")
def model(root):
    return dinov2_jax.load(root / "small.pth", num_heads=2)


@pytest.fixture(scope="module")
def page(root):
    """The page, after it has computed the features of its first two examples."""
    with browser.served(root) as address, browser.opened() as page:
        page.go(f"{address}/sites/demo/#first=chelsea&second=coffee&on=first&patch=2,3")
        page.wait(f"{RESULT}.includes('cosine')")
        yield page
        assert not page.problems
        assert all(r.startswith((address, "data:", "blob:")) for r in page.requests)


def read(page, expression):
    """The value of an expression of `state`, typed arrays as lists."""
    return page.run(
        "import('./page.js').then(({state}) => JSON.parse(JSON.stringify("
        f"{expression}, (_, x) => ArrayBuffer.isView(x) ? [...x] : x)))"
    )


def features(page, index):
    grid = read(page, f"state.panes[{index}].patches")
    return np.reshape(grid["data"], (grid["rows"], grid["columns"], grid["width"]))


def pixels(page, index):
    return np.reshape(read(page, f"state.panes[{index}].image.data"), (SIZE, SIZE, 3))


def expected(model, image):
    """Pixels and patch features of an image, by Python."""
    square = preprocessing.resize_and_crop(image, SIZE, SIZE)
    normalised = model.preprocessing.normalize(square)[None]
    return square, np.asarray(model(normalised).patches[0])


def relative_error(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


def cosines(patches, query):
    lengths = np.linalg.norm(patches, axis=-1) * np.linalg.norm(query)
    return patches @ query / lengths


@pytest.mark.parametrize("index, name", [(0, "chelsea"), (1, "coffee")])
def test_features_of_examples_equal_those_of_python(page, model, index, name):
    example = {e.name: e.pixels for e in examples.load()}[name]
    square, wanted = expected(model, example)
    np.testing.assert_array_equal(pixels(page, index), square)
    assert relative_error(features(page, index), wanted) < 1e-3


def test_the_address_chooses_a_patch(page):
    patches = [features(page, i) for i in (0, 1)]
    for found, grid in zip(read(page, "state.maps"), patches):
        wanted = cosines(grid, patches[0][1, 2])
        np.testing.assert_allclose(np.reshape(found, (8, 8)), wanted, atol=1e-5)


def test_a_click_and_keys_choose_a_patch(page):
    page.click(f"{CANVASES}[1]", across=5.5 / 8, down=3.5 / 8)
    page.wait(f"{RESULT}.startsWith('Patch in row 4, column 6 of coffee')")
    patches = [features(page, i) for i in (0, 1)]
    maps = [cosines(grid, patches[1][3, 5]) for grid in patches]
    np.testing.assert_allclose(
        np.reshape(read(page, "state.maps[0]"), (8, 8)), maps[0], atol=1e-5
    )
    row, column = np.unravel_index(maps[0].argmax(), (8, 8))
    assert (
        f"chelsea: row {row + 1}, column {column + 1}, cosine {maps[0].max():.3f}."
        in page.run(RESULT)
    )
    assert "on=second&patch=4,6" in page.run("location.hash")
    page.run(f"{CANVASES}[1].focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowUp"):
        page.press(key)
    page.wait(f"{RESULT}.startsWith('Patch in row 3, column 8 of coffee')")


def test_principal_components_are_those_of_python(page):
    page.click("document.querySelector('[value=pca]')")
    page.wait("document.querySelector('#legend-text').textContent.startsWith('Red')")
    found = page.run(
        "Promise.all([import('./page.js'), import('./features.js')]).then(([p, f]) =>"
        " f.jointColors(p.state.panes.map((x) => x.patches)).map((x) => [...x]))"
    )
    wanted = pca.joint_colors([features(page, i) for i in (0, 1)])
    for colors, picture in zip(found, wanted):
        difference = np.abs(np.reshape(colors, (8, 8, 3)) - picture.astype(int))
        assert difference.mean() < 2


@pytest.mark.parametrize("size", [(67, 43), (901, 577), (112, 300), (113, 112)])
def test_an_own_image_is_prepared_as_by_python(page, model, tmp_path, size):
    rng = np.random.default_rng(sum(size))
    small = rng.integers(0, 256, (9, 7, 3), np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    noisy = np.asarray(image) ^ rng.integers(0, 8, (*size[::-1], 3), np.uint8)
    path = tmp_path / f"own-{size[0]}.png"
    Image.fromarray(noisy).save(path)
    page.choose_file("document.querySelectorAll('.pane input')[0]", path)
    page.wait(
        "document.querySelector('#status').textContent.startsWith("
        f"'Features of {path.name}')"
    )
    square, wanted = expected(model, noisy)
    np.testing.assert_array_equal(pixels(page, 0), square)
    assert relative_error(features(page, 0), wanted) < 1e-3


def test_a_file_that_is_no_image_is_named(page, tmp_path):
    path = tmp_path / "letter.png"
    path.write_text("dear")
    page.choose_file("document.querySelectorAll('.pane input')[1]", path)
    page.wait(
        "document.querySelector('#status.problem').textContent.includes('letter')"
    )


def test_the_last_choice_is_shown(page):
    names = page.run(
        "[...document.querySelector('.pane select').options].map((o) => o.value)"
    )
    slow, quick = [n for n in names if n not in ("chelsea", "coffee", "own")][:2]
    page.run(
        "(() => { const original = window.fetch;"
        "  const held = new Promise((done) => { window.letGo = done; });"
        "  window.fetch = async (url) => {"
        f"    if (`${{url}}`.includes('{slow}')) await held;"
        "    return original(url); }; })()"
    )
    for name in (slow, quick):
        page.run(
            "(() => { const select = document.querySelector('.pane select');"
            f"  select.value = '{name}';"
            "  select.dispatchEvent(new Event('change')); })()"
        )
    status = "document.querySelector('#status').textContent"
    page.wait(f"{status}.startsWith('Features of {quick}')")
    page.run(
        "import('./pixels.js').then(async ({decode}) => { window.letGo();"
        "  const response = await fetch('photographs/chelsea.png');"
        "  await decode(await response.blob()); })"
    )
    assert read(page, "state.panes[0].title") == quick
    assert page.run("document.querySelector('.pane select').value") == quick


def test_an_image_chosen_while_the_model_loads_is_kept(root, tmp_path):
    path = tmp_path / "own.png"
    Image.new("RGB", (50, 40), "teal").save(path)
    hold = (
        "const original = window.fetch;"
        "const held = new Promise((done) => { window.letGo = done; });"
        "window.fetch = async (url) => {"
        "  if (`${url}`.includes('.onnx')) await held;"
        "  return original(url); }"
    )
    with browser.served(root) as address, browser.opened() as page:
        page.send("Page.addScriptToEvaluateOnNewDocument", source=hold)
        page.go(f"{address}/sites/demo/#on=first&patch=2,3")
        page.wait(f"{CANVASES}.length == 2")
        page.choose_file("document.querySelectorAll('.pane input')[1]", path)
        page.wait("(document.querySelectorAll('.pane select')[1].value == 'own')")
        page.run("window.letGo()")
        page.wait(f"{RESULT}.includes('cosine')")
        titles = "state.panes.map(({title}) => title)"
        assert read(page, titles)[1] == "own.png"


def test_opened_as_a_file_it_says_how_to_serve_it(root):
    with browser.opened() as page:
        page.go((root / "sites/demo/index.html").as_uri())
        serve = "document.querySelector('#serve')"
        page.wait(f"getComputedStyle({serve}).visibility === 'visible'")
        text = page.run(f"{serve}.textContent")
        assert "python -m http.server" in text
