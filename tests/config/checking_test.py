"""Bad configs: each is one line that names the field and the fix."""

import json

import jax
import ml_collections
import pytest

from configs import default, quickstart
from dinov2_jax import errors
from dinov2_jax.config import checking, flattening, resuming

# field, bad value
BAD = [
    ("data.workers", -1),
    ("data.prefetch", -1),
    ("data.max_bad_share", 1.5),
    ("data.max_pixels", 0),
    ("crops.global_crops_size", 0),
    ("crops.local_crops_number", -1),
    ("crops.global_crops_scale", (0.5, 0.3)),
    ("crops.local_crops_scale", (0.0, 0.3)),
    ("model.arch", "custom"),
    ("model.patch_size", 0),
    ("model.in_chans", 0),
    ("data.value_range", (1.0,)),
    ("data.value_range", (2.0, 2.0)),
    ("data.value_range", (0.0, float("nan"))),
    ("data.mean", (0.5, 0.5, float("nan"))),
    ("data.std", (0.5,)),
    ("data.std", (0.5, 0.5, 0.0)),
    ("model.ffn_layer", "swiglu"),
    ("model.layerscale", -1.0),
    ("model.num_register_tokens", -4),
    ("model.drop_path_rate", 1.1),
    ("model.dtype", "float16"),
    ("model.remat", "all"),
    ("model.scan_unroll", 0),
    ("dino.loss_weight", -1.0),
    ("dino.head_n_prototypes", 0),
    ("ibot.head_nlayers", 0),
    ("ibot.mask_sample_probability", 2.0),
    ("ibot.mask_ratio_min_max", (0.6, 0.5)),
    ("train.group_size", 1),
    ("train.group_size", 0),
    ("train.steps", 0),
    ("train.steps", 1000),
    ("train.objective", "dino"),
    ("train.centering", "sinkhorn"),
    ("dino.sinkhorn_queue", -1),
    ("ibot.sinkhorn_queue", -1),
    ("coding_rate.eps", 0.0),
    ("coding_rate.weight", 0.0),
    ("teacher.momentum_teacher", 1.2),
    ("teacher.teacher_temp", 0.0),
    ("optim.base_lr", 0.0),
    ("optim.base_lr", float("nan")),
    ("optim.weight_decay", float("inf")),
    ("optim.warmup_steps", -1),
    ("optim.layerwise_decay", 0.0),
    ("mesh.replica", -1),
    ("mesh.fsdp", -1),
    ("mesh.heartbeat_timeout", 0),
    ("mesh.processes", -1),
    ("mesh.devices", -1),
    ("init.which", "ema"),
    ("init.heads", "old"),
    ("init.heads_only_steps", -1),
    ("checkpoint.every", 0),
    ("log.every", 0),
    ("log.trackers", ("wandb", "wandb")),
    ("evaluation.photos_split", "train"),
    ("evaluation.resize_size", 200),
    ("evaluation.train_path", "somewhere"),
    ("data.std", ("a", "b", "c")),
    ("data.mean", (None, 1.0, 1.0)),
    ("crops.local_crops_scale", ("a", "b")),
    ("ibot.mask_ratio_min_max", (None, 1)),
    ("evaluation.knn_k", ("10",)),
    ("dino.local_loss_weight", -0.5),
    ("gram.loss_weight", -2.0),
    ("gram.start", -1),
    ("gram.refresh_every", 0),
    ("gram.refreshes", -1),
]
# field, bad value, what the message names to put in its place
FIXES = [
    ("data.source", "imagefolder", "tfds, photos"),
    ("crops.global_crops_size", 220, "use 208 or 224"),
    ("crops.global_crops_size", 7, "use 16"),
    ("crops.local_crops_size", 98, "use 96 or 112"),
    ("crops.blur", "gaussian", "choose one of reference, intended, none"),
    ("model.arch", "vit_huge", "vit_small, vit_base"),
    ("model.depth", 12, "--config.model.arch=custom"),
    ("data.mean", (0.5, 0.5), "stats PATH --channels 3"),
    ("train.batch_size", 2000, "use 1984"),
    ("init.which", "student", "--config.init.source="),
    ("init.heads", "loaded", "--config.init.source="),
    ("init.heads_only_steps", 10, "--config.init.source="),
    ("evaluation.image_size", 230, "use 224 or 240"),
    ("dino.sinkhorn_queue", 4, "set --config.train.centering=sinkhorn_knopp"),
    ("ibot.sinkhorn_queue", 4, "set --config.train.centering=sinkhorn_knopp"),
    ("gram.source", "runs/early", "--config.gram.loss_weight=2"),
    ("optim.trainable", "lora", "--config.init.source="),
    ("optim.trainable", "head", "choose one of all, last, lora"),
    ("checkpoint.keep_best", "matching", "add it to evaluation.tasks"),
    ("log.trackers", ("wandb", "neptune"), "'neptune' is none of wandb, mlflow, track"),
    ("checkpoint.keep_best", "all", "--config.checkpoint.keep_best=matching"),
]


def changed(*changes):
    c = default.get_config()
    c.update_from_flattened_dict(dict(changes))
    return c


def message(c):
    with pytest.raises(errors.UserError) as caught:
        checking.check(c)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "field, value, words", [*((field, value, "") for field, value in BAD), *FIXES]
)
def test_a_bad_value_is_named_with_its_fix(field, value, words):
    problem = message(changed((field, value)))
    section, name = field.split(".")
    assert field in problem or (f"{section}." in problem and name in problem)
    assert words in problem
    others = {f for f, *_ in [*BAD, *FIXES]} - {field}
    blamed = [f for f in others if problem.startswith(f) or f"; {f}" in problem]
    # A size that fits no longer may be blamed on its partner.
    assert len(blamed) <= 1, problem


@pytest.mark.parametrize(
    "field",
    ["optim.clip_grad", "train.micro_batches", "data.value_range", "crops.sizes"]
    + ["distill.students", "gram.scale", "train.centering"],
)
def test_a_field_without_a_value(field):
    assert message(changed((field, None))).startswith(f"{field} = None: must have")


def test_seed_too_large_for_jax():
    assert "seed = 4294967296: must be below" in message(changed(("seed", 2**32)))
    c = changed(("seed", 2**32 - 1))
    checking.check(c)
    jax.random.key(c.seed)


def test_config_without_the_default_fields():
    c = ml_collections.ConfigDict({"seed": 1, "data": {"path": "x"}})
    assert "the config is missing checkpoint.every, " in message(c)


def test_the_default_is_good():
    checking.check(default.get_config())


@pytest.mark.parametrize(
    "changes",
    [
        [("crops.local_crops_number", 0), ("crops.local_crops_size", 97)],
        [("train.group_size", 1), ("dino.koleo_loss_weight", 0.0)],
        [("dino.loss_weight", 0.0), ("ibot.loss_weight", 0.0)],
        [("optim.clip_grad", 0.0), ("optim.warmup_steps", 0), ("data.workers", 0)],
        [("ibot.mask_ratio_min_max", (0.0, 0.0))],
        [("crops.blur", "intended")],
        [("crops.blur", "none")],
        [("model.layerscale", 0.0), ("model.drop_path_rate", 0.0)],
        [("init.source", "x"), ("init.heads", "loaded"), ("init.which", "student")],
        [("init.source", "x"), ("init.heads_only_steps", 125_000)],
        [("data.value_range", (-1, 2.5)), ("data.exif_orientation", False)],
        [("data.mean", (0.1, 0.2, 0.3)), ("data.std", (0.1, 0.2, 0.3))],
        [
            ("model.in_chans", 1),
            ("crops.policy", "gray"),
            ("data.mean", (0.5,)),
            ("data.std", (0.5,)),
        ]
        + [("data.source", "photos")],
        [("model.in_chans", 13), ("crops.policy", "multispectral")]
        + [("data." + n, (0.5,) * 13) for n in ("mean", "std")],
    ],
)
def test_disabled_features_are_not_checked(changes):
    checking.check(changed(*changes))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"gram.start": 125_000}, "not below train.steps = 125000"),
        ({"data.augmentation": "host"}, "--config.gram.undistorted=False"),
        ({"gram.scale": 0.5}, "must be at least 1"),
        ({"gram.scale": 2.0, "gram.undistorted": False}, "--config.gram.scale=1"),
        ({"gram.scale": 1.5, "model.patch_size": 14}, ""),
        ({"gram.scale": 1.55}, "use 1.57142857"),
        ({"gram.scale": 1.57142857}, ""),
        ({"data.augmentation": "host", "gram.undistorted": False}, ""),
    ],
)
def test_gram_anchoring(changes, words):
    changes = {"gram.loss_weight": 2.0, "crops.local_crops_number": 0} | changes
    c = changed(*changes.items())
    if words:
        assert words in message(c)
    else:
        checking.check(c)


def test_all_weights_zero():
    weights = ("dino.loss_weight", "dino.koleo_loss_weight", "ibot.loss_weight")
    checking.check(changed(*((w, 0.0) for w in weights), ("gram.loss_weight", 1.0)))
    problem = message(changed(*((w, 0.0) for w in weights)))
    assert "--config.dino.loss_weight=1" in problem


def test_a_loss_that_learns_from_nothing():
    only = [("dino.loss_weight", 0.0), ("dino.koleo_loss_weight", 0.0)]
    checking.check(changed(*only))
    problem = message(changed(*only, ("ibot.mask_sample_probability", 0.0)))
    assert "--config.ibot.mask_sample_probability=0.5" in problem
    features = [
        *(("distill.source", "x"), ("distill.objective", "features")),
        *(("crops.local_crops_number", 0), ("ibot.mask_sample_probability", 0.0)),
        *(("dino.loss_weight", 0.0), ("dino.koleo_loss_weight", 0.0)),
        ("ibot.loss_weight", 0.0),
    ]
    checking.check(changed(*features))
    off = (("distill.features.cls_weight", 0.0), ("distill.features.patch_weight", 0.0))
    assert "cls_weight and patch_weight are both 0" in message(changed(*features, *off))


@pytest.mark.parametrize(
    "changes",
    [
        {"train.group_size": 1, "ibot.mask_sample_probability": 0.4},
        {"ibot.mask_ratio_min_max": (0.0, 0.001)},
    ],
)
def test_masks_that_rounding_leaves_empty(changes):
    changes = {"dino.koleo_loss_weight": 0.0, **changes}
    assert "masks no patch in groups of" in message(changed(*changes.items()))
    alone = changes | {"dino.loss_weight": 0.0}
    (problem,) = message(changed(*alone.items())).split("; ")
    assert "masks no patch in groups of" in problem
    checking.check(changed(*changes.items(), ("ibot.loss_weight", 0.0)))
    half = changes | {"ibot.mask_sample_probability": 0.5}
    half["ibot.mask_ratio_min_max"] = (0.1, 0.5)
    checking.check(changed(*half.items()))


@pytest.mark.parametrize(
    "name, value",
    [
        ("distill.objective", "features"),
        ("distill.patches", "masked"),
        ("distill.patch_share", 0.5),
        ("distill.views", "both"),
        ("distill.teacher_size", 224),
    ],
)
def test_distillation_without_a_teacher(name, value):
    assert "has no effect without a frozen teacher" in message(changed((name, value)))


def test_the_coding_rate_needs_class_tokens_and_replaces_the_rest():
    simdino = ("train.objective", "coding_rate")
    off = ("dino.koleo_loss_weight", 0.0)
    checking.check(changed(simdino, off))
    problem = message(changed(simdino))
    assert problem.startswith("dino.koleo_loss_weight = 0.1")
    assert "--config.dino.koleo_loss_weight=0" in problem
    problem = message(changed(simdino, off, ("dino.loss_weight", 0.0)))
    assert problem.startswith("dino.loss_weight = 0 ") and "; " not in problem
    problem = message(changed(simdino, off, ("gram.loss_weight", 2.0)))
    assert "set --config.gram.loss_weight=0" in problem
    problem = message(changed(simdino, off, ("dino.local_loss_weight", 0.5)))
    assert "set --config.dino.local_loss_weight=1" in problem
    problem = message(changed(simdino, off, ("train.group_size", 1)))
    assert "the coding rate of one image does not depend" in problem
    balanced = ("train.centering", "sinkhorn_knopp")
    queue = ("ibot.sinkhorn_queue", 4)
    checking.check(changed(balanced, queue))
    problem = message(changed(simdino, off, balanced, queue))
    assert "set --config.ibot.sinkhorn_queue=0" in problem and "; " not in problem


@pytest.mark.parametrize("heads, dim, depth", [(3, 32, 2), (0, 32, 2), (2, 32, 0)])
def test_custom_sizes_must_fit(heads, dim, depth):
    problem = message(
        changed(
            ("model.arch", "custom"),
            ("model.embed_dim", dim),
            ("model.depth", depth),
            ("model.num_heads", heads),
        )
    )
    assert f"num_heads = {heads}" in problem and f"embed_dim = {dim}" in problem


def test_more_heads_only_steps_than_steps():
    problem = message(changed(("init.source", "x"), ("init.heads_only_steps", 125_001)))
    assert "init.heads_only_steps = 125001 exceeds train.steps = 125000" in problem


def test_more_last_blocks_than_blocks():
    fields = {"init.source": "x", "optim.trainable": "last", "optim.last_blocks": 24}
    checking.check(changed(*fields.items()))
    problem = message(changed(*fields.items(), ("optim.last_blocks", 25)))
    assert "optim.last_blocks = 25 exceeds the 24 blocks" in problem


def test_without_labels_only_matching_judges():
    tasks = ("evaluation.tasks", ("knn", "matching"))
    for keep_best in ("all", "matching"):
        checking.check(changed(tasks, ("checkpoint.keep_best", keep_best)))
    problem = message(changed(tasks, ("checkpoint.keep_best", "knn")))
    assert "needs labelled images" in problem
    nothing = ("evaluation.tasks", ()), ("checkpoint.keep_best", "all")
    assert "needs something to measure" in message(changed(*nothing))


def test_what_chooses_the_best_weights_stays_the_same(tmp_path):
    """Values of two evaluations could not be compared."""
    keep = (("checkpoint.keep_best", "all"), ("evaluation.tasks", ("matching",)))
    saved(changed(*keep), tmp_path)
    for field, value in (("evaluation.every", 1), ("checkpoint.keep_last", 1)):
        resuming.check_resume(changed(*keep, (field, value)), tmp_path)
    for field, value in (
        ("evaluation.image_size", 112),
        ("evaluation.val_path", "elsewhere"),
        ("checkpoint.keep_best", ""),
    ):
        with pytest.raises(errors.UserError, match=f"{field}: "):
            resuming.check_resume(changed(*keep, (field, value)), tmp_path)


def test_other_channels_need_their_mean_and_deviation():
    problem = message(changed(("model.in_chans", 4)))
    for name in ("mean", "std"):
        assert f"data.{name} has 0 values for model.in_chans = 4: set" in problem
    assert problem.count("stats PATH --channels 4") == 2


def test_policies_fit_their_channels_and_their_operations():
    problem = message(changed(("model.in_chans", 4), ("crops.policy", "gray")))
    assert "crops.policy = 'gray' is for images of 1 channels" in problem
    assert "set --config.crops.policy=multispectral" in problem
    one = [("model.in_chans", 1), ("data.mean", (0.5,)), ("data.std", (0.5,))]
    problem = message(changed(*one, ("crops.policy", "gray"), ("crops.hue", 0.1)))
    assert problem.startswith("crops.hue = 0.1") and "; " not in problem
    problem = message(
        changed(("crops.policy", "histology"), ("crops.solarize_probability", 0.2))
    )
    assert problem.startswith("crops.solarize_probability")
    assert message(changed(("crops.hue", 0.7))).startswith("crops.hue = 0.7")
    checking.check(changed(("crops.policy", "histology"), ("crops.hue", 0.05)))


def test_photos_source_has_at_most_three_channels():
    four = [
        ("crops.policy", "multispectral"),
        ("data.mean", (0.5,) * 4),
        ("data.std", (0.5,) * 4),
    ]
    problem = message(changed(("model.in_chans", 4), ("data.source", "photos"), *four))
    assert problem.startswith("model.in_chans = 4") and "photos" in problem


def test_photos_source_with_a_path():
    problem = message(changed(("data.source", "photos"), ("data.path", "/data/mine")))
    assert problem.startswith("data.path = '/data/mine'")
    assert "--config.data.source=auto" in problem


def test_all_problems_at_once():
    several = [
        ("data.source", "web"),
        ("optim.base_lr", -1.0),
        ("data.workers", -2),
        ("model.drop_path_rate", 7.0),
        ("crops.local_crops_scale", (0.9, 0.1)),
    ]
    problem = message(changed(*several))
    for field, value in several:
        assert f"{field} = {value!r}" in problem
    assert problem.count("; ") == len(several) - 1
    several = [("crops.global_crops_size", 225), ("train.batch_size", 100)]
    several += [("model.in_chans", 4), ("optim.warmup_steps", 200_000)]
    problem = message(changed(*several))
    for field, value in several:
        assert f"{field} = {value}" in problem
    assert problem.count("data.mean") == 2  # what in_chans = 4 lacks, and its flag


def test_the_suggested_values_are_good():
    checking.check(changed(("crops.global_crops_size", 208)))
    checking.check(changed(("train.batch_size", 1984)))


# --- devices --------------------------------------------------------------------


@pytest.mark.parametrize(
    "batch, group, devices, good",
    [
        (2048, 64, 32, True),
        (2048, 64, 1, True),
        (2048, 64, 16, True),
        (2048, 64, 64, False),
        (64, 64, 8, False),
        (64, 16, 3, False),
    ],
)
def test_devices_divide_the_groups(batch, group, devices, good):
    c = changed(("train.batch_size", batch), ("train.group_size", group))
    if good:
        checking.check_devices(c, devices)
        return
    with pytest.raises(errors.UserError) as caught:
        checking.check_devices(c, devices)
    problem = str(caught.value)
    assert f"{devices} devices" in problem and f"train.group_size = {group}" in problem
    flag, _, fix = problem.partition("--config.train.group_size=")
    if fix:  # the suggestion works
        c.train.group_size = int(fix)
        checking.check_devices(c, devices)
        checking.check(c)
    else:
        assert f"a multiple of {devices}" in problem


def test_replicas_divide_the_devices():
    checking.check_devices(changed(("mesh.replica", 4)), 8)
    with pytest.raises(errors.UserError, match="mesh.replica = 3 .* 8 devices"):
        checking.check_devices(changed(("mesh.replica", 3)), 8)


def test_mesh_size_equals_the_device_count():
    checking.check_devices(changed(("mesh.replica", 2), ("mesh.fsdp", 4)), 8)
    checking.check_devices(changed(("mesh.fsdp", 4)), 8)
    with pytest.raises(errors.UserError, match="mesh.fsdp = 3 .* 8 devices"):
        checking.check_devices(changed(("mesh.fsdp", 3)), 8)
    words = "replica = 2 times mesh.fsdp = 2 is 4, but there are 8 devices: "
    with pytest.raises(errors.UserError, match=words):
        checking.check_devices(changed(("mesh.replica", 2), ("mesh.fsdp", 2)), 8)


def test_cluster_size_must_match_the_config():
    checking.check_cluster(default.get_config(), 3, 12)
    expected = changed(("mesh.processes", 4), ("mesh.devices", 16))
    checking.check_cluster(expected, 4, 16)
    with pytest.raises(errors.UserError, match="mesh.devices = 16, .* there are 12: "):
        checking.check_cluster(expected, 4, 12)
    with pytest.raises(errors.UserError, match="found no cluster .* --coordinator"):
        checking.check_cluster(expected, 1, 4)


# --- resume ---------------------------------------------------------------------


def saved(c, folder):
    (folder / "config.json").write_text(
        json.dumps(json.loads(c.to_json_best_effort()), indent=2)
    )
    return folder


def test_resume_of_the_same_config(tmp_path):
    resuming.check_resume(quickstart.get_config(), tmp_path)  # nothing there yet
    saved(quickstart.get_config(), tmp_path)
    resuming.check_resume(quickstart.get_config(), tmp_path)


@pytest.mark.parametrize(
    "field, value",
    [
        ("train.steps", 7),
        ("train.max_nonfinite_steps", 1),
        ("data.workers", 3),
        ("model.remat", "full"),
        ("model.attention", "xla"),
        ("model.scan_unroll", 4),
        ("mesh.replica", 2),
        ("mesh.fsdp", 2),
        ("mesh.processes", 2),
        ("mesh.devices", 8),
        ("mesh.heartbeat_timeout", 60),
        ("checkpoint.every", 5),
        ("log.every", 1),
        ("log.tensorboard", False),
        ("log.trackers", ("wandb",)),
        ("evaluation.every", 0),
    ],
)
def test_harmless_changes(tmp_path, field, value):
    saved(default.get_config(), tmp_path)
    resuming.check_resume(changed((field, value)), tmp_path)


def test_a_frozen_teacher_may_be_elsewhere_but_not_come_or_go(tmp_path):
    distilled = ("distill.source", "runs/a"), ("dino.koleo_loss_weight", 0.0)
    saved(changed(*distilled), tmp_path)
    moved = ("distill.source", "runs/b"), distilled[1]
    resuming.check_resume(changed(*moved), tmp_path)
    with pytest.raises(errors.UserError, match="distill.source: 'runs/a' -> ''"):
        resuming.check_resume(changed(distilled[1]), tmp_path)
    saved(changed(distilled[1]), tmp_path)
    with pytest.raises(errors.UserError, match="distill.source: '' -> 'runs/a'"):
        resuming.check_resume(changed(*distilled), tmp_path)


def test_resume_with_fields_that_had_another_name(tmp_path):
    path = tmp_path / "config.json"
    queues = ("dino.sinkhorn_queue", 5), ("ibot.sinkhorn_queue", 5)
    saved(changed(("init.source", "a.pth"), *queues), tmp_path)
    old = json.loads(path.read_text())
    old["init"]["from"] = old["init"].pop("source")
    for section in ("dino", "ibot"):
        old["train"]["sinkhorn_queue"] = old[section].pop("sinkhorn_queue")
    path.write_text(json.dumps(old))
    resuming.check_resume(changed(("init.source", "a.pth"), *queues), tmp_path)
    with pytest.raises(errors.UserError, match="ibot.sinkhorn_queue: 5 -> 0"):
        resuming.check_resume(changed(("init.source", "a.pth"), queues[0]), tmp_path)


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("optim.base_lr", 1e-3, "optim.base_lr: 0.004 -> 0.001"),
        ("seed", 1, "seed: 0 -> 1"),
        ("model.drop_path_rate", 0.1, "model.drop_path_rate: 0.3 -> 0.1"),
        ("model.dtype", "float32", "model.dtype: 'auto' -> 'float32'"),
        ("train.group_size", 32, "train.group_size: 64 -> 32"),
        ("crops.global_crops_scale", (0.4, 1.0), "[0.32, 1.0] -> [0.4, 1.0]"),
        ("train.batch_size", 1024, "train.batch_size: 2048 -> 1024"),
        # It would change nothing, and config.json would tell a tale.
        ("init.source", "other.pth", "init.source: '' -> 'other.pth'"),
        ("init.heads_only_steps", 9, "init.heads_only_steps: 0 -> 9"),
    ],
)
def test_other_changes_are_refused(tmp_path, field, value, words):
    saved(default.get_config(), tmp_path)
    with pytest.raises(errors.UserError) as caught:
        resuming.check_resume(changed((field, value)), tmp_path)
    problem = str(caught.value)
    assert words in problem and str(tmp_path) in problem and "--workdir" in problem
    assert problem.count("->") == 1 and "\n" not in problem


def test_moved_images_are_the_same_run(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    saved(changed(("data.path", str(tmp_path / "images"))), tmp_path)
    for path in ("images/", "link", "link/../images"):
        config = changed(("data.path", f"{tmp_path}/{path}"))
        resuming.check_resume(config, tmp_path)
        assert resuming.moved(config, tmp_path) == []
    config = changed(("data.path", "/mnt/images"))
    resuming.check_resume(config, tmp_path)  # the fingerprint tells
    (problem,) = resuming.moved(config, tmp_path)
    assert problem == f"data.path: '{tmp_path}/images' -> '/mnt/images'"


def test_a_run_older_than_the_fields_of_init(tmp_path):
    fields = json.loads(default.get_config().to_json_best_effort())
    del fields["init"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    resuming.check_resume(default.get_config(), tmp_path)
    with pytest.raises(errors.UserError, match="init.source: '' -> 'x'"):
        resuming.check_resume(changed(("init.source", "x")), tmp_path)


def test_a_run_from_before_a_field_was_renamed(tmp_path):
    fields = json.loads(default.get_config().to_json_best_effort())
    fields["init"]["from"] = "dinov2_vits14"
    del fields["init"]["source"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    resuming.check_resume(changed(("init.source", "dinov2_vits14")), tmp_path)
    with pytest.raises(errors.UserError, match="init.source: 'dinov2_vits14' -> ''"):
        resuming.check_resume(default.get_config(), tmp_path)


def test_a_run_older_than_the_fields_of_data(tmp_path):
    fields = json.loads(default.get_config().to_json_best_effort())
    for name in ("exif_orientation", "value_range", "mean", "std"):
        del fields["data"][name]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(errors.UserError) as caught:  # it did not turn images
        resuming.check_resume(default.get_config(), tmp_path)
    assert "data.exif_orientation: False -> True" in str(caught.value)
    assert str(caught.value).count("->") == 1
    resuming.check_resume(changed(("data.exif_orientation", False)), tmp_path)


def test_all_differences_are_named(tmp_path):
    saved(default.get_config(), tmp_path)
    path = tmp_path / "config.json"
    tree = json.loads(path.read_text())
    tree["optim"]["momentum"] = 0.5  # a field of another version
    del tree["optim"]["clip_grad"]
    path.write_text(json.dumps(tree))
    with pytest.raises(errors.UserError) as caught:
        resuming.check_resume(changed(("seed", 3)), tmp_path)
    for words in (
        "optim.momentum: 0.5 -> 'not set'",
        "optim.clip_grad: 'not set' -> 3.0",
        "seed: 0 -> 3",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", '{"seed": '])
def test_an_unreadable_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(errors.UserError, match="not valid JSON"):
        resuming.check_resume(default.get_config(), tmp_path)


def test_flatten():
    nested = {"a": {"b": 1, "c": {"d": (2, 3)}}, "e": "f"}
    assert flattening.flatten(nested) == {"a.b": 1, "a.c.d": (2, 3), "e": "f"}


@pytest.mark.parametrize(
    "before, now, fine",
    [
        ("folder", "auto", True),
        ("auto", "webdataset", True),
        ("photos", "auto", False),
        ("folder", "manifest", False),
    ],
)
def test_source_kind_may_change_to_auto(tmp_path, before, now, fine):
    saved(changed(("data.source", before)), tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    del fields["data"]["mixture"]  # as in older runs
    path.write_text(json.dumps(fields))
    config = changed(("data.source", now))
    if fine:
        resuming.check_resume(config, tmp_path)
    else:
        with pytest.raises(errors.UserError, match=f"'{before}' -> '{now}'"):
            resuming.check_resume(config, tmp_path)
    config = changed(("data.mixture", (("/a", 1.0),)))
    (problem,) = resuming.moved(config, tmp_path)
    assert problem.startswith("data.mixture: [] -> [['/a', 1.0]]")
