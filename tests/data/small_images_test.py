"""The share of images that are smaller than a crop, from their headers."""

from dinov2_jax.data import small_images
from dinov2_jax.data.decode import image_decoder


class Headers:
    """A source that gives sizes and fails where pixels are asked for."""

    def __init__(self, *sizes, bad=()):
        self._sizes, self._bad = sizes, bad

    def __len__(self):
        return len(self._sizes)

    def open(self, index):
        if index in self._bad:
            raise image_decoder.BadImage(str(index), "broken on purpose")

        def read(reduce):
            raise AssertionError("a header is enough")

        return image_decoder.OpenedImage(*self._sizes[index], read, False)


def test_share_by_the_short_side():
    source = Headers((600, 518), (700, 517), (100, 900), (518, 518), (10, 10), bad=[4])
    (line,) = small_images.check(source, 518)
    assert line.startswith("50% of the images (2 of 4 looked at) have a short side bel")
    assert "below the 518 px" in line


def test_large_images_are_no_news():
    assert small_images.check(Headers((518, 600), (3000, 2000)), 518) == []


def test_a_few_of_many_are_looked_at():
    source = Headers(*[(8, 8)] * 10_000)
    (line,) = small_images.check(source, 9)
    assert "(64 of 64 looked at)" in line
