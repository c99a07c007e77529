"""A loaded model against transformers, the recorded forward passes and plain maths."""

import dataclasses
import io
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights
import skimage.data
import vits
from peers import torch, transformers
from PIL import Image

import dinov2_jax
from dinov2_jax import errors, model_inputs, pretrained
from dinov2_jax.convert import formats
from dinov2_jax.data.decode import image_decoder

RECORDED = pathlib.Path(__file__).parent / "reference"
PHOTOGRAPHS = [skimage.data.astronaut(), skimage.data.chelsea()]


def relative(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def photographs(height, width):
    """Real photographs at a size, normalised, [2, H, W, 3]."""
    resized = [
        np.asarray(Image.fromarray(x).resize((width, height))) for x in PHOTOGRAPHS
    ]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((np.stack(resized) / 255 - mean) / std).astype(np.float32)


def as_torch(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def peer(folder, *, registers, depth=4, size=518, swiglu=False, width=128):
    """A model of transformers with lively random weights, and ours from its folder."""
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        image_size=size,
        patch_size=14,
        use_swiglu_ffn=swiglu,
        attn_implementation="eager",
    )
    model = getattr(transformers, f"{kind}Model")(config).eval()
    state = model.state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    drawn = random_weights.tensors(shapes)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in drawn.items()})
    model.save_pretrained(folder)
    return model, dinov2_jax.load(folder)


def test_float32_is_multiplied_in_float32_on_any_device():
    """As embedding does; GPUs and TPUs would reduce it to TF32 or bfloat16."""
    for dtype, exact in (("float32", True), ("bfloat16", False)):
        module = vits.make(
            patch_size=4, image_size=8, embed_dim=8, depth=1, num_heads=2, dtype=dtype
        )
        images = jnp.zeros((1, 8, 8, 3))
        params = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
        lowered = pretrained._apply.lower(module, params, images, None, ((), (), None))
        assert ("HIGHEST" in lowered.as_text()) == exact


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two heads, four blocks and the released grid, without registers."""
    return peer(tmp_path_factory.mktemp("small"), registers=False)


@pytest.fixture(scope="module")
def registers(tmp_path_factory):
    """The same with registers."""
    return peer(tmp_path_factory.mktemp("registers"), registers=True)


def assert_features_agree(model, ours, height, width):
    images = photographs(height, width)
    with torch.inference_mode():
        tokens = model(as_torch(images)).last_hidden_state.numpy()
    out = ours(images)
    first = tokens.shape[1] - height * width // 14**2
    assert relative(out.cls, tokens[:, 0]) < 1e-5
    if first > 1:
        assert relative(out.registers, tokens[:, 1:first]) < 1e-5
    grid = tokens[:, first:].reshape(2, height // 14, width // 14, -1)
    assert relative(out.patches, grid) < 1e-5
    # Two photographs are not one: features that nothing moves would agree too.
    assert relative(out.cls[0], out.cls[1]) > 0.1


def test_dinov2_model_at_its_native_size(small):
    assert_features_agree(*small, 518, 518)


@pytest.mark.parametrize("size", [(518, 518), (224, 224), (280, 392), (98, 70)])
def test_dinov2_with_registers_model_at_any_size(registers, size):
    assert_features_agree(*registers, *size)


def test_swiglu(tmp_path):
    model, ours = peer(tmp_path, registers=True, depth=3, swiglu=True)
    assert ours.module.config.ffn_layer == "swiglufused"
    assert_features_agree(model, ours, 224, 224)


def test_layers_and_attention_maps_are_those_of_transformers(registers):
    model, ours = registers
    images = photographs(98, 140)
    with torch.inference_mode():
        theirs = model(
            as_torch(images), output_hidden_states=True, output_attentions=True
        )
    out = ours(images, layers=[0, 2, -1], attention=[0, 1, -1])
    assert out.layers.keys() == {0, 2, -1} and out.attention.keys() == {0, 1, -1}
    for index, features in out.layers.items():
        after = theirs.hidden_states[index + 1 if index >= 0 else index].numpy()
        assert relative(features.prenorm, after) < 1e-5
        normed = model.layernorm(torch.from_numpy(after)).detach().numpy()
        assert relative(features.cls, normed[:, 0]) < 1e-5
    rows = ours(images, attention=[1], attention_queries=[0, 7, -1]).attention[1]
    np.testing.assert_allclose(rows, out.attention[1][:, :, [0, 7, -1]], atol=1e-7)
    for index, maps in out.attention.items():
        assert relative(maps, theirs.attentions[index].numpy()) < 1e-5
        np.testing.assert_allclose(np.asarray(maps).sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(out.layers[-1].patches, out.patches)


def test_attention_maps_times_values_are_what_the_network_uses(registers):
    """softmax(QK) V through the projection equals what the block adds."""
    _, ours = registers
    images = photographs(56, 56)
    out = ours(images, layers=[1, 2], attention=[2])
    before = np.asarray(out.layers[1].prenorm, np.float64)
    block = jax.tree.map(lambda x: np.asarray(x[2], np.float64), ours.params["blocks"])

    def norm(x, p):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * p["scale"] + p["bias"]

    qkv = norm(before, block["norm1"]) @ block["attn"]["qkv"]["kernel"]
    values = (qkv + block["attn"]["qkv"]["bias"])[..., 256:].reshape(2, -1, 2, 64)
    mixed = np.einsum("bhqk,bkhc->bqhc", out.attention[2], values).reshape(2, -1, 128)
    added = mixed @ block["attn"]["proj"]["kernel"] + block["attn"]["proj"]["bias"]
    after = before + added * block["ls1"]["gamma"]
    hidden = norm(after, block["norm2"]) @ block["mlp"]["fc1"]["kernel"]
    hidden = torch.from_numpy(hidden + block["mlp"]["fc1"]["bias"])
    hidden = torch.nn.functional.gelu(hidden).numpy()
    ffn = hidden @ block["mlp"]["fc2"]["kernel"] + block["mlp"]["fc2"]["bias"]
    after = after + ffn * block["ls2"]["gamma"]
    assert relative(out.layers[2].prenorm, after) < 1e-5


@pytest.mark.parametrize("file", ["vit_mlp", "vit_swiglu_reg4"])
def test_recorded_forward_passes_through_load(tmp_path, file):
    recorded = np.load(RECORDED / f"{file}.npz")
    config = json.loads(str(recorded["config_json"]))
    params = {
        key.removeprefix("params/"): torch.from_numpy(recorded[key])
        for key in recorded
        if key.startswith("params/")
    }
    torch.save(params, tmp_path / "a.pth")
    model = dinov2_jax.load(tmp_path / "a.pth", num_heads=config["num_heads"])
    sizes = {key.split("/")[0] for key in recorded if key.endswith("/images")}
    assert len(sizes) >= 2
    for size in sizes:
        images = recorded[f"{size}/images"].astype(np.float32).transpose(0, 2, 3, 1)
        out = model(images)
        assert relative(out.cls, recorded[f"{size}/x_norm_clstoken"]) < 1e-5
        patches = recorded[f"{size}/x_norm_patchtokens"]
        assert relative(np.reshape(out.patches, patches.shape), patches) < 1e-5
        assert relative(out.prenorm, recorded[f"{size}/x_prenorm"]) < 1e-5


def test_fits(small):
    _, model = small
    images = photographs(56, 84)
    expected = model(images)
    framed = np.pad(images, ((0, 0), (3, 2), (0, 9), (0, 0)), constant_values=9.0)
    cut = model(framed[:, :, : 84 + 1], fit="crop")
    assert cut.patches.shape == expected.patches.shape
    np.testing.assert_allclose(
        model_inputs.fit_to_patches(framed[:, :, :85], 14, "crop"),
        framed[:, 2:58, 0:84],
    )
    padded = model_inputs.fit_to_patches(images[:, 1:-2, :-3], 14, "pad")
    assert padded.shape == images.shape
    np.testing.assert_allclose(padded[:, 1:54, 1:82], images[:, 1:-2, :-3])
    assert not np.asarray(padded[:, 0]).any() and not np.asarray(padded[:, 54:]).any()
    resized = model_inputs.fit_to_patches(images[:, :60, :80], 14, "resize")
    assert resized.shape == (2, 56, 84, 3)
    with pytest.raises(ValueError) as caught:
        model(photographs(240, 320))
    assert "use 238x322" in str(caught.value)
    assert "'crop' (238x308), 'pad' (252x322)" in str(caught.value)
    with pytest.raises(ValueError, match="use one of error, crop, pad, resize"):
        model(images, fit="stretch")


def test_wrong_images_and_blocks_are_refused(small):
    _, model = small
    images = photographs(56, 56)
    for bad, words in (
        (images[0], "expected \\[B, H, W, 3\\]"),
        (images[..., :1], "expected \\[B, H, W, 3\\]"),
        (np.zeros((1, 56, 56, 3), np.uint8), "expected normalised floats"),
    ):
        with pytest.raises(ValueError, match=words):
            model(bad)
    for shape in ((0, 56, 56, 3), (1, 0, 56, 3), (1, 56, 0, 3)):
        with pytest.raises(
            ValueError, match=f"images are \\[{shape[0]}, .*at least one"
        ):
            model(np.zeros(shape, np.float32))
    for bad in (1, -1, [1.0], ["1"], "1", None, [True], 1.0):
        with pytest.raises(ValueError, match="layers=.*a list of whole numbers"):
            model(images, layers=bad)
        if bad is not None:
            with pytest.raises(ValueError, match="_queries=.*a list of whole numbers"):
                model(images, attention=[0], attention_queries=bad)
        with pytest.raises(ValueError, match="attention=.*a list of whole numbers"):
            model(images, attention=bad)
    assert model(images, layers=np.array([-1])).layers.keys() == {-1}
    with pytest.raises(ValueError, match="there is no block 4"):
        model(images, layers=[4])
    with pytest.raises(ValueError, match="there is no block -5"):
        model(images, attention=[-5])
    with pytest.raises(ValueError, match="there is no token 17: .* 17, 0 to 16"):
        model(images, attention=[0], attention_queries=[17])


@pytest.mark.parametrize("fit", ["error", "crop"])
def test_images_below_one_patch(fit):
    """What the error suggests works."""
    image = np.ones((1, 5, 20, 3), np.float32)
    with pytest.raises(ValueError) as caught:
        model_inputs.fit_to_patches(image, 14, fit)
    message = str(caught.value)
    assert "smaller than the patch size 14: use 14x14" in message
    assert "'crop'" not in message and "fit='pad' (14x28) or 'resize'" in message
    assert model_inputs.fit_to_patches(image, 14, "pad").shape == (1, 14, 28, 3)
    assert model_inputs.fit_to_patches(image, 14, "resize").shape == (1, 14, 14, 3)


def test_images_that_are_none(small):
    _, model = small
    with pytest.raises(ValueError, match="there are no images"):
        model.preprocess([])
    for empty in (np.zeros((0, 9, 3), np.uint8), np.zeros((9, 0, 3), np.uint8)):
        with pytest.raises(ValueError, match="it has no pixels"):
            model.preprocess([empty])
    with pytest.raises(ValueError, match="expected uint8 \\[H, W, 3\\]"):
        model.preprocess([3])


def test_preprocessing_is_that_of_transformers(small, tmp_path):
    _, model = small
    path = tmp_path / "a.png"
    Image.fromarray(PHOTOGRAPHS[1]).save(path)
    images = [PHOTOGRAPHS[0], Image.fromarray(PHOTOGRAPHS[1])]
    ours = model.preprocess(images)
    processor = transformers.BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3
    )
    theirs = processor(images, return_tensors="np")["pixel_values"]
    theirs = theirs.transpose(0, 2, 3, 1)
    mean = np.array(processor.image_mean) - [0.485, 0.456, 0.406]
    theirs = (theirs * processor.image_std + mean) / [0.229, 0.224, 0.225]
    assert ours.shape == (2, 224, 224, 3)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    alpha = np.dstack([PHOTOGRAPHS[1], np.full(PHOTOGRAPHS[1].shape[:2], 90, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(
        model.preprocess(tmp_path / "alpha.png"),
        model.preprocess(Image.fromarray(alpha)),
    )
    with pytest.raises(ValueError, match="expected uint8"):
        model.preprocess(alpha)
    np.testing.assert_array_equal(model.preprocess(path)[0], ours[1])
    np.testing.assert_array_equal(model.preprocess(str(path))[0], ours[1])


def file_bytes(image, kind="png"):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def test_images_of_every_kind(small, tmp_path, monkeypatch):
    _, model = small
    image = PHOTOGRAPHS[1]
    expected = model.preprocess(image)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.png").write_bytes(file_bytes(image))
    floats = (image / 255).astype(np.float32)
    for same in (
        file_bytes(image),
        bytearray(file_bytes(image)),
        io.BytesIO(file_bytes(image)),
        "~/a.png",
        pathlib.Path("~/a.png"),
        floats,
        floats.astype(np.float64),
        jnp.asarray(image),
        torch.from_numpy(image),
        torch.from_numpy(image.transpose(2, 0, 1).copy()),
        torch.from_numpy(floats).requires_grad_(),
    ):
        np.testing.assert_array_equal(model.preprocess(same), expected)
    batch = np.stack([image, image[:, ::-1]])
    for same in (batch, torch.from_numpy(batch), list(batch)):
        np.testing.assert_array_equal(model.preprocess(same)[0], expected[0])
    half = torch.from_numpy(floats).to(torch.bfloat16)
    np.testing.assert_allclose(model.preprocess(half), expected, atol=0.02)


@pytest.mark.parametrize(
    "image, words",
    [
        ("https://example.org/cat.jpg", "cat.jpg is a URL: nothing is downloaded"),
        ("s3://bucket/cat.jpg", "is a URL"),
        (PHOTOGRAPHS[0].astype(np.float32), "pass image.astype\\(np.uint8\\)"),
        (PHOTOGRAPHS[0] * 1e3, "divide by the largest possible value"),
        (PHOTOGRAPHS[0] / 255 - 0.5, "pass it to the model itself"),
        (np.full((9, 9, 3), np.nan), "values from nan to nan"),
        (PHOTOGRAPHS[0].astype(np.int64), "int64 .*: expected uint8"),
        (PHOTOGRAPHS[0][..., 0], "uint8 \\[512, 512\\]: expected"),
        ({"image": 1}, "an image is <class 'dict'>: expected uint8"),
        (None, "an image is <class 'NoneType'>: expected uint8"),
        (b"GIF8", "the image: is a GIF file, but damaged"),
    ],
)
def test_images_that_are_refused(small, image, words):
    _, model = small
    refused = ValueError, image_decoder.BadImage
    with pytest.raises(refused, match=words) as caught:
        model.preprocess(image)
    assert "\n" not in str(caught.value)


def test_raw_floats_are_refused_by_a_call(small):
    _, model = small
    raw = np.stack([PHOTOGRAPHS[0][:56, :56]]).astype(np.float32)
    with pytest.raises(ValueError, match="pass model.preprocess.images.astype") as said:
        model(raw)
    program = str(said.value).partition("pass ")[2]
    images = eval(program, {"model": model, "images": raw, "np": np})
    assert model(images).cls.shape == (1, 128)


def test_the_whole_photograph(small):
    _, model = small
    cat = PHOTOGRAPHS[1]  # 300 x 451
    whole = model.preprocess(cat, size=224, fit="resize")
    assert whole.shape == (1, 154, 224, 3)
    pixels = np.asarray(Image.fromarray(cat).resize((224, 154), Image.BICUBIC))
    np.testing.assert_allclose(whole[0], model.preprocessing.normalize(pixels))
    padded = model.preprocess(PHOTOGRAPHS, size=112, fit="pad")
    assert padded.shape == (2, 112, 112, 3)
    assert not padded[1, :18].any() and not padded[1, -19:].any()
    pixels = np.asarray(Image.fromarray(cat).resize((112, 75), Image.BICUBIC))
    np.testing.assert_allclose(
        padded[1, 18:93], model.preprocessing.normalize(pixels), atol=1e-6
    )
    assert model.preprocess(PHOTOGRAPHS, size=448).shape == (2, 448, 448, 3)
    with pytest.raises(ValueError, match="224x224 and 154x224 px, which is no batch"):
        model.preprocess(PHOTOGRAPHS, fit="resize")
    with pytest.raises(ValueError, match="use size=224"):
        model.preprocess(cat, size=225)
    with pytest.raises(ValueError, match="size='224': pass a whole number"):
        model.preprocess(cat, size="224")
    with pytest.raises(ValueError, match="use one of crop, pad, resize"):
        model.preprocess(cat, fit="error")


def test_masks_are_those_of_transformers(registers):
    model, ours = registers
    images = photographs(56, 84)
    masks = np.random.default_rng(0).random((2, 4, 6)) < 0.4
    with torch.inference_mode():
        tokens = model(
            as_torch(images), bool_masked_pos=torch.from_numpy(masks.reshape(2, -1))
        ).last_hidden_state.numpy()
    found = ours(images, masks=masks)
    assert relative(found.cls, tokens[:, 0]) < 1e-5
    np.testing.assert_array_equal(
        ours(images, masks=masks.reshape(2, -1)).cls, found.cls
    )
    assert relative(ours(images).cls, found.cls) > 1e-3
    for bad in (masks[:1], masks.astype(np.float32), masks[:, :3]):
        with pytest.raises(ValueError, match="expected bool .2, 4, 6. or .2, 24."):
            ours(images, masks=bad)


def test_what_a_model_says_of_itself(registers):
    theirs, model = registers
    wanted = sum(p.numel() for p in theirs.parameters())
    assert model.num_params == wanted
    assert (model.config.embed_dim, model.config.num_heads) == (128, 2)
    text = repr(model)
    assert len(text) < 200 and "128 wide, 4 blocks" in text and "4 registers" in text


def test_a_model_is_a_pytree(small):
    _, model = small
    doubled = jax.tree.map(lambda x: 2 * x, model)
    assert isinstance(doubled, type(model)) and doubled.module == model.module
    np.testing.assert_array_equal(
        doubled.params["cls_token"], 2 * model.params["cls_token"]
    )
    shapes = jax.eval_shape(lambda m: m, model)
    assert shapes.num_params == model.num_params
    images = photographs(56, 56)
    found = jax.jit(lambda m, x: m(x).cls)(model, images)
    assert relative(found, model(images).cls) < 1e-5


def test_dtypes(small, tmp_path):
    _, model = small
    model.save(tmp_path / "a.pth", to="torch-hub", verify=False)
    half = dinov2_jax.load(tmp_path / "a.pth", num_heads=2, dtype="bfloat16")
    images = photographs(56, 56)
    assert half(images).cls.dtype == jnp.bfloat16 and "bfloat16" in repr(half)
    assert half.params["cls_token"].dtype == jnp.float32
    assert relative(half(images).cls, model(images).cls) < 0.05
    for bad in ("int8", "float99", None):
        with pytest.raises(errors.UserError, match="use 'float32' or 'bfloat16'"):
            dinov2_jax.load(tmp_path / "a.pth", num_heads=2, dtype=bad)


def fine_tuned(model, **changes):
    params = jax.tree.map(lambda x: x * 1.01 + 1e-3, model.params)
    return dataclasses.replace(model, params=params | changes)


PATHS = {
    "torch-hub": "a.pth",
    "safetensors": "a.safetensors",
    "huggingface": "hf",
    "timm": "timm.safetensors",
    "onnx": "a.onnx",
    "stablehlo": "hlo",
    "orbax": "own",
}


_QUICK = ("torch-hub", "orbax")  # tests/convert runs all formats


@pytest.mark.parametrize(
    "to",
    [
        *_QUICK,
        *(pytest.param(t, marks=pytest.mark.slow) for t in PATHS if t not in _QUICK),
    ],
)
def test_what_was_fine_tuned_is_saved(registers, tmp_path, monkeypatch, to):
    assert PATHS.keys() == formats.FORMATS.keys()
    monkeypatch.setenv("HOME", str(tmp_path))
    model = fine_tuned(registers[1])
    checked = to in ("torch-hub", "orbax")  # tests/convert runs all others
    size = (28, 42) if formats.FORMATS[to].has_fixed_size else None
    report = model.save(f"~/{PATHS[to]}", to=to, size=size, verify=checked)
    assert report["target"] == to and ("skipped" in report["verified"]) != checked
    if size:
        assert (tmp_path / PATHS[to]).exists()
        return
    found = dinov2_jax.load(f"~/{PATHS[to]}", num_heads=2)
    images = photographs(56, 56)
    assert relative(found(images).cls, model(images).cls) < 1e-5
    with pytest.raises(errors.UserError, match="overwrite=True"):
        model.save(tmp_path / PATHS[to], to=to, verify=False)
    model.save(tmp_path / PATHS[to], to=to, verify=False, overwrite=True)


def test_what_cannot_be_saved(small, tmp_path):
    _, model = small
    for broken, settings, words in (
        (model, dict(to="caffe"), "to='caffe': use one of torch-hub, huggingface"),
        (model, dict(to="onnx"), "should end in .onnx"),
        (model, dict(to="torch-hub", size=(28, 28)), "so leave it out"),
        *(
            (model, dict(to="torch-hub", size=size), "pass height and width in px")
            for size in (56, (56,), "56", (56.0, 56.0))
        ),
        (
            fine_tuned(model, cls_token=np.full((1, 1, 128), np.inf)),
            dict(to="torch-hub"),
            "backbone/cls_token has values that are not finite",
        ),
        (
            fine_tuned(model, head=np.ones(3)),
            dict(to="torch-hub"),
            "not those of the module: head is missing, unknown",
        ),
    ):
        with pytest.raises(errors.UserError, match=words):
            broken.save(tmp_path / "a.pth", **settings)
        assert not list(tmp_path.iterdir())


def test_a_save_replaces_what_lies_in_the_current_folder(small, tmp_path, monkeypatch):
    _, model = small
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        model.save("a.pth", to="torch-hub", verify=False, overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == {"a.pth", "a.pth.json"}


def test_heads_of_no_file_of_the_reference(small, tmp_path):
    _, model = small
    heads = {"cls_head": {"kernel": np.ones((128, 8), np.float32)}}
    model = dataclasses.replace(model, heads=heads)
    for name, to in (("a.pth", "torch-hub"), ("a.safetensors", "safetensors")):
        with pytest.raises(errors.UserError, match="holds the heads cls_head: use"):
            model.save(tmp_path / name, to=to, verify=False)
    assert not list(tmp_path.iterdir())


def test_heads_are_saved(small, tmp_path):
    _, model = small
    rng = np.random.default_rng(0)
    shapes = {
        ("mlp", "0"): (128, 32), ("mlp", "2"): (32, 32), ("mlp", "4"): (32, 16)
    }  # fmt: skip
    head = {"mlp": {}}
    for (_, name), shape in shapes.items():
        head["mlp"][name] = {
            "kernel": rng.standard_normal(shape, np.float32),
            "bias": rng.standard_normal(shape[1], np.float32),
        }
    head["last_layer"] = {
        "weight_g": np.ones((64, 1), np.float32),
        "weight_v": rng.standard_normal((64, 16), np.float32),
    }
    model = dataclasses.replace(model, heads={"dino_head": head})
    path = tmp_path / "a.safetensors"
    model.save(path, to="safetensors", verify=False)
    found = dinov2_jax.load(path, heads=True, num_heads=2).heads["dino_head"]
    jax.tree.map(np.testing.assert_array_equal, found, head)
    with pytest.raises(errors.UserError, match="heads=False"):
        model.save(tmp_path / "hf", to="huggingface", verify=False)
    model.save(tmp_path / "hf", to="huggingface", verify=False, heads=False)
