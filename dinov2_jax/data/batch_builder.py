"""The batch of a training step, built from the step's number.

A batch has G groups of B images (`train.batch_size` = G * B, `train.group_size` = B);
the first axis of every array but the last is G. Letters: L local crops per image,
S and s the sizes of global and local crops in pixels, C channels, N patches of a
global crop, M the upper bound of masked patches per group.

    global_crops    uint8    [G, 2B, S, S, C]  crop 0 of all B images, then crop 1
    local_crops     uint8    [G, LB, s, s, C]  likewise crop-major
    masks           bool     [G, 2B, N]        True: masked in the student's input
    masked_indices  int32    [G, M]            ascending in the flat 2B * N; padding 0
    masked_weights  float32  [G, M]            1 / masked patches of the crop; padding 0
    augmentation_keys  uint32 [G, B, 2]        one per image, if the device augments
    gram_crops      uint8    [G, 2B, S', S', C]  as global_crops, if S' is another size
    bad_images      BAD_IMAGE [any]            unreadable images; stays on the host

S, s and so N and M differ from step to step in a run of several resolutions (see
`augment.crop_sizes`); all groups of a step have the same.

The batch of step n depends only on (seed, data, n). Image i of group g is number
n * G * B + g * B + i in the run; every pass over the data is a permutation of it that
depends on (seed, pass); crops and keys depend on (seed, pass, image), masks on (seed,
number of the group in the run). In a mixture, which may show an image several times in
a pass, the place in the pass (see `mixture`) replaces the image. The number
of workers and restarts make no difference. After a rollback (see `rollback`), n also
counts the skipped batches.
With P processes, process p builds the groups p * G / P to (p + 1) * G / P - 1.

An unreadable image is replaced by another one, drawn from (seed, pass, offset,
attempt), and reported in `bad_images` by the process that failed to read it.
"""

import dataclasses

import grain.experimental
import numpy as np

from dinov2_jax import errors
from dinov2_jax.augment import crop_sizes, policies
from dinov2_jax.data import batch_spec as batch_spec_lib
from dinov2_jax.data import masking, multi_crop
from dinov2_jax.data import workers as workers_lib
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import base

BAD_IMAGE = np.dtype([("index", np.int64), ("name", "U1024"), ("reason", "U120")])
_LARGE = 2**24  # pixels; larger images are recorded with their size
MAX_ATTEMPTS = 64  # unreadable images in a row before the loader gives up

# Every use of randomness has its own stream.
_ORDER, _CROPS, _MASKS, _REPLACEMENT, _KEYS = range(5)


@dataclasses.dataclass(frozen=True)
class BatchBuilder:
    """Function from the number of a step to this process's part of its batch.

    Attributes:
      source: The images.
      multi_crop: Makes the crops of an image. If it has no policy, the device augments
        and batches have keys.
      seed: The seed of the run.
      batch_size: Images per batch over all processes, G * B.
      group_size: Images per group, B.
      grid: (h, w), patches of a global crop.
      mask_probability: Share of the global crops that are masked.
      mask_ratio_min_max: Smallest and largest share of patches masked in such a crop.
      process_index: Index of this process, p.
      process_count: Number of processes, P, a divisor of G.
      skips: (step, number of batches skipped from this step on) of each rollback.
      activity: Where to record which image is being prepared.
      sizes: Gives the sizes of the crops of each step; None: always those of
        `multi_crop`.
    """

    source: base.Source
    multi_crop: multi_crop.MultiCrop
    seed: int
    batch_size: int
    group_size: int
    grid: tuple[int, int]
    mask_probability: float
    mask_ratio_min_max: tuple[float, float]
    process_index: int = 0
    process_count: int = 1
    skips: tuple[tuple[int, int], ...] = ()
    activity: workers_lib.Activity | None = None
    sizes: crop_sizes.CropSizes | None = None

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Return the groups of this process in the batch of a step."""
        num_groups = self.batch_size // self.group_size
        local = num_groups // self.process_count
        first = self.process_index * local
        step = int(step) + sum(left_out for at, left_out in self.skips if at <= step)
        builder = self._sized(self.sizes(step)) if self.sizes else self
        bad: list[tuple[int, str, str]] = []
        groups = [
            builder._group(step * num_groups + first + g, bad) for g in range(local)
        ]
        batch = {
            name: np.stack([group[name] for group in groups]) for name in groups[0]
        }
        batch["bad_images"] = np.array(bad, BAD_IMAGE)
        self._note("")
        return batch

    def _sized(self, size: crop_sizes.Size) -> "BatchBuilder":
        """Return the builder of batches with crops of these sizes."""
        crops = self.multi_crop
        patch = crops.global_crops_size // self.grid[0]
        side = size.global_size // patch
        return dataclasses.replace(
            self,
            multi_crop=dataclasses.replace(
                crops,
                global_crops_size=size.global_size,
                local_crops_size=size.local_size,
            ),
            grid=(side, side),
        )

    def _note(self, name: str) -> None:
        if self.activity is not None:
            self.activity.begin(name)

    def _group(self, number: int, bad: list) -> dict[str, np.ndarray]:
        """Return one group, given its number in the run."""
        b, crops, keys = self.group_size, [], []
        places = self.source.pass_length
        for i in range(b):
            pass_number, offset = divmod(number * b + i, places)
            place = self.place(pass_number, offset)
            crops.append(self._crops(place, pass_number, offset, bad))
            entropy = np.random.SeedSequence((self.seed, _KEYS, pass_number, place))
            keys.append(entropy.generate_state(2))
        num_crops, num_patches = 2 * b, self.grid[0] * self.grid[1]
        ratios = dict(
            probability=self.mask_probability, ratio_min_max=self.mask_ratio_min_max
        )
        masks = masking.group_masks(
            self._rng(_MASKS, number), num_crops=num_crops, grid=self.grid, **ratios
        )
        size = masking.max_masked(
            num_crops=num_crops, num_patches=num_patches, **ratios
        )
        indices, weights = masking.mask_indices(masks, size)
        group = dict(
            global_crops=_crop_major([pair[0] for pair in crops]),
            local_crops=_crop_major([pair[1] for pair in crops]),
            masks=masks,
            masked_indices=indices,
            masked_weights=weights,
        )
        if self.multi_crop.gram_crops_size:
            group["gram_crops"] = _crop_major([larger for *_, larger in crops])
        if self.multi_crop.policy is None:
            group["augmentation_keys"] = np.stack(keys)
        return group

    def image_index(self, pass_number: int, offset: int) -> int:
        """Return the index of the image at an offset of a pass."""
        place = self.place(pass_number, offset)
        return self.source.resolve(pass_number, place)

    def place(self, pass_number: int, offset: int) -> int:
        """Return the place at an offset of a pass (a permutation of places)."""
        places = self.source.pass_length
        if places == 1:
            return 0
        entropy = (self.seed, _ORDER, pass_number)
        return grain.experimental.index_shuffle(
            offset,
            max_index=places - 1,
            seed=int(np.random.SeedSequence(entropy).generate_state(1)[0]),
            rounds=4,
        )

    def _crops(self, place: int, pass_number: int, offset: int, bad: list):
        """Return the crops of the image at a place, or of a replacement."""
        # The same for a replacement: its crops then differ from those at its own
        # place, as do the crops of an image with several places.
        drawn_for = place
        for attempt in range(MAX_ATTEMPTS):
            index = self.source.resolve(pass_number, place)
            self._note(self.source.place_name(index))
            try:
                image = self.source.open(index)
                if image.width * image.height > _LARGE:
                    size = f"{image.width}x{image.height} px"
                    self._note(f"{self.source.place_name(index)} ({size})")
                return self.multi_crop(image, self._rng(_CROPS, pass_number, drawn_for))
            except image_decoder.BadImage as error:
                bad.append((index, error.name[-1024:], error.reason[:120]))
            except errors.UserError:
                raise
            except Exception as error:
                raise RuntimeError(
                    f"{self.source.name(index)} could not be prepared: "
                    f"{type(error).__name__}: {error}"
                ) from error
            rng = self._rng(_REPLACEMENT, pass_number, offset, attempt)
            place = int(rng.integers(self.source.pass_length))
        raise errors.UserError(
            f"{MAX_ATTEMPTS} images in a row could not be read, the last one "
            f"{bad[-1][1]} ({bad[-1][2]}): remove or repair such files"
        )

    def _rng(self, *path: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *path))


def _crop_major(images_crops: list[np.ndarray]) -> np.ndarray:
    """Merge [n, S, S, C] of each of B images to [n B, S, S, C], crop 0 of all first."""
    stacked = np.stack(images_crops, axis=1)
    return stacked.reshape(-1, *stacked.shape[2:])


def make_batch_builder(
    config,
    source,
    *,
    process_index: int = 0,
    process_count: int = 1,
    skips: tuple[tuple[int, int], ...] = (),
) -> BatchBuilder:
    """Return the batch builder that a configuration describes.

    Raises:
      UserError: There are fewer images than a batch needs, or sizes do not divide.
    """
    batch_size, group_size = config.train.batch_size, config.train.group_size
    if batch_size % group_size:
        raise errors.UserError(
            f"train.batch_size = {batch_size} is not a multiple of train.group_size = "
            f"{group_size}: change one of them"
        )
    if (batch_size // group_size) % process_count:
        raise errors.UserError(
            f"{batch_size // group_size} groups (train.batch_size / train.group_size) "
            f"cannot be divided among {process_count} processes: change "
            "--config.train.group_size"
        )
    places = source.pass_length
    if places < batch_size:
        raise errors.UserError(
            f"the source has {places} images but train.batch_size = {batch_size}: "
            "add images or lower --config.train.batch_size (and train.group_size)"
        )
    crops, on_host = config.crops, config.data.augmentation == "host"
    sizes = crop_sizes.make_crop_sizes(config)
    gram_size = batch_spec_lib.gram_crops_size(config, sizes.largest)
    return BatchBuilder(
        source=source,
        multi_crop=multi_crop.MultiCrop(
            global_crops_size=sizes.largest.global_size,
            global_crops_scale=tuple(crops.global_crops_scale),
            local_crops_number=crops.local_crops_number,
            local_crops_size=sizes.largest.local_size,
            local_crops_scale=tuple(crops.local_crops_scale),
            policy=policies.make_policy(config) if on_host else None,
            gram_crops_size=0 if gram_size == sizes.largest.global_size else gram_size,
        ),
        seed=config.seed,
        batch_size=batch_size,
        group_size=group_size,
        grid=batch_spec_lib.patch_grid(config, sizes.largest),
        mask_probability=config.ibot.mask_sample_probability,
        mask_ratio_min_max=tuple(config.ibot.mask_ratio_min_max),
        process_index=process_index,
        process_count=process_count,
        skips=skips,
        sizes=sizes if crops.sizes else None,
    )
