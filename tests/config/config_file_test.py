import pytest

from configs import default
from dinov2_jax import errors
from dinov2_jax.config import config_file


def overridden(*overrides):
    config = default.get_config()
    config_file.apply(config, overrides)
    return config


def test_values_take_the_type_of_the_field():
    c = overridden(
        "--config.train.batch_size=96",
        "--config.optim.base_lr=1e-3",
        "--config.model.remat=full",
        "--config.ibot.separate_head=true",
        "--config.evaluation.knn_k=(10,)",
        "--config.crops.global_crops_scale=0.2,0.9",
        "--config.init.source=dinov2_vits14",
    )
    assert (c.train.batch_size, c.optim.base_lr) == (96, 1e-3)
    assert (c.model.remat, c.ibot.separate_head) == ("full", True)
    assert c.evaluation.knn_k == (10,)
    assert c.crops.global_crops_scale == (0.2, 0.9)
    assert c.init.source == "dinov2_vits14"


@pytest.mark.parametrize(
    "override, name",
    [
        ("--config.train.batchsize=1", "--config.train.batch_size"),
        ("--config.train.batch_size=x", "--config.train.batch_size=x"),
        ("--config.ibot.separate_head=maybe", "--config.ibot.separate_head=maybe"),
        ("--batch=3", "--batch=3"),
    ],
)
def test_bad_overrides(override, name):
    with pytest.raises(errors.UserError) as raised:
        overridden("--config.train.steps=5", override)
    assert name in str(raised.value)


def test_all_errors_at_once():
    with pytest.raises(errors.UserError) as raised:
        overridden("--config.a=1", "--config.b=2")
    assert "field a" in str(raised.value) and "field b" in str(raised.value)


def test_every_config_of_the_project_loads():
    config = config_file.read("configs/vitg.py", ["--config.train.batch_size=6144"])
    assert config.train.batch_size == 6144


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("notes.md", "# Notes", "AttributeError"),
        ("Makefile", "all:\n\techo", "SyntaxError"),
        ("none.py", "def get_config(): pass", "returned NoneType, not a ConfigDict"),
        ("dict.py", "def get_config(): return {}", "returned dict, not a ConfigDict"),
    ],
)
def test_files_that_are_no_config(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(errors.UserError, match=f"{name} is not a config .*{words}"):
        config_file.read(str(tmp_path / name), [])


def test_an_argument_after_a_colon():
    config = config_file.read("highres:vits", ["--config.init.source=runs/vits"])
    assert (config.model.arch, config.crops.global_crops_size) == ("vit_small", 518)
    with pytest.raises(errors.UserError, match="there is no config vitx"):
        config_file.read("highres:vitx", [])
