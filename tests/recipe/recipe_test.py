"""The program `dinov2-jax recipe`, in this process."""

import dataclasses
import pathlib
import re
import shlex

import pytest

from configs import default
from dinov2_jax import errors
from dinov2_jax.config import config_file, flattening
from dinov2_jax.recipe import __main__ as program
from dinov2_jax.recipe import choices, config_text, plan, request

ROOT = pathlib.Path(__file__).parents[2]
SMALL = request.Request(images=100_000, memory=24, hours=8)
REQUESTS = {
    "small": SMALL,
    "few images": dataclasses.replace(SMALL, images=3000, hours=0.5),
    "base": dataclasses.replace(SMALL, arch="vit_base", memory=40, images=2_000_000),
    "large": dataclasses.replace(SMALL, arch="vit_large", memory=80, hours=40),
    "trained": dataclasses.replace(SMALL, source="dinov2_vits14_reg"),
    "giant": dataclasses.replace(SMALL, source="dinov2_vitg14", memory=80, hours=40),
    "in parts": dataclasses.replace(SMALL, arch="vit_large", hours=40),
    "one image a group": dataclasses.replace(SMALL, batch=37),
}


def flat(config):
    return flattening.flatten(config)


@pytest.mark.parametrize("asked", REQUESTS.values(), ids=REQUESTS)
def test_the_printed_file_is_the_config(asked, tmp_path):
    recipe = choices.make_recipe(asked)
    text = config_text.render(recipe)
    (tmp_path / "mine.py").write_text(text)
    config = config_file.read(str(tmp_path / "mine.py"), [])  # checks it
    assert flat(config) == flat(recipe.config)
    lines = [line for line in text.splitlines() if asked.command not in line]
    assert max(map(len, lines)) <= 88
    # Only differences are set, and each has its comment.
    known, config = flat(default.get_config()), flat(config)
    for name, value in config.items():
        assert (f"c.{name} = " in text) == (value != known[name]), name
    body = text.split("c = default.get_config()\n")[1].splitlines()
    assert body[0].startswith("    # ") and body[-1] == "    return c"
    # It fits and keeps to the hours.
    assert plan.needed_bytes(recipe.config) <= 0.9 * asked.memory * 1e9
    assert 0.8 * asked.hours < recipe.hours <= asked.hours or asked.source
    assert recipe.hours <= asked.hours


# The batches of a table made before this program; a recipe may choose a larger one.
@pytest.mark.parametrize(
    "memory, arch, batch",
    [
        *((24, "vit_small", 192), (24, "vit_base", 96), (40, "vit_small", 256)),
        *((40, "vit_base", 160), (40, "vit_large", 64), (80, "vit_small", 512)),
        *((80, "vit_base", 256), (80, "vit_large", 128)),
    ],
)
def test_batches_of_memory_classes(memory, arch, batch):
    asked = dataclasses.replace(SMALL, memory=memory, arch=arch, hours=100)
    chosen = choices.make_recipe(asked).config.train.batch_size
    assert 0.8 * batch <= chosen <= 2 * batch


def test_the_preset_is_the_recipe():
    written = (ROOT / "configs/one_gpu.py").read_text()
    assert written == config_text.render(choices.make_recipe(SMALL))


def test_from_released_weights():
    recipe = choices.make_recipe(REQUESTS["trained"])
    config = flat(recipe.config)
    assert config["init.source"] == "dinov2_vits14_reg"
    assert config["model.num_register_tokens"] == 4
    assert config["model.interpolate_antialias"] is True
    assert config["model.drop_path_rate"] == 0.0
    assert config["train.steps"] == 10_000  # of some 60,000 in eight hours
    assert config["init.heads_only_steps"] == 1000
    assert config["optim.warmup_steps"] == 2000
    assert config["optim.base_lr"] == 2e-4
    assert config["checkpoint.keep_best"] == "all"
    assert "matching" in config["evaluation.tasks"]
    assert flat(choices.make_recipe(REQUESTS["giant"]).config)["model.ffn_layer"] == (
        "swiglufused"
    )


def test_koleo_needs_a_neighbour():
    recipe = choices.make_recipe(REQUESTS["one image a group"])
    assert recipe.config.train.group_size == 1
    assert recipe.config.dino.koleo_loss_weight == 0.0
    assert recipe.config.model.drop_path_rate == 0.0
    text = " ".join(config_text.render(recipe).replace("#", "").split())
    assert "KoLeo is off." in text and "one image has no neighbour" in text
    assert choices.make_recipe(SMALL).config.dino.koleo_loss_weight == 0.1


def test_few_hours_make_a_smaller_batch():
    asked = dataclasses.replace(SMALL, memory=80, device="165", hours=1)
    config = choices.make_recipe(asked).config
    # 1.86 M images: 10,000 steps of 128 but not of 192.
    assert (config.train.batch_size, config.train.steps) == (128, 14_000)


def sizes(**asked):
    """(batch, parts, group) of a recipe."""
    train = choices.make_recipe(dataclasses.replace(SMALL, **asked)).config.train
    return train.batch_size, train.micro_batches, train.group_size


def test_what_does_not_fit_at_once_is_computed_in_parts():
    assert sizes(arch="vit_large", hours=40) == (64, 2, 32)  # 32 images fit
    assert sizes(batch=1024, hours=100) == (1024, 8, 32)  # 192 fit, 128 divide it
    assert sizes(batch=300) == (300, 2, 30)
    assert sizes(batch=64) == (64, 1, 32)
    few = sizes(arch="vit_large", hours=40, images=63)
    assert few == (32, 1, 32)


def run(flags, capsys):
    code = program.main(shlex.split(flags))
    return code, *capsys.readouterr()


def test_few_images_are_told_to_use_frozen_features(capsys):
    flags = "--device-memory 24 --hours 1 --images"
    code, text, notes = run(f"{flags} 9999", capsys)
    assert code == errors.DONE
    assert "Use frozen features first" in text and "Use frozen features first" in notes
    code, text, notes = run(f"{flags} 10000", capsys)
    assert code == errors.DONE
    assert "frozen features" not in text + notes


def test_writes_a_file_once(tmp_path, capsys):
    out = tmp_path / "my_config.py"
    flags = f"--images 100000 --device-memory 24 --hours 8 --out {out}"
    code, text, notes = run(flags, capsys)
    assert (code, notes) == (0, "")
    assert f"--config={out}" in text
    assert out.read_text() == (ROOT / "configs/one_gpu.py").read_text()
    code, text, notes = run(flags, capsys)
    assert (code, text) == (2, "")
    assert notes == f"error: --out={out} exists: name another file\n"


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--device-memory 2", "vit_small needs 2.2 GB .* device with 3 GB or more"),
        ("--device-memory 8 --arch vit_large", "--arch=vit_base or a larger device"),
        ("--device-memory 8 --arch vit_giant2", "--arch=vit_base or a larger device"),
        (
            "--device-memory 24 --source dinov2_vitg14_reg",
            "--source=dinov2_vitl14_reg or a larger device",
        ),
        ("--device-memory 24 --batch 509", "--batch=509: needs .*--batch=192"),
        ("--device-memory 24 --source dinov2_vits", "no released backbone: .*vits14"),
        ("--device-memory 24 --hours 0.02", "enough for .* --hours=0.1 or more"),
        ("--device-memory 24 --device 4090x", "--device=4090x: give one of A100"),
        ("--device-memory 24 --images 15", "use frozen features instead"),
        ("--device-memory 24 --images 30 --batch 32", "fewer than a batch of 32"),
    ],
)
def test_refusals_are_one_line(flags, words, capsys):
    given = {"--images": "100000", "--hours": "8"}
    rest = " ".join(f"{k} {v}" for k, v in given.items() if k not in flags)
    code, text, line = run(f"{flags} {rest}", capsys)
    assert (code, text, line.count("\n")) == (errors.BAD_INPUT, "", 1), line
    assert line.startswith("error: ")
    assert re.search(words, line), line


@pytest.mark.parametrize(
    "flag",
    ["--hours nan", "--hours -1", "--mfu 1.5", "--images 0", "--device-memory x"],
)
def test_bad_numbers(flag, capsys):
    with pytest.raises(SystemExit) as left:
        program.main(shlex.split(f"--images 5 --device-memory 24 --hours 8 {flag}"))
    assert left.value.code == errors.BAD_INPUT
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("asked", REQUESTS.values(), ids=REQUESTS)
def test_the_command_repeats_the_request(asked, capsys):
    flags = asked.command.removeprefix("dinov2-jax recipe ")
    _, text, _ = run(flags, capsys)
    assert text == config_text.render(choices.make_recipe(asked))
