"""Faults of the evaluation suite, over its tasks."""

from tests.mutants.fault import Fault

FAULTS = (
    Fault(
        "probes-without-momentum",
        "dinov2_jax/eval/classification/linear_probe.py",
        "MOMENTUM = 0.9",
        "MOMENTUM = 0.0",
        (
            "eval/classification/linear_probe_test.py"
            "::test_every_classifier_equals_its_own_torch_sgd",
        ),
    ),
    Fault(
        "biases-of-the-regression-are-penalised",
        "dinov2_jax/eval/classification/logistic_regression.py",
        "0.5 * penalty * (weights**2).sum()",
        "0.5 * penalty * (scaled**2).sum()",
        ("eval/classification/logistic_regression_test.py::test_is_the_optimum",),
    ),
    Fault(
        "plain-average-precision",
        "dinov2_jax/eval/retrieval/retrieval.py",
        "np.where(places == 0, 1.0, found / np.maximum(places, 1))",
        "(found + 1) / (places + 1)",
        (
            "eval/retrieval/retrieval_test.py"
            "::test_average_precision_of_rankings_with_junk",
        ),
    ),
    Fault(
        "overlaps-of-windows-count-once",
        "dinov2_jax/eval/segmentation/sliding_window.py",
        "counts[start : start + span] += 1",
        "counts[start : start + span] = 1",
        (
            "eval/segmentation/sliding_window_test.py"
            "::test_merging_equals_windows_one_by_one",
        ),
    ),
    Fault(
        "intersection-counted-twice",
        "dinov2_jax/eval/segmentation/mean_iou.py",
        "self.predicted + self.labelled - self.intersect",
        "self.predicted + self.labelled",
        (
            "eval/segmentation/mean_iou_test.py"
            "::test_scores_equal_a_count_pixel_by_pixel",
        ),
    ),
    Fault(
        "depth-relative-to-the-prediction",
        "dinov2_jax/eval/depth/depth_metrics.py",
        "np.mean(np.abs(t - p) / t)",
        "np.mean(np.abs(t - p) / p)",
        ("eval/depth/depth_metrics_test.py::test_values_worked_out_by_hand",),
    ),
    Fault(
        "axes-of-matlab-kept",
        "dinov2_jax/eval/depth/nyu_labeled.py",
        "file[name][int(path.name) - 1].T",
        "file[name][int(path.name) - 1]",
        ("eval/depth/depth_data_test.py::test_labeled_file_of_nyu",),
    ),
    Fault(
        "range-of-the-hub-for-all-heads",
        "dinov2_jax/eval/heads/head_files.py",
        'if hub_range and (wanted.kind, wanted.dataset) == ("depth", "nyu"):',
        'if (wanted.kind, wanted.dataset) == ("depth", "nyu"):',
        ("eval/heads/head_files_test.py::test_the_range_of_the_hub_is_a_choice",),
    ),
    Fault(
        "cutmix-keeps-the-targets",
        "dinov2_jax/eval/finetuning/mixing.py",
        "_blend(targets, 1.0 - inside.mean(dtype=jnp.float32))",
        "targets",
        ("eval/finetuning/mixing_test.py::test_cutmix_equals_a_loop",),
    ),
    Fault(
        "lora-without-its-scale",
        "dinov2_jax/models/lora.py",
        "self.alpha / self.rank * change",
        "self.alpha * change",
        ("eval/finetuning/adaptation_test.py::test_lora_changes_weights_by_its_rank",),
    ),
    Fault(
        "places-matched-from-corners",
        "dinov2_jax/eval/dense/matching.py",
        "* second_grid[axis] / length - 0.5)",
        "* second_grid[axis] / length)",
        (
            "eval/dense/matching_test.py"
            "::test_crops_of_one_picture_match_and_a_wrong_box_does_not",
        ),
    ),
)
