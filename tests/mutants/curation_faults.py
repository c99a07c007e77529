"""Faults of curation: pairs, duplicates, clusters and the choice among them."""

from tests.mutants.fault import Fault

_SEARCH = "curate/curate_search_test.py::"

FAULTS = (
    Fault(
        "margin-of-the-threshold-added",
        "dinov2_jax/curate/search.py",
        "cut = threshold - (",
        "cut = threshold + (",
        (f"{_SEARCH}test_devices_slabs_and_blocks_change_nothing",),
    ),
    Fault(
        "blocks-on-the-diagonal-skipped",
        "dinov2_jax/curate/search.py",
        "np.sum(on_device.starts + width <= start)",
        "np.sum(on_device.starts <= start)",
        (f"{_SEARCH}test_pairs_are_those_of_numpy",),
    ),
    Fault(
        "hashes-near-in-no-band-but-an-equal-one",
        "dinov2_jax/curate/hashes.py",
        "_differences(bits // _BANDS)",
        "_differences(0)",
        ("curate/hashes_test.py::test_pairs_are_those_of_numpy",),
    ),
    Fault(
        "first-row-kept-instead-of-the-best",
        "dinov2_jax/curate/components.py",
        "kept[order[places]] = True",
        "kept[places] = True",
        ("curate/components_test.py::test_the_first_in_the_order_is_kept",),
    ),
    Fault(
        "equal-hashes-leave-with-the-first-only",
        "dinov2_jax/curate/components.py",
        "near = with_twins.leave(image)",
        "near = with_twins.leave(image)[:0]",
        ("curate/components_test.py::test_greedy_groups_of_equal_and_near_hashes",),
    ),
    Fault(
        "images-of-one-colour-are-alike",
        "dinov2_jax/curate/hashes.py",
        "< _STRUCTURE",
        "< 0",
        ("curate/hashes_test.py::test_images_without_structure_are_like_no_other",),
    ),
    Fault(
        "images-without-a-score-pass",
        "dinov2_jax/curate/sample.py",
        "unknown = np.isnan(",
        "unknown = np.isposinf(",
        (
            "curate/sample_test.py::"
            "test_unknown_scores_leave_and_unknown_duplicates_stay",
        ),
    ),
    Fault(
        "only-leaking-images-leave",
        "dinov2_jax/curate/leaks.py",
        "touched |= (component >= 0)",
        "touched |= (component < -1)",
        ("curate/dedup_test.py::test_whole_components_that_touch_a_test_set_leave",),
    ),
    Fault(
        "empty-clusters-stay-empty",
        "dinov2_jax/curate/kmeans.py",
        "(means, counts > 0, totals.spread, 0)",
        "(means, counts >= 0, totals.spread, 0)",
        ("curate/kmeans_test.py::test_empty_clusters_split_the_widest",),
    ),
    Fault(
        "farthest-members-resampled",
        "dinov2_jax/curate/hierarchy.py",
        "np.lexsort((distances, assignment))",
        "np.lexsort((-distances, assignment))",
        ("curate/hierarchy_test.py::test_nearest_members_by_hand",),
    ),
    Fault(
        "one-image-too-many-of-what-is-left-over",
        "dinov2_jax/curate/allocation.py",
        "given[larger[place < left[owner]]] += 1",
        "given[larger[place <= left[owner]]] += 1",
        ("curate/allocation_test.py::test_balance_is_that_of_one_image_at_a_time",),
    ),
    Fault(
        "keyed-hash-without-its-seed",
        "dinov2_jax/curate/keyed_hash.py",
        'hashlib.md5(f"{seed}:".encode(), usedforsecurity=False)',
        'hashlib.md5(b":", usedforsecurity=False)',
        ("curate/allocation_test.py::test_hash_is_md5s",),
    ),
    Fault(
        "query-one-image-short",
        "dinov2_jax/curate/sampling_sql.py",
        "where place <= quota",
        "where place < quota",
        ("curate/allocation_test.py::test_duckdb_makes_the_same_choice",),
    ),
    Fault(
        "maps-of-odd-images-cut-short",
        "dinov2_jax/curate/sscd.py",
        "(sizes + 1) // 2",
        "sizes // 2",
        ("curate/sscd_test.py::test_images_of_several_shapes_agree_with_torch",),
    ),
    Fault(
        "norms-without-their-mean",
        "dinov2_jax/curate/sscd_weights.py",
        "shift - mean * scale",
        "shift",
        ("curate/sscd_test.py::test_images_of_several_shapes_agree_with_torch",),
    ),
    Fault(
        "first-rows-read-for-every-block",
        "dinov2_jax/curate/search.py",
        "block = np.zeros((height, dim), np.float32)",
        "block = np.zeros((height, _width(rows)), np.float32)",
        ("curate/curate_search_test.py::test_files_are_read_in_order",),
    ),
    Fault(
        "folder-digest-of-its-names",
        "dinov2_jax/curate/tables.py",
        "        total.update(bytes.fromhex(files.sha256(file)))\n",
        "",
        ("curate/tables_test.py::test_a_folder_as_spark_writes_it_is_a_table",),
    ),
)
