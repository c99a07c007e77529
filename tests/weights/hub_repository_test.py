"""Repositories of the hub, from its client's own cache and from a server."""

import sys

import hub_server
import numpy as np
import pytest
import random_weights
from peers import torch, transformers

from dinov2_jax import errors, pretrained
from dinov2_jax.embed import __main__ as embed
from dinov2_jax.weights import hub_repository, native, reading

COMMIT = "1" * 40


@pytest.fixture
def cache(monkeypatch, tmp_path):
    folder = tmp_path / "hub"
    hub_server.use(monkeypatch, folder, offline=True)
    return folder


def save_model(folder, seed=0):
    """Save a tiny model of transformers, under its names, as the publisher did."""
    config = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    torch.manual_seed(seed)
    model = transformers.Dinov2Model(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def message_of(source, **options):
    with pytest.raises(errors.UserError) as caught:
        reading.read(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_published_model_in_the_cache_has_its_features(cache, tmp_path):
    theirs = save_model(tmp_path / "model")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"a pickle")
    hub_server.fill_cache(cache, "facebook/dinov2-tiny", tmp_path / "model")
    ours = pretrained.load("hf:facebook/dinov2-tiny")
    images = np.random.default_rng(0).standard_normal((2, 28, 28, 3), np.float32)
    with torch.inference_mode():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        expected = theirs(pixels).last_hidden_state.numpy()
    found = ours(images)
    np.testing.assert_allclose(found.cls, expected[:, 0], atol=2e-5)
    patches = expected[:, 1:].reshape(2, 2, 2, 32)
    np.testing.assert_allclose(found.patches, patches, atol=2e-5)


def test_a_revision(cache, tmp_path):
    for i, ref in enumerate(("main", "v2")):
        save_model(tmp_path / ref, seed=i)
        hub_server.fill_cache(
            cache, "org/name", tmp_path / ref, ref=ref, commit=str(i) * 40
        )
    for address, ref in (
        ("hf:org/name", "main"),
        ("hf:org/name@v2", "v2"),
        (f"hf:org/name@{COMMIT}", "v2"),
    ):
        found = reading.read(address).params["backbone"]["cls_token"]
        expected = reading.read(tmp_path / ref).params["backbone"]["cls_token"]
        np.testing.assert_array_equal(found, expected)


def test_heads_are_read_from_their_folder(cache, tmp_path):
    tensors = random_weights.tensors(random_weights.small_shapes("vits14", depth=1))
    tree = {f"teacher.backbone.{k}": v for k, v in tensors.items()}
    head = random_weights.head_tensors()
    tree |= {f"teacher.dino_head.{k}": v for k, v in head.items()}
    torch.save({k: torch.from_numpy(v) for k, v in tree.items()}, tmp_path / "a.pth")
    weights = reading.read(tmp_path / "a.pth", heads=True, num_heads=2)
    save_model(tmp_path / "model")
    folder = tmp_path / "model" / hub_repository.NATIVE
    native.write(
        folder, weights.module, weights.params, weights.preprocessing, "teacher"
    )
    hub_server.fill_cache(cache, "org/name", tmp_path / "model")
    found = reading.read("hf:org/name", heads=True)
    assert found.params.keys() == {"backbone", "dino_head"}
    assert found.module == weights.module  # and not the model beside it
    assert reading.read("hf:org/name").module.config.embed_dim == 32


def test_offline_the_error_says_where_files_go(cache):
    message = message_of("hf:org/name")
    assert "cannot download hf:org/name (HF_HUB_OFFLINE is set)" in message
    assert f"{cache / 'models--org--name'} has no such snapshot" in message
    assert "into a folder of your own and pass that folder" in message


def test_a_hub_that_is_not_reached(cache, monkeypatch):
    hub_server.use(monkeypatch, cache)  # nothing listens on that port
    message = message_of("hf:org/name@v2")
    assert message.startswith("cannot download hf:org/name@v2 (")
    assert "refused" in message


def test_pickles_are_not_read(cache, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"a pickle")
    hub_server.fill_cache(cache, "org/name", tmp_path / "model")
    assert "has no model.safetensors" in message_of("hf:org/name")


def test_only_what_readers_use_is_downloaded(cache, monkeypatch, tmp_path):
    save_model(tmp_path / "model")
    files = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}
    others = dict.fromkeys(
        ("README.md", "pytorch_model.bin", "weights/a.pth", "native/model.json"), b"x"
    )
    with hub_server.serve() as (hub, endpoint):
        hub.add("org/name", files | others)
        hub_server.use(monkeypatch, cache, endpoint=endpoint)
        folder = hub_repository.find("hf:org/name")
        found = {p.name for p in folder.rglob("*") if p.is_file()}
        assert found == {"config.json", "model.safetensors"}
        assert "no such repository, or it is private" in message_of("hf:org/other")
        assert "has no revision v3" in message_of("hf:org/name@v3")
    assert reading.read(folder).module.config.embed_dim == 32


@pytest.mark.parametrize("address", ["hf:name", "hf:a/b/c", "hf:org/name@", "hf:"])
def test_no_address(address):
    assert "write a repository" in message_of(address)


def test_without_the_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = message_of("hf:org/name")
    assert "hf:org/name needs: pip install 'dinov2-jax[hub]'" in message


def test_embed_looks_for_the_model_first(cache, capsys, tmp_path):
    code = embed.main(
        ["no-images", "--model=hf:org/name", f"--out={tmp_path / 'a.npy'}"]
    )
    assert code == errors.BAD_INPUT
    assert "cannot download hf:org/name" in capsys.readouterr().err
