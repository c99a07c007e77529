"""`dinov2-jax search` over what `embed` wrote."""

import importlib.util

import numpy as np
import pytest
import random_weights
from PIL import Image

from dinov2_jax.embed import __main__ as embed
from dinov2_jax.eval.retrieval import search
from dinov2_jax.weights import torch_writer


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A folder with weights, pictures and their features."""
    root = tmp_path_factory.mktemp("search")
    shapes = random_weights.small_shapes("vits14")
    for seed in (0, 1):
        drawn = random_weights.tensors(shapes, seed)
        torch_writer.write(root / f"weights{seed}.pth", drawn)
    for i in range(6):
        path = root / f"pictures/{i % 2}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (5, 5, 3), np.uint8)
        Image.fromarray(pixels).resize((40, 40)).save(path)
    done = embed.main(
        [
            str(root / "pictures"),
            f"--model={root / 'weights0.pth'}",
            "--num-heads=2",
            "--size=28",
            f"--out={root / 'features.npy'}",
        ]
    )
    assert done == 0
    return root


def run(index, *flags, seed=0, image="pictures/1/3.png"):
    return search.main(
        [
            str(index / "features.npy"),
            str(index / image),
            f"--model={index / f'weights{seed}.pth'}",
            "--num-heads=2",
            *flags,
        ]
    )


def test_an_image_finds_itself_first(index, capsys):
    out = index / "found.png"
    flags = ["--k=3", f"--out={out}", f"--folder={index / 'pictures'}"]
    assert run(index, *flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["1.0000", "1/3.png"]
    if importlib.util.find_spec("faiss"):
        assert run(index, "--k=3", "--faiss") == 0
        assert capsys.readouterr().out.splitlines() == lines[:4]
    values = [float(line.split()[0]) for line in lines[1:4]]
    assert values == sorted(values, reverse=True) and len(values) == 3
    assert Image.open(out).size == (4 * 120, 120)


@pytest.mark.parametrize(
    "flags, settings, text",
    [
        ([], {"seed": 1}, "made with different weights"),
        ([], {"image": "nowhere.png"}, "nowhere.png"),
        (["--out=x.png"], {}, "add --folder"),
    ],
)
def test_bad_input(index, capsys, flags, settings, text):
    assert run(index, *flags, **settings) == 2
    assert text in capsys.readouterr().err


def test_an_index_that_is_none(index, tmp_path, capsys):
    np.save(tmp_path / "features.npy", np.zeros((3, 4)))
    assert search.main([str(tmp_path / "features.npy"), "x.png", "--model=x"]) == 2
    assert "not an output of dinov2-jax embed" in capsys.readouterr().err
    assert search.main([str(tmp_path / "f.parquet"), "x.png", "--model=x"]) == 2
    assert "embed the folder again with --out=features.npy" in capsys.readouterr().err
