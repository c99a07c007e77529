"""Faults of the losses, the optimizer, the schedules, the step and its sharding."""

from tests.mutants.fault import Fault

_OPTIMIZER = "optimizer_test.py::test_five_steps_equal_torch"
_META_ARCH = "ssl_meta_arch_test.py::"
_TILED = "losses/tiled/cross_entropy_test.py::"

FAULTS = (
    Fault(
        "sign-of-the-cross-entropy",
        "dinov2_jax/losses/tiled/cross_entropy.py",
        "loss = (mass * lse - expected)",
        "loss = (expected - mass * lse)",
        (f"{_TILED}test_dino",),
    ),
    Fault(
        "teacher-views-not-swapped",
        "dinov2_jax/losses/views.py",
        '"other": ((1,), (0,))',
        '"other": ((0,), (1,))',
        (f"{_TILED}test_dino",),
    ),
    Fault(
        "student-temperature",
        "dinov2_jax/losses/dino.py",
        "STUDENT_TEMP = 0.1",
        "STUDENT_TEMP = 0.07",
        ("losses/dino_test.py",),
    ),
    Fault(
        "koleo-without-normalisation",
        "dinov2_jax/losses/koleo.py",
        "    x = x / norm\n",
        "",
        ("losses/koleo_test.py",),
    ),
    Fault(
        "koleo-across-groups",
        "dinov2_jax/ssl_meta_arch.py",
        "cls[0].reshape(-1, 2, images, cls[0].shape[-1])",
        "cls[0].reshape(1, 2, num_groups * images, cls[0].shape[-1])",
        (f"{_META_ARCH}test_sinkhorn_knopp_spans_the_groups_but_koleo_does_not",),
    ),
    Fault(
        "coding-rate-of-both-views-together",
        "dinov2_jax/objectives/coding_rate_arch.py",
        "views = features.swapaxes(1, 2)",
        "views = features.reshape(len(features), 1, -1, features.shape[-1])",
        ("objectives/coding_rate_arch_test.py::test_equals_torch",),
    ),
    Fault(
        "unfilled-places-of-the-queue-count",
        "dinov2_jax/losses/tiled/queue.py",
        "jnp.concatenate([valid, entries[queue_valid]], axis=1)",
        "jnp.concatenate([valid, entries[queue_valid] | True], axis=1)",
        ("losses/tiled/queue_test.py::test_an_empty_queue_changes_nothing",),
    ),
    Fault(
        "gram-loss-without-normalisation",
        "dinov2_jax/losses/gram.py",
        "    x = x / norm\n",
        "",
        ("losses/gram_test.py",),
    ),
    Fault(
        "gram-teacher-replaced-once-too-often",
        "dinov2_jax/objectives/gram_teacher.py",
        "number <= self.refreshes",
        "number <= self.refreshes + 1",
        ("objectives/gram_teacher_test.py::test_steps_with_a_refresh",),
    ),
    Fault(
        "gram-teacher-from-the-student",
        "dinov2_jax/train_step.py",
        "gram.refresh(state.centers, state.teacher_params, state.step)",
        "gram.refresh(state.centers, state.params, state.step)",
        (
            "objectives/gram_teacher_test.py::"
            "test_the_ema_becomes_the_gram_teacher_at_these_steps_alone",
        ),
    ),
    Fault(
        "gram-crops-distorted",
        "dinov2_jax/augment/on_device.py",
        "changed(crops, 0, first, policy.geometry())",
        "changed(crops, 0, first, policy)",
        (
            "augment/on_device_test.py::"
            "test_undistorted_crops_are_only_flipped_and_turned",
        ),
    ),
    Fault(
        "teacher-sees-the-masks",
        "dinov2_jax/objectives/teacher_view.py",
        "[crops], [None], indices",
        '[crops], [batch["masks"]], indices',
        (f"{_META_ARCH}test_teacher_sees_only_unmasked_global_crops",),
    ),
    Fault(
        "masked-patches-weigh-alike",
        "dinov2_jax/ssl_meta_arch.py",
        'batch["masked_weights"] * scale',
        '(batch["masked_weights"] > 0) * scale',
        (f"{_META_ARCH}test_equals_the_definitions",),
    ),
    Fault(
        "padded-rows-count-in-sinkhorn",
        "dinov2_jax/losses/tiled/targets.py",
        "return jnp.sum(jnp.where(valid, q, 0.0), axis=0)",
        "return jnp.sum(q, axis=0)",
        (f"{_TILED}test_sinkhorn_knopp",),
    ),
    Fault(
        "center-not-divided-by-the-temperature",
        "dinov2_jax/losses/tiled/targets.py",
        "bias = -center / temp",
        "bias = -center",
        (f"{_TILED}test_centering",),
    ),
    Fault(
        "center-momentum",
        "dinov2_jax/losses/teacher_targets.py",
        "CENTER_MOMENTUM = 0.9",
        "CENTER_MOMENTUM = 0.99",
        ("losses/teacher_targets_test.py",),
    ),
    Fault(
        "ema-before-the-update",
        "dinov2_jax/train_step.py",
        "meta_arch.student.merged(params)",
        "meta_arch.student.merged(state.params)",
        ("train_step_test.py::test_three_steps",),
    ),
    Fault(
        "frozen-teacher-not-used",
        "dinov2_jax/train_step.py",
        "state.teacher_params if frozen is None else frozen",
        "state.teacher_params",
        (
            "objectives/teacher_test.py::"
            "test_the_targets_have_the_shapes_of_a_frozen_teacher",
        ),
    ),
    Fault(
        "no-bias-correction",
        "dinov2_jax/optimizer.py",
        "lambda m, v: (m / mu_scale)",
        "lambda m, v: m",
        (_OPTIMIZER,),
    ),
    Fault(
        "weight-decay-on-norms",
        "dinov2_jax/optimizer.py",
        ' or any("norm" in n for n in names)',
        "",
        ("optimizer_test.py",),
    ),
    Fault(
        "layer-decay-off-by-one",
        "dinov2_jax/optimizer.py",
        "layer = range(1, depth + 1)",
        "layer = range(depth)",
        ("optimizer_test.py",),
    ),
    Fault(
        "last-layer-never-frozen",
        "dinov2_jax/optimizer.py",
        'rate = scalars["last_layer_lr"]',
        'rate = scalars["lr"]',
        ("optimizer_test.py",),
    ),
    Fault(
        "one-clip-for-all-submodules",
        "dinov2_jax/optimizer.py",
        "max_norm / (n + 1e-6)) for k, n in norms.items()",
        "max_norm / (sum(norms.values()) + 1e-6)) for k in norms",
        ("optimizer_test.py",),
    ),
    Fault(
        "non-finite-gradient-not-noticed",
        "dinov2_jax/train_step.py",
        "finite &= jnp.isfinite(norm)",
        "del norm",
        (
            "train_step_test.py::"
            "test_a_finite_loss_with_a_non_finite_gradient_is_skipped",
        ),
    ),
    Fault(
        "a-skipped-step-moves",
        "dinov2_jax/train_step.py",
        "lambda new, old: jnp.where(finite, new, old)",
        "lambda new, old: new",
        (
            "train_step_test.py::"
            "test_a_finite_loss_with_a_non_finite_gradient_is_skipped",
        ),
    ),
    Fault(
        "warm-up-off-by-one",
        "dinov2_jax/schedules.py",
        "/ (self.warmup_steps - 1)",
        "/ self.warmup_steps",
        ("schedules_test.py",),
    ),
    Fault(
        "teacher-temperature-jumps",
        "dinov2_jax/schedules.py",
        "start=teacher.warmup_teacher_temp,",
        "start=teacher.teacher_temp,",
        ("schedules_test.py",),
    ),
    Fault(
        "momentum-falls",
        "dinov2_jax/schedules.py",
        "teacher.momentum_teacher, teacher.final_momentum_teacher, steps",
        "teacher.final_momentum_teacher, teacher.momentum_teacher, steps",
        ("schedules_test.py",),
    ),
    Fault(
        "linear-instead-of-square-root-rule",
        "dinov2_jax/schedules.py",
        "base_lr * math.sqrt(batch_size / 1024.0)",
        "base_lr * (batch_size / 1024.0)",
        ("schedules_test.py",),
    ),
    Fault(
        "shard-rule-replicates-matrices",
        "dinov2_jax/sharding.py",
        "if axes and len(shape) > 1",
        "if axes and len(shape) > 2",
        ("sharding_test.py::test_rule",),
    ),
    Fault(
        "rollback-leaves-batches-in",
        "dinov2_jax/runtime/rollback.py",
        "r.failed + before - (r.to + kept)",
        "r.failed - r.to",
        ("runtime/rollback_test.py::test_no_batch_is_taken_twice",),
    ),
    Fault(
        "rows-of-the-resumed-step-are-lost",
        "dinov2_jax/runtime/metric_writer.py",
        'row["step"] <= resume_step',
        'row["step"] < resume_step',
        (
            "runtime/metric_writer_test.py::test_resume_drops_later_rows_and_a_torn_line",
        ),
    ),
    Fault(
        "best-weights-lost-at-the-start",
        "dinov2_jax/checkpoint/best_weights.py",
        "        if self.record is None:\n            if step:",
        "        if self.record is None or not step:\n            if step:",
        (
            "checkpoint/best_weights_test.py::test_a_rollback_to_the_start_keeps_the_best",
        ),
    ),
    Fault(
        "features-distilled-into-no-adapters",
        "dinov2_jax/objectives/feature_regression.py",
        "            adapters=student.adapters,\n",
        "",
        (
            "objectives/distillation_test.py::"
            "test_a_part_of_the_backbone_learns_features",
        ),
    ),
    Fault(
        "students-blow-up-in-secret",
        "dinov2_jax/runtime/rollback.py",
        'max(students or [values["loss/total"]])',
        'values["loss/total"] / (len(students) or 1)',
        ("runtime/rollback_test.py::test_no_student_blows_up_behind_the_others",),
    ),
    Fault(
        "teacher-goes-unnoticed",
        "dinov2_jax/config/resuming.py",
        "before.get(name) and now.get(name))\n",
        "before.get(name) or now.get(name))\n",
        (
            "config/checking_test.py::"
            "test_a_frozen_teacher_may_be_elsewhere_but_not_come_or_go",
        ),
    ),
    Fault(
        "last-evaluation-forgotten",
        "dinov2_jax/train.py",
        "evaluate = step == steps and self.evaluations.owed(step)",
        "evaluate = False",
        ("runtime/out_of_memory_test.py::test_an_evaluation_does_not_end_the_run",),
    ),
)
