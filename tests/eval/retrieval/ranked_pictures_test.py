import io

from PIL import Image

from dinov2_jax.data.sources import photos
from dinov2_jax.eval.retrieval import ranked_pictures


def test_frames_tell_what_is_relevant():
    source = photos.PhotosSource("bank")
    drawn = ranked_pictures.sheet(
        source, source, [0], [[1, 2, 3]], [[True, False, None]]
    )
    picture = Image.open(io.BytesIO(drawn))
    side = picture.width // 4
    query, right, wrong, unknown = (picture.getpixel((i * side, 0)) for i in range(4))
    assert right[1] > max(right[0], right[2])  # green
    assert wrong[0] > max(wrong[1:])  # red
    assert query == unknown and len(set(unknown)) == 1  # gray
