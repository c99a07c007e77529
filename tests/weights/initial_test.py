"""Runs that start from weights: what is loaded, refused and then trained.

Run as a program, this file is one of two processes with four devices each; a test
starts both.
"""

import dataclasses
import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
import tiny
from peers import torch

import dinov2_jax
from configs import adapt
from dinov2_jax import (
    errors,
    optimizer,
    schedules,
    sharding,
    ssl_meta_arch,
    train_state,
    train_step,
)
from dinov2_jax.config import checking
from dinov2_jax.data import preprocessing
from dinov2_jax.models import model_config
from dinov2_jax.weights import initial, native, official, reading, state_dict

ROOT = pathlib.Path(__file__).parents[2]
PATCH = 4  # of `tiny`


def make_arch(c):
    return ssl_meta_arch.make_ssl_meta_arch(c, jnp.float32)


def random_params(c, seed):
    """All of a config's submodules, nothing at its initial value."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(make_arch(c).student.init, jax.random.key(0))
    return jax.tree.map(
        lambda x: 0.1 * rng.standard_normal(x.shape).astype(np.float32), shapes
    )


def tensors(params, prefix="", patch_size=PATCH):
    """torch tensors under the reference's names."""
    return {
        f"{prefix}{key}": torch.tensor(np.array(value))
        for key, value in state_dict.state_dict_from_params(
            params, patch_size=patch_size
        ).items()
    }


def write_hub_file(path, params):
    torch.save(tensors(params["backbone"]), path)
    return path


def write_training_checkpoint(path, student, teacher):
    """As the reference's trainer leaves it."""
    model = {}
    for role, params in {"student": student, "teacher": teacher}.items():
        for name, tree in params.items():
            model |= tensors(tree, f"{role}.{name}.")
    torch.save({"model": model, "iteration": 3}, path)
    return path


def config(source, heads="fresh", which="", **sections):
    c = tiny.config(**sections)
    c.init.update({"source": str(source), "heads": heads, "which": which})
    return c


def read(c):
    return initial.read(c, make_arch(c))


def start(c, mesh=None):
    """The state at step 0 and the jitted step."""
    mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
    arch = make_arch(c)
    tx = optimizer.make_optimizer(
        c, jax.eval_shape(arch.student.init, jax.random.key(0))
    )
    weights = initial.read(c, arch)
    state = train_state.make_state(
        c.seed, arch, tx, mesh, weights.params if weights else None
    )
    step = train_step.make_train_step(arch, tx, state, mesh, seed=c.seed)
    return state, step


def same_bits(tree, other):
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((tree, other)))


def differs_everywhere(tree, other):
    tree, other = jax.device_get((tree, other))
    jax.tree.map(lambda a, b: np.any(a != b) or pytest.fail("unmoved"), tree, other)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sources: a hub file with the released 37x37 grid, and a training checkpoint."""
    folder = tmp_path_factory.mktemp("weights")
    large = tiny.config(crops={"global_crops_size": 37 * PATCH})
    write_hub_file(folder / "hub.pth", random_params(large, 0))
    separate = tiny.config(ibot={"separate_head": True, "head_n_prototypes": 32})
    for name, c in {"shared": tiny.config(), "separate": separate}.items():
        write_training_checkpoint(
            folder / f"{name}.pth", random_params(c, 1), random_params(c, 2)
        )
    return folder


# --- what is taken over ---------------------------------------------------------


def test_student_and_teacher_start_as_the_loaded_model(folder):
    c = config(folder / "hub.pth")
    state, _ = start(c)
    same_bits(state.params, state.teacher_params)
    model = dinov2_jax.load(folder / "hub.pth", num_heads=2, image_size=16)
    same_bits(state.teacher_params["backbone"], model.params)
    images = np.random.default_rng(0).standard_normal((2, 24, 32, 3), np.float32)
    ours = jax.jit(make_arch(c).student.backbone.apply)(
        {"params": state.teacher_params["backbone"]}, images
    )
    # At any size but its own too: 16 px are one fourth of the file's grid.
    np.testing.assert_allclose(ours.cls, model(images).cls, rtol=2e-5, atol=2e-6)
    assert int(state.step) == 0
    assert not any(np.any(x) for x in jax.tree.leaves(state.opt_state))


def test_fresh_heads_are_those_of_the_seed(folder):
    scratch, _ = start(config(""))
    for seed, same in ((0, True), (1, False)):
        c = config(folder / "hub.pth")
        c.seed = seed
        state, _ = start(c)
        ours, theirs = (
            x.params["dino_head"]["mlp"]["0"]["kernel"] for x in (state, scratch)
        )
        assert np.array_equal(ours, theirs) == same
        same_bits(state.params, state.teacher_params)


@pytest.mark.parametrize("registers", [0, 4])
def test_positions_are_resampled_as_the_reference_does(folder, tmp_path, registers):
    model = {"num_register_tokens": registers}
    if registers:
        model |= {"interpolate_offset": 0.0, "interpolate_antialias": True}
    large = tiny.config(crops={"global_crops_size": 37 * PATCH}, model=model)
    params = random_params(large, 3)
    source = write_hub_file(tmp_path / "file.pth", params)
    weights = read(config(source, model=model))
    assert "position embeddings 37x37 -> 4x4" in weights.description
    (old, new) = (p["backbone"]["pos_embed"] for p in (params, weights.params))
    grid = torch.tensor(old[:, 1:]).reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    # The reference's two ways, in its own framework.
    how = {"size": (4, 4), "antialias": True} if registers else {}
    how = how or {"scale_factor": (4.1 / 37, 4.1 / 37)}
    grid = torch.nn.functional.interpolate(grid, mode="bicubic", **how)
    np.testing.assert_array_equal(new[:, 0], old[:, 0])
    np.testing.assert_allclose(
        new[:, 1:], grid.permute(0, 2, 3, 1).reshape(1, 16, -1), atol=1e-6
    )


@pytest.mark.parametrize("which", ["", "teacher", "student"])
@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_loaded_heads(folder, kind, which):
    sections = {}
    if kind == "separate":
        sections = {"ibot": {"separate_head": True, "head_n_prototypes": 32}}
    c = config(folder / f"{kind}.pth", "loaded", which, **sections)
    state, _ = start(c)
    expected = random_params(c, 1 if which == "student" else 2)
    same_bits(state.params, expected)
    same_bits(state.teacher_params, expected)
    description = read(c).description
    assert "heads loaded" in description and "4x4," in description
    assert (f"({which})" in description) == bool(which)


def test_head_of_a_disabled_loss_is_ignored(folder):
    weights = read(config(folder / "separate.pth", "loaded", ibot={"loss_weight": 0.0}))
    assert set(weights.params) == {"backbone", "dino_head"}


def test_the_first_gram_teacher(folder, tmp_path):
    c = config("", gram={"loss_weight": 2.0, "undistorted": False})
    assert initial.read_gram(c, make_arch(c)) is None  # the EMA of the run
    params = random_params(c, seed=3)
    c.gram.source = str(write_hub_file(tmp_path / "early.pth", params))
    arch = make_arch(c)
    found = initial.read_gram(c, arch)
    same_bits(found.params, {"backbone": params["backbone"]})
    tx = optimizer.make_optimizer(
        c, jax.eval_shape(arch.student.init, jax.random.key(0))
    )
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    state = train_state.make_state(
        c.seed, arch, tx, mesh, gram=found.params["backbone"]
    )
    same_bits(state.centers["gram"], params["backbone"])
    differs_everywhere(
        state.params["backbone"]["blocks"], state.centers["gram"]["blocks"]
    )
    c.model.update(depth=3)
    with pytest.raises(errors.UserError, match="gram.source must be a model of the"):
        initial.read_gram(c, make_arch(c))


def test_from_scratch():
    assert read(config("")) is None


# --- what then moves ------------------------------------------------------------


def test_only_the_heads_learn_at_first(folder):
    c = config(folder / "hub.pth", optim={"warmup_steps": 0})
    c.init.heads_only_steps = 2
    state, step = start(c)
    loaded = read(c).params["backbone"]
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    scalars = schedules.make_schedules(c)
    assert scalars(0)["momentum_teacher"] == 0.992
    for number in range(3):
        before = jax.tree.map(np.array, state)
        with jax.set_mesh(mesh):
            values = {k: np.float32(v) for k, v in scalars(number).items()}
            state, metrics = step(state, tiny.batch(c, seed=number), values)
        assert int(metrics["skipped"]) == 0
        differs_everywhere(before.params["dino_head"], state.params["dino_head"])
        differs_everywhere(
            before.teacher_params["dino_head"], state.teacher_params["dino_head"]
        )
        if number < 2:
            same_bits(state.params["backbone"], loaded)
            same_bits(state.teacher_params["backbone"], loaded)
        else:
            differs_everywhere(state.params["backbone"], loaded)
            differs_everywhere(state.teacher_params["backbone"], loaded)
        differs_everywhere(state.opt_state.mu, before.opt_state.mu)
    same_bits(read(c).params["backbone"], loaded)  # donation left the host's alone


# --- what is refused ------------------------------------------------------------

# What config.model has otherwise than the file.
MISFITS = [
    {"num_register_tokens": 4},
    {"ffn_layer": "swiglufused"},
    {"embed_dim": 64},
    {"depth": 3},
    {"patch_size": 8},
    {"layerscale": 0.0},
    {"ffn_ratio": 2.0, "qkv_bias": False},
    {"interpolate_antialias": True},
    {"interpolate_offset": 0.0},
]


def message(c):
    with pytest.raises(errors.UserError) as caught:
        read(c)
    assert caught.value.exit_code == 2
    assert c.init.source in str(caught.value)
    return str(caught.value)


def follow(text, c):
    """Sets what a message says to set."""
    flags = re.findall(r"--config\.(\w+)\.(\w+)=([^\s,]+)", text)
    assert flags, text
    for section, name, value in flags:
        kind = type(c[section][name])
        value = value == "True" if kind is bool else kind(value)
        c[section].update({name: value})


@pytest.mark.parametrize("changes", MISFITS, ids=str)
def test_model_mismatch_message_names_the_fix(folder, changes):
    c = config(folder / "hub.pth", model=changes)
    follow(message(c), c)
    read(c)  # what the message says to set is what fits


def test_num_heads_of_a_released_size(folder, tmp_path):
    sizes = {"embed_dim": 384, "depth": 12, "num_heads": 6}
    source = write_hub_file(
        tmp_path / "file.pth", random_params(tiny.config(model=sizes), 0)
    )
    c = config(source, model=sizes | {"num_heads": 12})
    text = message(c)
    assert "num_heads 6, not 12" in text
    follow(text, c)
    read(c)


def test_num_heads_of_an_export(tmp_path):
    """Which states it, other than a file of tensors."""
    arch = make_arch(tiny.config())
    backbone = arch.student.backbone
    prepare = preprocessing.make_preprocessing(tiny.config(), PATCH)
    params = random_params(tiny.config(), 0)
    native.write(tmp_path / "x", backbone, params, prepare, "teacher")
    c = config(tmp_path / "x", model={"num_heads": 4})
    text = message(c)
    assert "x has 2 attention heads, but model.num_heads = 4: set" in text
    follow(text, c)
    read(c)


def test_names_below_a_prefix_are_for_convert(folder, tmp_path):
    nested = tensors(random_params(tiny.config(), 0)["backbone"], "model.net.")
    torch.save(nested, tmp_path / "nested.pth")
    text = message(config(tmp_path / "nested.pth"))
    assert "pass prefix='model.net.', in dinov2-jax convert --to=orbax, and" in text


def test_a_released_size_is_named_by_its_arch():
    found, wanted = (
        model_config.ModelConfig(*model_config.ARCHS[arch])
        for arch in ("vit_small", "vit_base")
    )
    assert initial._model_settings(found, wanted, False) == {"arch": "vit_small"}
    odd = found.replace(depth=5)
    assert initial._model_settings(odd, wanted, False) == {
        "arch": "custom",
        "embed_dim": 384,
        "depth": 5,
        "num_heads": 6,
    }


@pytest.mark.parametrize("name", official.NAMES)
def test_adapt_takes_every_released_backbone(name):
    """As it is, or after setting what the message names."""
    c = adapt.get_config()

    def check():
        wanted = make_arch(c).student.backbone.config
        initial._check_backbone(official.config(name), wanted, False, name)

    if name != c.init.source:
        with pytest.raises(errors.UserError) as caught:
            check()
        follow(str(caught.value), c)
        checking.check(c)
    check()
    assert make_arch(c).student.backbone.config.image_size == 224


HEAD_MISFITS = [
    ("shared", {"dino": {"head_n_prototypes": 32}}, "[32, 1], found [64, 1]"),
    ("shared", {"dino": {"head_hidden_dim": 16}}, "mlp/0/kernel"),
    ("shared", {"dino": {"head_bottleneck_dim": 8}}, "last_layer/weight_v"),
    ("shared", {"dino": {"head_nlayers": 2}}, "mlp/4/kernel  expected none"),
    ("shared", {"dino": {"head_nlayers": 1}}, "mlp/kernel  expected [32, 16]"),
    ("shared", {"ibot": {"separate_head": True}}, "has no ibot_head"),
    ("shared", {"train": {"objective": "coding_rate"}}, "another objective"),
    ("separate", {}, "has a separate ibot_head"),
    ("separate", {"ibot": {"separate_head": True}}, "[64, 1], found [32, 1]"),
]


@pytest.mark.parametrize("kind, sections, words", HEAD_MISFITS)
def test_heads_that_do_not_fit(folder, kind, sections, words):
    c = config(folder / f"{kind}.pth", "loaded", **sections)
    text = message(c)
    assert words in text
    assert text.count("--config.init.heads=fresh") == 1
    follow(text.replace("--config.init.heads=fresh", ""), c)
    if "has a separate" in text:  # separate, and now another number of prototypes
        follow(message(c).replace("--config.init.heads=fresh", ""), c)
    read(c)
    c = config(folder / f"{kind}.pth", "fresh", **sections)
    read(c)  # the other way out


def test_images_are_normalised_as_the_source_expects(tmp_path):
    """The default gives way to the source's; a value of the user's is told."""
    c = tiny.config()
    arch = make_arch(c)
    params = arch.student.init(jax.random.key(0))
    half = (0.5, 0.5, 0.5)
    prepare = preprocessing.for_patches(PATCH)
    prepare = dataclasses.replace(prepare, mean=half, std=half)
    native.write(tmp_path / "x", arch.student.backbone, params, prepare, "teacher")
    c = config(tmp_path / "x")
    for name in ("mean", "std"):
        text = message(c)
        assert text.startswith(
            f"init.source {tmp_path / 'x'} expects images with {name}"
        )
        assert text.endswith(f'set --config.data.{name}="(0.5, 0.5, 0.5)"')
        c.data[name] = half
    assert "not the source's" not in read(c).description
    c.data.std = (0.3, 0.3, 0.3)
    assert "data.std (0.3, 0.3, 0.3), not the source's (0.5" in read(c).description


def test_heads_of_another_kind_of_distillation(tmp_path):
    """A source whose heads regress features has none with prototypes."""
    arch = make_arch(tiny.config())
    params = arch.student.init(jax.random.key(0))
    params["cls_head"] = params.pop("dino_head")
    prepare = preprocessing.for_patches(PATCH)
    native.write(tmp_path / "x", arch.student.backbone, params, prepare, "teacher")
    text = message(config(tmp_path / "x", "loaded"))
    assert "has no dino_head; or start with new heads" in text


def test_sources_without_the_requested_parts(folder, tmp_path):
    missing = message(config(folder / "hub.pth", "loaded"))
    assert "no projection heads" in missing and "--config.init.heads=fresh" in missing
    missing = config(tmp_path / "nowhere.pth")
    assert "--config.init.source: there is no file" in message(missing)
    torch.save(
        {"teacher": tensors(random_params(tiny.config(), 0)["backbone"])},
        tmp_path / "teacher.pth",
    )
    text = message(config(tmp_path / "teacher.pth", which="student"))
    assert "has no student" in text


# --- whole runs -----------------------------------------------------------------


@pytest.fixture(scope="module")
def resumed(uninterrupted, trainer, tmp_path_factory):
    """(flags, workdir, output) of a run that starts from the weights of another."""
    source, _ = uninterrupted
    workdir = tmp_path_factory.mktemp("going_on") / "run"
    flags = [
        *processes.DEBUG,
        "--config.train.steps=6",
        "--config.checkpoint.every=2",
        "--config.init.heads=loaded",
        "--config.init.heads_only_steps=4",
        "--config.optim.freeze_last_layer_steps=0",
    ]
    finished = trainer.run(
        *flags, f"--config.init.source={source}", f"--workdir={workdir}"
    )
    assert finished.code == 0, finished.output
    return flags, workdir, finished.output


def test_run_starts_from_another_run(uninterrupted, resumed):
    old, _ = uninterrupted
    _, workdir, output = resumed
    assert f"initialised from {old}: position embeddings 4x4, heads loaded" in output
    assert not processes.noise(output)

    rows = processes.rows(workdir)
    assert "knn/top1" in rows[0] and rows[0]["step"] == 0
    last = next(row for row in processes.rows(old) if "knn/top1" in row)
    assert rows[0] == last | {"step": 0}
    assert [row["backbone_lr"] > 0 for row in rows[1:7]] == [False] * 4 + [True] * 2

    before = processes.load(old, 20)
    for step, rests in ((2, True), (4, True), (6, False)):
        after = processes.load(workdir, step)
        for name, value in before.items():
            if not name.startswith("/teacher_params/"):
                continue
            for branch in ("/teacher_params/", "/params/"):
                now = after[name.replace("/teacher_params/", branch)]
                same = np.array_equal(value, now)
                assert same == (rests and "/backbone/" in name), (step, branch, name)


@pytest.mark.slow
def test_run_resumes_without_its_initial_file(
    uninterrupted, resumed, trainer, tmp_path
):
    """From the export of a run, killed, the export then deleted."""
    old, _ = uninterrupted
    flags, workdir, _ = resumed
    exported = tmp_path / "exported.pth"
    named = {}
    for name, tree in reading.read(old, heads=True).params.items():
        named |= tensors(tree, f"{name}.", patch_size=8)
    torch.save({"teacher": named}, exported)
    again = tmp_path / "again"
    flags = [*flags, f"--config.init.source={exported}", f"--workdir={again}"]
    checkpoint = again / "checkpoints/2"
    killed = trainer.kill_when(checkpoint.exists, *flags)
    assert killed.code == -9, killed.output
    exported.unlink()
    finished = trainer.run(*flags)
    assert finished.code == 0, finished.output
    assert "resumed from step" in finished.output
    assert "initialised from" not in finished.output
    assert processes.rows(again) == processes.rows(workdir)
    processes.assert_same_arrays(processes.load(again, 6), processes.load(workdir, 6))

    # Another source would change nothing any more.
    finished = trainer.run(*flags, f"--config.init.source={old}")
    assert finished.code == 2
    assert f"init.source: '{exported}' -> '{old}'" in finished.error


def test_missing_file_stops_before_compilation(trainer, tmp_path):
    path = tmp_path / "nowhere.pth"
    flag = ["--config.init.source", str(path)]
    finished = trainer.run(*processes.DEBUG, *flag, f"--workdir={tmp_path / 'run'}")
    assert finished.code == 2, finished.output
    assert finished.output == finished.error + "\n"
    assert f"there is no file or folder {path}" in finished.error


# --- two processes with four devices each ---------------------------------------


def main(source, address, process):
    """One process: where its part of a state lies, as JSON."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, process)
    c = config(source, "loaded", model={"embed_dim": 64})
    before = read(c)
    # A folder that orbax wrote gives every process the same.
    same_bits(reading.read(f"{source}.own", heads=True).params, before.params)
    whole, place = [], train_state.place

    def watched(array, wanted):
        placed = place(array, wanted)
        if array.size >= sharding.MIN_SHARDED_SIZE:
            whole.extend(
                list(array.shape)
                for shard in placed.addressable_shards
                if shard.data.shape == array.shape
            )
        return placed

    train_state.place = watched
    state, _ = start(c, sharding.make_mesh())
    expected = sharding.state_shardings(state, sharding.make_mesh())
    right, leaves = True, 0
    for tree in (state.params, state.teacher_params):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(before.params), strict=True)
        for leaf, host in pairs:
            leaves += 1
            for shard in leaf.addressable_shards:
                right &= np.array_equal(shard.data, host[shard.index])
    print(
        json.dumps(
            {
                "devices": [jax.process_count(), jax.device_count()],
                "right": bool(right),
                "leaves": leaves,
                "whole": whole,
                "as_ruled": all(
                    leaf.sharding == rule
                    for leaf, rule in zip(
                        jax.tree.leaves(state), jax.tree.leaves(expected)
                    )
                ),
            }
        )
    )


def test_each_device_gets_only_its_shard(tmp_path):
    c = tiny.config(model={"embed_dim": 64})
    source = write_training_checkpoint(
        tmp_path / "file.pth", random_params(c, 1), random_params(c, 2)
    )
    weights = reading.read(source, heads=True, num_heads=2)
    native.write(
        pathlib.Path(f"{source}.own"),
        weights.module,
        weights.params,
        weights.preprocessing,
        "teacher",
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(source), address, str(process)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    num_leaves = 2 * len(jax.tree.leaves(random_params(c, 1)))
    for process, (output, error) in zip(started, outputs):
        assert process.returncode == 0, error
        facts = json.loads(output.splitlines()[-1])
        assert facts == {
            "devices": [2, 8],
            "right": True,
            "leaves": num_leaves,
            "whole": [],
            "as_ruled": True,
        }


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
