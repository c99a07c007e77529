"""Faults of augmentation, masks, sources and the order of images."""

from tests.mutants.fault import Fault

_DEVICE = "augment/on_device_test.py::"
_LOADER = "data/loader_test.py::"

FAULTS = (
    Fault(
        "solarize-threshold",
        "dinov2_jax/augment/on_host.py",
        "pixels < policies.SOLARIZE_THRESHOLD",
        "pixels <= policies.SOLARIZE_THRESHOLD",
        ("augment/on_host_test.py::test_solarize",),
    ),
    Fault(
        "blurred-pixels-cut-off",
        "dinov2_jax/augment/on_host.py",
        "np.rint(x, out=x).astype(np.uint8)",
        "x.astype(np.uint8)",
        ("augment/on_host_test.py::test_blur_against_torch",),
    ),
    Fault(
        "blur-probability",
        "dinov2_jax/augment/policies.py",
        '"reference": (0.0, 0.9, 0.5)',
        '"reference": (0.1, 0.9, 0.5)',
        (f"{_DEVICE}test_ten_thousand_draws",),
    ),
    Fault(
        "hue-range",
        "dinov2_jax/augment/policies.py",
        "hue: float = 0.1",
        "hue: float = 0.2",
        (f"{_DEVICE}test_ten_thousand_draws",),
    ),
    Fault(
        "crop-ratio-not-logarithmic",
        "dinov2_jax/augment/crop_boxes.py",
        "ratio = math.exp(log_low + (log_high - log_low) * v)",
        "ratio = low + (high - low) * v",
        ("augment/crop_boxes_test.py",),
    ),
    Fault(
        "local-crops-as-large-as-global-ones",
        "dinov2_jax/data/multi_crop.py",
        "small = (self.local_crops_size, self.local_crops_scale)",
        "small = (self.local_crops_size, self.global_crops_scale)",
        ("data/multi_crop_test.py::test_every_view_shows_its_share_of_the_image",),
    ),
    Fault(
        "resize-without-antialias",
        "dinov2_jax/augment/resize.py",
        "image.resize((size, size), Image.Resampling.BICUBIC)",
        "image.transform((size, size), Image.Transform.EXTENT, "
        "(0, 0, width, height), Image.Resampling.BICUBIC)",
        ("augment/resize_test.py",),
    ),
    Fault(
        "uint8-cut-off-on-the-device",
        "dinov2_jax/augment/on_device.py",
        "jnp.round(p).astype(jnp.uint8)",
        "p.astype(jnp.uint8)",
        (f"{_DEVICE}test_hue_equals_colorsys",),
    ),
    Fault(
        "mask-ratios-not-stratified",
        "dinov2_jax/data/masking.py",
        "rng.uniform(edges[i], edges[i + 1])",
        "rng.uniform(edges[0], edges[-1])",
        ("data/masking_test.py",),
    ),
    Fault(
        "mask-weights-of-the-group",
        "dinov2_jax/data/masking.py",
        "1.0 / per_crop[flat // masks.shape[1]]",
        "1.0 / len(flat)",
        ("data/masking_test.py::test_indices_and_weights",),
    ),
    Fault(
        "order-of-images-by-worker",
        "dinov2_jax/data/batch_builder.py",
        "entropy = (self.seed, _ORDER, pass_number)",
        'entropy = (self.seed, __import__("os").getpid(), pass_number)',
        (f"{_LOADER}test_workers_and_restarts_change_nothing",),
    ),
    Fault(
        "a-resumed-loader-begins-anew",
        "dinov2_jax/data/loader.py",
        "grain.MapDataset.range(start_step, start_step + num_steps)",
        "grain.MapDataset.range(num_steps)",
        (f"{_LOADER}test_workers_and_restarts_change_nothing",),
    ),
    Fault(
        "the-same-crops-in-every-pass",
        "dinov2_jax/data/batch_builder.py",
        "self._rng(_CROPS, pass_number, drawn_for)",
        "self._rng(_CROPS, drawn_for)",
        (f"{_LOADER}test_seed_step_and_pass_change_the_crops",),
    ),
    Fault(
        "every-cycle-of-crop-sizes-alike",
        "dinov2_jax/augment/crop_sizes.py",
        "default_rng((seed, _SIZES, cycle))",
        "default_rng((seed, _SIZES))",
        ("augment/crop_sizes_test.py::test_sizes_depend_on_seed_and_step_alone",),
    ),
    Fault(
        "crops-image-major",
        "dinov2_jax/data/batch_builder.py",
        "stacked = np.stack(images_crops, axis=1)",
        "stacked = np.stack(images_crops, axis=0)",
        (f"{_LOADER}test_every_image_once_per_pass_and_crop_major",),
    ),
    Fault(
        "skipped-batches-begin-a-step-late",
        "dinov2_jax/data/batch_builder.py",
        "if at <= step)",
        "if at < step)",
        ("runtime/rollback_test.py::test_batches_are_left_out",),
    ),
    Fault(
        "mixture-without-weights",
        "dinov2_jax/data/sources/mixture.py",
        "shares = [weight / total for weight in weights]",
        "shares = [1 / len(weights) for weight in weights]",
        ("data/sources/mixture_test.py::test_shares_and_every_image_once_a_pass",),
    ),
    Fault(
        "comments-of-a-manifest-are-paths",
        "dinov2_jax/data/sources/manifest.py",
        ' and not x.lstrip().startswith(b"#")',
        "",
        ("data/sources/manifest_test.py::test_lists_as_programs_write_them",),
    ),
    Fault(
        "tar-members-without-their-padding",
        "dinov2_jax/data/sources/tar_index.py",
        "blocks = -(-length // tarfile.BLOCKSIZE)",
        "blocks = length // tarfile.BLOCKSIZE",
        ("data/sources/webdataset_test.py::test_places_are_those_that_tarfile_finds",),
    ),
    Fault(
        "images-in-the-order-of-the-walk",
        "dinov2_jax/data/sources/folder_index.py",
        "    paths.sort()\n",
        "",
        ("data/sources/registry_test.py::test_nested_in_sorted_order_any_case",),
    ),
    Fault(
        "exif-ignored",
        "dinov2_jax/data/decode/image_decoder.py",
        "exif.orientation(image, file) if self.exif_orientation else 1",
        "1",
        ("data/decode/pixel_formats_test.py::test_images_are_turned_upright",),
    ),
    Fault(
        "16-bit-gray-clipped",
        "dinov2_jax/data/decode/pixel_formats.py",
        "value_range = (0, np.iinfo(kind).max)",
        "value_range = (0, 255)",
        ("data/decode/image_decoder_test.py::test_16_bit_gray_is_scaled",),
    ),
)
