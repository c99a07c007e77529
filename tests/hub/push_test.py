"""The command `dinov2-jax push`, with weights of a real run."""

import json

import hub_server
import jax
import numpy as np
import pytest
from peers import torch, transformers

from dinov2_jax import errors, pretrained
from dinov2_jax.hub import __main__ as push
from dinov2_jax.weights import reading


@pytest.fixture(scope="module")
def written(uninterrupted, tmp_path_factory):
    """What --out writes of a run, without verification."""
    folder = tmp_path_factory.mktemp("push") / "out"
    code = push.main(
        [str(uninterrupted[0]), "org/name", f"--out={folder}", "--no-verify", "--heads"]
    )
    assert code == errors.DONE
    return folder


def assert_same(found, expected):
    same = jax.tree.map(np.array_equal, found, expected)
    assert all(jax.tree.leaves(same))


def test_the_folder_holds_weights_and_heads(written, uninterrupted):
    expected = reading.read(uninterrupted[0], heads=True)
    assert_same(reading.read(written).params["backbone"], expected.params["backbone"])
    found, config = reading.read(written).module.config, expected.module.config
    assert found == config.replace(
        layerscale=found.layerscale
    )  # only its initial value
    assert_same(reading.read(written / "native", heads=True).params, expected.params)


def test_the_card_tells_of_the_run(written, uninterrupted):
    workdir, _ = uninterrupted
    text = (written / "README.md").read_text()
    data = json.loads((workdir / "data.json").read_text())
    for words in (
        *("20 of 20", f"| Digest of the data | {data['fingerprint']} |"),
        *(data["description"], "32 images; 640 seen in all", 'load("hf:org/name")'),
        *("teacher (EMA of the student)", "not verified: --no-verify"),
        *("started from random weights", "| Heads | dino_head"),
    ):
        assert words in text
    config = json.loads((written / "training_config.json").read_text())
    assert config["train"]["steps"] == 20
    assert str(workdir) not in "".join(
        p.read_text() for p in written.glob("*.*") if p.suffix in (".md", ".json")
    )


def test_a_folder_is_not_replaced_unasked(written, uninterrupted, capsys):
    flags = [str(uninterrupted[0]), "org/name", f"--out={written}", "--no-verify"]
    assert push.main(flags) == errors.BAD_INPUT
    assert f"{written} exists: add --overwrite" in capsys.readouterr().err
    assert (written / "native").is_dir()


def test_numbers_of_the_teacher_are_not_those_of_the_student(
    written, uninterrupted, tmp_path
):
    words = "during training, after step 20"
    assert words in (written / "README.md").read_text()
    flags = ["--which=student", f"--out={tmp_path / 'out'}", "--no-verify"]
    assert push.main([str(uninterrupted[0]), "org/name", *flags]) == errors.DONE
    assert words not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["org"], "write a repository of the Hugging Face hub as hf:ORG/NAME"),
        (["org/name"], "there is no token of the Hugging Face hub"),
        (["org/name", "--out=a/b/c"], "there is no folder"),
    ],
)
def test_errors_before_the_work(monkeypatch, tmp_path, capsys, flags, words):
    hub_server.use(monkeypatch, tmp_path, token="")
    assert push.main(["missing.pth", *flags]) == errors.BAD_INPUT
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1


@pytest.mark.slow
def test_onto_the_hub_and_back(uninterrupted, monkeypatch, tmp_path, capsys):
    pytest.importorskip("torch")
    workdir = str(uninterrupted[0])
    with hub_server.serve() as (hub, endpoint):
        hub_server.use(monkeypatch, tmp_path / "cache", endpoint=endpoint)
        assert push.main([workdir, "org/name", "--heads", "--private"]) == errors.DONE
        assert "load it as hf:org/name" in capsys.readouterr().out
        assert hub.repositories["org/name"]["private"]
        files = hub.files("org/name")
        found = pretrained.load("hf:org/name", heads=True)
    expected = pretrained.load(workdir, heads=True)
    assert_same((found.params, found.heads), (expected.params, expected.heads))
    assert found.preprocessing == expected.preprocessing
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_same(pretrained.load("hf:org/name").params, expected.params)

    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (folder / name).write_bytes(files[name])
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)
    with torch.inference_mode():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        tokens = theirs(pixels).last_hidden_state.numpy()
    np.testing.assert_allclose(found(images).cls, tokens[:, 0], atol=1e-5)


@pytest.mark.slow
def test_nothing_is_uploaded_that_was_not_verified(
    uninterrupted, monkeypatch, tmp_path, capsys
):
    pytest.importorskip("torch")
    with hub_server.serve() as (hub, endpoint):
        hub_server.use(monkeypatch, tmp_path / "cache", endpoint=endpoint)
        monkeypatch.setattr("dinov2_jax.convert.verify.TOLERANCE", 0.0)
        code = push.main([str(uninterrupted[0]), "org/name"])
        assert code == errors.BAD_INPUT
        assert "gives different features" in capsys.readouterr().err
        assert not hub.requests
