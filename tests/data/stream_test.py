"""The stream of images: whoever reads it, and however often it is begun again.

Images carry their number as the share of red, which crops leave as it is, so what a
batch shows is known without the code that chose it.
"""

import dataclasses
import hashlib
import io
import math
import tarfile

import numpy as np
import pytest
from PIL import Image

from configs import default
from dinov2_jax.data import batch_builder, loader
from dinov2_jax.data import workers as workers_lib
from dinov2_jax.data.sources import registry

IMAGES = 24
BATCH, GROUP, LOCALS = 8, 2, 3
STEPS = 5  # a pass and a part of the second


def encoded(number):
    """(extension, content) of a photograph-like image: JPEG and PNG take turns."""
    rng = np.random.default_rng(number)
    pixels = np.kron(rng.integers(0, 256, (7, 9, 3)), np.ones((8, 8, 1)))
    pixels = pixels.astype(np.uint8)[: 40 + number, : 70 - number]
    pixels[..., 0] = 10 * number + 5
    stream = io.BytesIO()
    if number % 2:
        Image.fromarray(pixels).save(stream, "PNG")
        return ".png", stream.getvalue()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=0)
    return ".JPG", stream.getvalue()


def shown(crops):
    """The number of the image that crops [..., S, S, 3] show."""
    return int(np.median(crops[..., 0])) // 10


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """{kind: the path or the mixture}, each of the same 24 images or of all of them."""
    root = tmp_path_factory.mktemp("data")
    (root / "tars").mkdir()
    for number in range(IMAGES):
        extension, content = encoded(number)
        name = f"{number:02}{extension}"
        for folder in (f"folder/{number % 3}", f"halves/{number < 8}"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / name).write_bytes(content)
        shard = root / "tars" / f"x-{number // 6:02}.tar"
        with tarfile.open(shard, "a") as tar:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    few, many = root / "halves" / "True", root / "halves" / "False"
    return {
        "folder": str(root / "folder"),
        "host": str(root / "folder"),
        "mixture": ((str(few), 1.0), (str(many), 1.0)),
        "tars": str(root / "tars"),
    }


KINDS = ("folder", "host", "mixture", "tars")


def config_of(data, kind, **overrides):
    config = default.get_config()
    config.crops.update(
        global_crops_size=16, local_crops_size=8, local_crops_number=LOCALS
    )
    config.model.patch_size = 4
    config.train.update(batch_size=BATCH, group_size=GROUP)
    if kind == "host":
        config.data.augmentation = "host"
    if kind == "mixture":
        config.data.mixture = data[kind]
    else:
        config.data.path = data[kind]
    config.update_from_flattened_dict(overrides)
    return config


def made(data, kind, *, process=(0, 1), **overrides):
    config = config_of(data, kind, **overrides)
    return batch_builder.make_batch_builder(
        config,
        registry.make_source(config),
        process_index=process[0],
        process_count=process[1],
    )


@dataclasses.dataclass
class Together:
    """The batches of several builders in one, to start fewer processes."""

    builders: dict
    activity: workers_lib.Activity | None = None

    def __call__(self, step):
        return {
            f"{kind} {name}": array
            for kind, builder in self.builders.items()
            for name, array in dataclasses.replace(builder, activity=self.activity)(
                step
            ).items()
        }


def through_loader(data, num_workers, *, start=0, stop=STEPS, process=(0, 1), seed=0):
    """{kind: the batches of steps start .. stop - 1}, from a loader with workers."""
    builders = {k: made(data, k, process=process, seed=seed) for k in KINDS}
    with loader.Loader(
        Together(builders),
        start_step=start,
        num_steps=stop - start,
        workers=num_workers,
        prefetch=2,
        batch_bytes=2**16,
        timeout=0.0,
    ) as batches:
        # Copied: the arrays of workers lie in shared memory.
        together = [{k: np.array(v) for k, v in batch.items()} for batch in batches]
    return {
        kind: [
            {
                name.removeprefix(f"{kind} "): array
                for name, array in batch.items()
                if name.startswith(f"{kind} ")
            }
            for batch in together
        ]
        for kind in KINDS
    }


def hashes(batches, names):
    """A hash of all that a batch holds of an image, in the order of the run.

    Args:
      batches: Of consecutive steps, with all groups.
      names: Of their images, in the order of the run.
    """
    names, found = iter(names), []
    for batch in batches:
        assert len(batch["bad_images"]) == 0
        for group in range(len(batch["masks"])):
            crops = batch["global_crops"][group].reshape(2, GROUP, 16, 16, 3)
            local_crops = batch["local_crops"][group].reshape(LOCALS, GROUP, 8, 8, 3)
            masks = batch["masks"][group].reshape(2, GROUP, -1)
            for i in range(GROUP):
                digest = hashlib.sha256(next(names).encode())
                parts = [crops[:, i], local_crops[:, i], masks[:, i]]
                if "augmentation_keys" in batch:
                    parts.append(batch["augmentation_keys"][group, i])
                for part in parts:
                    digest.update(np.ascontiguousarray(part).tobytes())
                found.append(digest.hexdigest())
    return found


def names_of(data, kind, start=0, stop=STEPS):
    builder = made(data, kind)
    length = builder.source.pass_length
    return [
        builder.source.name(builder.image_index(*divmod(place, length)))
        for place in range(start * BATCH, stop * BATCH)
    ]


@pytest.fixture(scope="module")
def expected(data):
    """{kind: hashes}, of batches made one after the other without any loader."""
    return {
        kind: hashes(map(made(data, kind), range(STEPS)), names_of(data, kind))
        for kind in KINDS
    }


def assert_stream(data, batches, expected, start=0, stop=STEPS):
    for kind in KINDS:
        got = hashes(batches[kind], names_of(data, kind, start, stop))
        assert got == expected[kind][start * BATCH : stop * BATCH], kind


@pytest.mark.parametrize(
    "num_workers",
    [0, pytest.param(1, marks=pytest.mark.slow), 2]
    + [pytest.param(4, marks=pytest.mark.slow)],
)
def test_any_number_of_workers(data, expected, num_workers):
    assert_stream(data, through_loader(data, num_workers), expected)


@pytest.mark.parametrize(
    "num_workers, start", [(0, 3), pytest.param(2, 4, marks=pytest.mark.slow)]
)
def test_a_restart_in_the_middle(data, expected, num_workers, start):
    batches = through_loader(data, num_workers, start=start)
    assert_stream(data, batches, expected, start)


@pytest.mark.parametrize(
    "num_workers, start", [(0, 0), pytest.param(1, 2, marks=pytest.mark.slow)]
)
def test_two_processes(data, expected, num_workers, start):
    parts = [
        through_loader(data, num_workers, start=start, process=(p, 2)) for p in range(2)
    ]
    joined = {
        kind: [
            {name: np.concatenate([batch[name], other[name]]) for name in batch}
            for batch, other in zip(parts[0][kind], parts[1][kind], strict=True)
        ]
        for kind in KINDS
    }
    assert_stream(data, joined, expected, start)


def test_as_training_makes_its_loader(data, expected):
    config = config_of(data, "folder", **{"data.workers": 1})
    source = registry.make_source(config)
    with loader.make_loader(
        config, source, start_step=2, num_steps=STEPS - 2
    ) as batches:
        got = hashes(batches, names_of(data, "folder", 2))
    assert got == expected["folder"][2 * BATCH :]


def test_every_image_once_a_pass_by_its_pixels(data):
    for kind in ("folder", "tars"):
        builder = made(data, kind)
        seen = []
        for batch in map(builder, range(3 * IMAGES // BATCH)):
            for group in range(BATCH // GROUP):
                crops = batch["global_crops"][group].reshape(2, GROUP, 16, 16, 3)
                local_crops = batch["local_crops"][group]
                local_crops = local_crops.reshape(LOCALS, GROUP, 8, 8, 3)
                for i in range(GROUP):
                    number = shown(crops[:, i])
                    assert shown(crops[0, i]) == shown(local_crops[:, i]) == number
                    seen.append(number)
        passes = [seen[i : i + IMAGES] for i in range(0, 3 * IMAGES, IMAGES)]
        for one in passes:
            assert sorted(one) == list(range(IMAGES))
        assert passes[0] != passes[1] != passes[2] != passes[0]
        # And so those are the names that are hashed.
        names = names_of(data, kind, stop=3 * IMAGES // BATCH)
        assert [int(name[-6:-4]) for name in names] == seen


def test_every_image_of_a_mixture_in_a_pass(data):
    builder = made(data, "mixture")
    length = builder.source.pass_length
    assert length == 2 * 16  # half of them from the larger source, each image once
    batches = [builder(step) for step in range(length // BATCH)]
    seen = []
    for batch in batches:
        crops = batch["global_crops"].reshape(-1, 2, GROUP, 16, 16, 3)
        seen += [shown(crops[g, :, i]) for g in range(len(crops)) for i in range(GROUP)]
    few = [number for number in seen if number < 8]
    assert sorted(few) == sorted([*range(8)] * 2)
    assert sorted(set(seen) - set(few)) == list(range(8, 24)) and len(seen) == 32


def test_nothing_comes_twice(expected):
    for kind in KINDS:
        assert len(set(expected[kind])) == len(expected[kind]) == STEPS * BATCH


def test_another_seed_is_another_stream(data, expected):
    for kind, batches in through_loader(data, 0, seed=1).items():
        # Whatever the name: neither order nor crops nor masks are the same.
        got = hashes(batches, names_of(data, kind))
        assert not set(got) & set(expected[kind])
        ours, others = made(data, kind)(0), made(data, kind, seed=1)(0)
        for name in ours.keys() - {"bad_images", "masked_weights"}:
            assert not np.array_equal(ours[name], others[name]), name
        if kind != "host":
            rows = [
                set(map(tuple, batch["augmentation_keys"].reshape(-1, 2).tolist()))
                for batch in (*map(made(data, kind), range(3)), *batches)
            ]
            assert not set.union(*rows[:3]) & set.union(*rows[3:])


# --- the shuffle ------------------------------------------------------------------

SHARDS, PER_SHARD = 8, 250


@pytest.fixture(scope="module", params=["tars", "folders"])
def large(request, tmp_path_factory):
    """A source of 8 x 250 images; names begin with the number of the shard."""
    root = tmp_path_factory.mktemp("large")
    for shard in range(SHARDS):
        names = [f"{shard}_{i:03}.png" for i in range(PER_SHARD)]
        if request.param == "folders":
            (root / str(shard)).mkdir()
            for name in names:
                (root / str(shard) / name).touch()
            continue
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 1
                tar.addfile(info, io.BytesIO(b"x"))
    return str(root)


def orders(path, *, passes=3, seed=0):
    """(shard, place in it) of every image of the first passes, [passes, n, 2]."""
    builder = made({"tars": path}, "tars", seed=seed)
    length = SHARDS * PER_SHARD
    names = [
        [
            builder.source.name(builder.image_index(number, offset))
            for offset in range(length)
        ]
        for number in range(passes)
    ]
    found = [[tuple(map(int, name[-9:-4].split("_"))) for name in one] for one in names]
    for one in found:
        assert len(set(one)) == length
    return np.array(found)


def spread(order):
    """Kruskal and Wallis: chi-squared of SHARDS - 1 degrees if shards are spread."""
    n = len(order)
    ranks = np.arange(1, n + 1)
    sums = [ranks[order[:, 0] == shard].sum() for shard in range(SHARDS)]
    return 12 / (n * (n + 1)) * sum(s**2 / PER_SHARD for s in sums) - 3 * (n + 1)


def correlation(a, b):
    """Of two sequences of distinct numbers; normal with deviation 1 / sqrt(n)."""
    return float(np.corrcoef(a, b)[0, 1])


def test_the_shuffle_is_of_all_images(large):
    length = SHARDS * PER_SHARD
    limit = 4 / math.sqrt(length)
    found = [*orders(large), *orders(large, passes=1, seed=1)]
    ranks = []
    for order in found:
        assert spread(order) < 24.3  # one of 1,000 shuffles has more
        # Neighbours in the pass are of the same shard as often as chance has it.
        same = np.mean(order[1:, 0] == order[:-1, 0])
        assert abs(same - 1 / SHARDS) < 4 * math.sqrt(1 / SHARDS / length)
        # Inside of a shard there is no order left.
        for shard in range(SHARDS):
            inside = order[order[:, 0] == shard][:, 1]
            assert abs(correlation(np.arange(PER_SHARD), inside)) < 0.25
        flat = order[:, 0] * PER_SHARD + order[:, 1]
        ranks.append(np.argsort(flat))  # when each image comes
    for i, rank in enumerate(ranks):
        assert abs(correlation(np.arange(length), rank)) < limit
        for other in ranks[:i]:
            assert abs(correlation(rank, other)) < limit
            assert np.mean(rank == other) < 0.01


def test_what_the_statistic_is_for():
    """Shards one after the other, and a buffer that shuffles 500 images, fail."""
    rng = np.random.default_rng(0)
    order = np.stack(np.divmod(np.arange(SHARDS * PER_SHARD), PER_SHARD), axis=1)
    assert spread(order) > 1000
    buffered = order[np.argsort(np.arange(len(order)) + rng.uniform(0, 500, 2000))]
    assert spread(buffered) > 100
    assert spread(rng.permutation(order)) < 24.3
