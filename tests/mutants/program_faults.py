"""Faults of evaluation, embedding, planning, and the programs around a run."""

from tests.mutants.fault import Fault

FAULTS = (
    Fault(
        "knn-without-temperature",
        "dinov2_jax/eval/classification/knn.py",
        "jax.nn.softmax(similarities / temperature, axis=-1)",
        "jax.nn.softmax(similarities, axis=-1)",
        ("eval/classification/knn_test.py",),
    ),
    Fault(
        "sign-of-the-components-is-left-to-chance",
        "dinov2_jax/visualize/pca.py",
        "np.where(skew < 0, -1.0, 1.0)",
        "np.where(skew < 0, 1.0, 1.0)",
        ("visualize/pca_test.py::test_sign_does_not_depend_on_the_basis",),
    ),
    Fault(
        "registers-in-the-attention-maps",
        "dinov2_jax/visualize/attention_maps.py",
        "patches = attention[..., 1 + num_registers :]",
        "patches = attention[..., 1 : 1 + height * width]",
        ("visualize/attention_maps_test.py",),
    ),
    Fault(
        "registers-in-the-mean-of-patches",
        "dinov2_jax/feature_extractor.py",
        "mean = patches.mean(axis=(1, 2))",
        "mean = out.prenorm[:, 1:].mean(axis=1)",
        ("feature_extractor_test.py::test_every_kind_equals_the_module",),
    ),
    Fault(
        "embedding-resumes-over-its-rows",
        "dinov2_jax/embed/resumable_output.py",
        "        self._rows.seek(self._end(self.rows))\n",
        "",
        ("embed/resumable_output_test.py",),
    ),
    Fault(
        "reductions-sent-once",
        "dinov2_jax/aot/collectives.py",
        'passes = 2 if self.kind in ("all-reduce", PADDED_GATHER) else 1',
        "passes = 1",
        ("aot/collectives_test.py::test_a_pair_in_a_loop_counts_once_an_iteration",),
    ),
    Fault(
        "loops-counted-once-too-few",
        "dinov2_jax/aot/hlo.py",
        '+ (direction[1] == "LE")',
        "",
        ("aot/hlo_test.py",),
    ),
    Fault(
        "backward-pass-counted-once",
        "dinov2_jax/runtime/flops.py",
        "per_image=(teacher + 3 * student_forward - sum(embed)) / b",
        "per_image=(teacher + 2 * student_forward - sum(embed)) / b",
        ("runtime/flops_test.py::test_equals_the_table",),
    ),
    Fault(
        "another-batch-size-may-resume",
        "dinov2_jax/config/resuming.py",
        '    "train.steps",\n',
        '    "train.steps",\n    "train.",\n',
        ("config/checking_test.py::test_other_changes_are_refused",),
    ),
    Fault(
        "bad-input-looks-like-a-crash",
        "dinov2_jax/errors.py",
        "BAD_INPUT = 2",
        "BAD_INPUT = 1",
        ("visualize/visualize_test.py::test_bad_flags_are_one_line",),
    ),
    Fault(
        "failed-machines-are-not-requeued",
        "launch/common.sh",
        "$1 == 42 || $1 == 75 ||",
        "$1 == 42 ||",
        ("launch/slurm_test.py::test_requeue",),
    ),
    Fault(
        "parts-whose-memory-is-that-of-the-batch",
        "dinov2_jax/recipe/plan.py",
        "config.train.batch_size / parts * _kept_bytes",
        "config.train.batch_size * _kept_bytes",
        ("recipe/plan_test.py::test_memory_of_compiled_steps",),
    ),
    Fault(
        "queue-of-one-batch-too-many",
        "dinov2_jax/recipe/rules.py",
        'return "sinkhorn_knopp", batches - 1',
        'return "sinkhorn_knopp", batches',
        ("recipe/rules_test.py::test_sinkhorn_needs_rows",),
    ),
    Fault(
        "only-one-student-is-looked-at",
        "dinov2_jax/runtime/monitors.py",
        "if name.endswith(ends[0])",
        "if name == ends[0]",
        ("runtime/monitors_test.py::test_each_of_several_students_is_looked_at",),
    ),
)
