"""Faults of checkpoints, and of weights that come in and go out."""

from tests.mutants.fault import Fault

FAULTS = (
    Fault(
        "checksum-not-checked",
        "dinov2_jax/checkpoint/checksums.py",
        'if digest != file["sha256"]:',
        "if not digest:",
        ("checkpoint/checksums_test.py::test_two_hundred_flipped_bits_are_detected",),
    ),
    Fault(
        "checkpoint-of-another-dtype-is-cast",
        "dinov2_jax/checkpoint/checkpointer.py",
        '"float" if is_float else leaf.dtype',
        '"any"',
        ("checkpoint/checkpointer_test.py::test_saves_and_restores",),
    ),
    Fault(
        "written-in-place",
        "dinov2_jax/files.py",
        '        with open(temporary, "wb") as file:\n'
        "            yield file\n"
        "            file.flush()\n"
        "            os.fsync(file.fileno())\n"
        "        temporary.replace(path)\n",
        '        with open(path, "wb") as file:\n            yield file\n',
        ("weights/safetensors_file_test.py::test_failed_write_keeps_the_old_file",),
    ),
    Fault(
        "load-is-not-strict",
        "dinov2_jax/weights/architecture.py",
        "if expected.get(name) != found.get(name)",
        "if name in found and expected.get(name) != found.get(name)",
        ("weights/architecture_test.py",),
    ),
    Fault(
        "student-instead-of-teacher",
        "dinov2_jax/weights/checkpoint_tree.py",
        'WHICH = ("teacher", "student")',
        'WHICH = ("student", "teacher")',
        ("weights/checkpoint_tree_test.py",),
    ),
    Fault(
        "patch-embedding-transposed",
        "dinov2_jax/weights/state_dict.py",
        "value.transpose(2, 3, 1, 0)",
        "value.transpose(3, 2, 1, 0)",
        ("weights/state_dict_test.py::test_patch_embedding_is_torch_convolution",),
    ),
    Fault(
        "q-k-v-in-another-order",
        "dinov2_jax/weights/naming.py",
        'enumerate(("query", "key", "value"))',
        'enumerate(("key", "query", "value"))',
        ("weights/naming_test.py",),
    ),
    Fault(
        "class-position-lost-for-timm",
        "dinov2_jax/weights/naming.py",
        "lambda: cls.read() + pos.read()[:, :1]",
        "lambda: cls.read()",
        ("weights/naming_test.py",),
    ),
    Fault(
        "view-one-past-its-storage",
        "dinov2_jax/weights/torch_pickle.py",
        "if last >= storage.size",
        "if last > storage.size",
        ("weights/torch_pickle_test.py::test_views_outside_their_storage_are_refused",),
    ),
    Fault(
        "unknown-opcodes-pass",
        "dinov2_jax/weights/torch_pickle.py",
        'elif name not in ("PROTO", "FRAME", "STOP"):',
        'elif name in ("INST", "OBJ"):',
        ("weights/torch_pickle_test.py::test_escapes_and_bombs_are_refused",),
    ),
    Fault(
        "byte-ranges-of-safetensors-overlap",
        "dinov2_jax/weights/safetensors_file.py",
        "        start = stop\n",
        "        start = stop - tensor.dtype.itemsize\n",
        ("weights/safetensors_file_test.py",),
    ),
    Fault(
        "onnx-class-token-without-position",
        "dinov2_jax/convert/onnx_graph.py",
        'np.float32(weights["cls_token"]) + pos[:, :1]',
        'np.float32(weights["cls_token"])',
        ("convert/onnx_graph_test.py::test_features_equal_the_module",),
    ),
    Fault(
        "pickles-are-fetched-from-the-hub",
        "dinov2_jax/weights/hub_repository.py",
        "ignore_patterns=list(_PICKLES),",
        "ignore_patterns=None,",
        ("weights/hub_repository_test.py::test_only_what_readers_use_is_downloaded",),
    ),
    Fault(
        "a-card-takes-results-of-other-weights",
        "dinov2_jax/hub/evaluations.py",
        "if measured != _short(digest):",
        "if not measured:",
        ("hub/evaluations_test.py::test_results_of_other_weights_are_refused",),
    ),
    Fault(
        "private-weights-go-into-a-public-repository",
        "dinov2_jax/hub/upload.py",
        "if private and not api.model_info(name).private:",
        "if private and not api.model_info(name).id:",
        ("hub/upload_test.py::test_private",),
    ),
    Fault(
        "an-older-push-leaves-its-heads",
        "dinov2_jax/hub/upload.py",
        "if old not in names and any(",
        "if old in names and any(",
        ("hub/upload_test.py::test_a_second_push_removes_what_the_first_left",),
    ),
)
