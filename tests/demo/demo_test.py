"""The page on a real server: its numbers, what it refuses, and a visit in Chromium."""

import io
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid

import browser
import numpy as np
import pytest
import random_weights
from PIL import Image

import dinov2_jax
from dinov2_jax.data import preprocessing
from dinov2_jax.demo import server as server_lib
from dinov2_jax.demo import session as session_lib
from dinov2_jax.eval.dense import predictions
from dinov2_jax.eval.heads import head_files, head_names
from dinov2_jax.visualize import panels
from dinov2_jax.weights import torch_writer

pytestmark = pytest.mark.extra
SIZE = 84  # 6 patches of 14 px along the longer side


def picture(seed, size=(60, 40)):
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with weights, a head, and images in pictures/."""
    root = tmp_path_factory.mktemp("demo")
    drawn = random_weights.tensors(random_weights.small_shapes("vits14"))
    torch_writer.write(root / "small.pth", drawn)
    spec = head_names.Spec("segmentation", 128, 1, num_classes=3)
    params = random_weights.tensors(head_names.shapes(spec))
    params["bn.running_var"] = np.abs(params["bn.running_var"]) + 0.5
    names = ("sky", "sea", "land")
    head_files.save_head(
        root / "mine.pth", head_files.Head(spec, params, class_names=names)
    )
    (root / "pictures").mkdir()
    for seed in range(4):
        picture(seed).save(root / f"pictures/{seed}.png")
    return root


@pytest.fixture(scope="module")
def model(root):
    return dinov2_jax.load(root / "small.pth", num_heads=2)


@pytest.fixture(scope="module")
def program(root, tmp_path_factory):
    """The program, with heads and a folder: its address."""
    flags = [
        f"--model={root / 'small.pth'}",
        "--num-heads=2",
        f"--size={SIZE}",
        f"--folder={root / 'pictures'}",
        f"--cache={tmp_path_factory.mktemp('features')}",
    ]
    command = [sys.executable, "-m", "dinov2_jax.demo", *flags]
    with subprocess.Popen(
        [*command, "--head", str(root / "mine.pth")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"GRADIO_ALLOWED_PATHS": str(root)},  # not heeded
    ) as process:
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.communicate()[1])
        yield line.split()[0].rstrip("/")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and not rest, errors


def ask(address, path, data=None, headers=None):
    """The status and the content of an answer."""
    request = urllib.request.Request(f"{address}{path}", data, headers or {})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def upload(address, name, content):
    """Sends a file; returns the status and the answer."""
    boundary = uuid.uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; '
        f'filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    )
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return ask(address, "/gradio_api/upload", body, headers)


def sent(address, image, name="image.png"):
    """Sends a Pillow image; returns what a function takes for it."""
    file = io.BytesIO()
    image.save(file, "PNG")
    status, answer = upload(address, name, file.getvalue())
    assert status == 200
    return {
        "path": json.loads(answer)[0],
        "orig_name": name,
        "meta": {"_type": "gradio.FileData"},
    }


def call(address, name, data, event=None):
    """Runs a function of the page as the page does; returns its values or its error."""
    functions = json.loads(ask(address, "/config")[1])["dependencies"]
    number = next(f["id"] for f in functions if f["api_name"] == name)
    session = uuid.uuid4().hex
    body = {
        "data": data,
        "event_data": event,
        "fn_index": number,
        "session_hash": session,
    }
    headers = {"Content-Type": "application/json"}
    status, answer = ask(
        address, "/gradio_api/queue/join", json.dumps(body).encode(), headers
    )
    assert status == 200, answer
    query = f"{address}/gradio_api/queue/data?session_hash={session}"
    with urllib.request.urlopen(query) as stream:
        for line in stream:
            if not line.startswith(b"data:"):
                continue
            message = json.loads(line[5:])
            if message["msg"] == "process_completed":
                output = message["output"]
                return output["data"] if message["success"] else output["error"]
    raise AssertionError("no answer")


def fetched(address, value):
    """The pixels of a picture that a function returned."""
    status, content = ask(address, f"/gradio_api/file={value['path']}")
    assert status == 200
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def twin(model, images, chosen, place):
    """Colours at the centres of all patches, [h, w, 3], without those with a frame."""
    grids, greys = [], []
    for image in images:
        pixels = preprocessing.resize_whole(np.asarray(image), SIZE, 14)
        normalised = model.preprocessing.normalize(pixels)[None]
        grids.append(np.asarray(model(normalised).patches[0], np.float64))
        size = panels.shown_size(grids[-1].shape[:2], session_lib.SIDE)
        grey = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        step = size[0] // grids[-1].shape[1]
        centres = np.asarray(grey.convert("L"), np.float64)[step // 2 :: step]
        greys.append(centres[:, step // 2 :: step])
    query = grids[chosen][place]
    maps = [
        grid @ query / np.linalg.norm(grid, axis=-1) / np.linalg.norm(query)
        for grid in grids
    ]
    low = np.percentile(np.concatenate([m.ravel() for m in maps]), 2)
    colors = [
        0.65 * panels.heat(m, low, 1.0) + 0.35 * grey[..., None]
        for m, grey in zip(maps, greys)
    ]
    return maps, colors


def test_a_click_draws_the_cosines_of_a_twin(program, model):
    images = [picture(10), picture(11, (40, 60))]
    given = [sent(program, image) for image in images]
    # The first image has 4 rows and 6 columns of patches of 93 px.
    event = {"index": [4 * 93 + 20, 1 * 93 + 80], "value": None}
    first, second, text, choice, row, column = call(
        program, "click_first", given, event
    )
    assert (choice, row, column) == ("first", 2, 5)
    maps, colors = twin(model, images, 0, (1, 4))
    for value, expected in zip((first, second), colors):
        step = panels.shown_size(expected.shape[:2], session_lib.SIDE)[0]
        step //= expected.shape[1]
        found = fetched(program, value)[step // 2 :: step, step // 2 :: step]
        assert np.abs(found - expected).max() < 3
    best = np.unravel_index(maps[1].argmax(), maps[1].shape)
    cosine = f"cosine {maps[1].max():.3f}"
    assert f"row {best[0] + 1}, column {best[1] + 1}, {cosine}" in text
    by_place = call(program, "similar", [*given, "first", 2, 5])
    assert by_place[2] == text
    alone = call(program, "similar", [given[0], None, "first", 1, 1])
    assert alone[1] is None and "most similar" not in alone[2]


def test_components_and_attention_are_drawn(program):
    given = [sent(program, picture(seed)) for seed in (10, 11)]
    (sheet,) = call(program, "pca", [given, True, None, None])
    assert fetched(program, sheet).std() > 10
    (sheet,) = call(program, "attention", [given[0], 1])
    assert fetched(program, sheet).std() > 10


def test_an_image_of_the_folder_finds_itself(program, root):
    given = sent(program, Image.open(root / "pictures/2.png"))
    (found,) = call(program, "neighbours", [given])
    captions = [entry["caption"] for entry in found]
    assert captions[0] == "1.000 2.png" and len(captions) == 4
    values = [float(caption.split()[0]) for caption in captions]
    assert values == sorted(values, reverse=True)
    thumbnail = fetched(program, found[0]["image"])
    np.testing.assert_array_equal(thumbnail, np.asarray(picture(2)))


def test_a_head_predicts_as_evaluate_predict_does(program, root, model):
    shown, text = call(program, "head_0", [sent(program, picture(10))])
    head = head_files.load_head(root / "mine.pth", width=128)
    names = head_files.class_names(head)
    expected = predictions.make_predictor(model, head, names)(np.asarray(picture(10)))
    wanted = np.asarray(Image.open(io.BytesIO(expected.picture)))
    assert (np.abs(fetched(program, shown) - wanted.astype(int)) > 2).mean() < 0.01
    assert text.split()[0] == predictions.one_line(expected.summary).split()[0]


def test_files_of_the_disk_are_refused(program, root):
    inside = root / "pictures/0.png"
    for path in (inside, root / "small.pth", "/etc/passwd", "/proc/self/environ"):
        assert ask(program, f"/gradio_api/file={path}")[0] == 403, path
        given = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        error = call(program, "similar", [given, None, "first", 1, 1])
        assert isinstance(error, str | None), path


def test_other_addresses_are_not_fetched(program):
    for path in ("file=https://example.org/", "proxy=https://example.org/"):
        assert ask(program, f"/gradio_api/{path}") == (403, b"not allowed")
        quoted = path.replace(":", "%3A").replace("/", "%2F")
        assert ask(program, f"/gradio_api/{quoted}") == (403, b"not allowed")


def test_other_names_of_the_server_are_refused(program):
    assert ask(program, "/config", headers={"Host": "example.org"})[0] == 400
    assert ask(program, "/config", headers={"Host": "localhost"})[0] == 200


def test_pages_of_other_websites_are_refused(program):
    for origin in ("https://example.org", "http://127.0.0.1:1", "null"):
        answer = ask(program, "/config", headers={"Origin": origin})
        assert answer == (403, b"not allowed"), origin
    assert ask(program, "/config", headers={"Origin": program})[0] == 200


def test_large_files_are_refused(program):
    assert upload(program, "large.png", bytes(server_lib.MAX_UPLOAD + 1))[0] == 413
    assert upload(program, "small.png", bytes(server_lib.MAX_UPLOAD // 8))[0] == 200


def test_images_that_cannot_be_used_are_named(program):
    side = int(session_lib.MAX_PIXELS**0.5) + 1
    large = sent(program, Image.new("1", (side, side)), "large.png")
    error = call(program, "similar", [large, None, "first", 1, 1])
    assert "large.png" in error and "max_pixels" in error
    assert "there is no second image" in call(
        program, "similar", [None, None, "second", 1, 1]
    )


def test_a_port_in_use_is_named(program, root):
    port = program.rpartition(":")[2]
    flags = [f"--model={root / 'small.pth'}", "--num-heads=2", f"--port={port}"]
    done = subprocess.run(
        [sys.executable, "-m", "dinov2_jax.demo", *flags],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert (
        f"--port={port} cannot be used" in done.stderr and done.stderr.count("\n") == 1
    )


def test_a_visit_loads_nothing_from_elsewhere(program):
    with browser.opened() as page:
        page.go(program)
        pictures = (
            "document.querySelectorAll('#first_patches img, #second_patches img')"
        )
        page.wait(
            f"{pictures}.length === 2 && [...{pictures}].every((i) => i.complete)"
        )
        page.click(f"{pictures}[1]", across=0.1, down=0.1)
        result = "document.querySelector('#result').textContent"
        text = page.wait(f"{result}.includes('cosine') && {result}")
        assert "row 1, column 1 of astronaut.png" in text
        assert not page.problems
        assert all(r.startswith((program, "data:", "blob:")) for r in page.requests)
