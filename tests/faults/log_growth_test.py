"""Repeated messages of a run do not fill the disk."""

import numpy as np

from dinov2_jax.runtime import bad_images


def test_ten_thousand_reports_of_ten_images(tmp_path, caplog):
    log = bad_images.BadImages(tmp_path, range(1000), max_share=0.1)
    fields = [("name", object), ("reason", object)]
    report = np.array(
        [(f"{i}\nfolder/{i}.jpg", "cannot be decoded") for i in range(10)], fields
    )
    for _ in range(1000):
        log.add(report)
    lines = (tmp_path / "bad_images.txt").read_text().splitlines()
    assert len(lines) == 10 and lines[3] == "3\\nfolder/3.jpg\tcannot be decoded"
    assert len(caplog.records) == 2  # the first image, and how many there are
    # Nor does the next start repeat them.
    again = bad_images.BadImages(tmp_path, range(1000), max_share=0.1)
    again.add(report)
    assert (tmp_path / "bad_images.txt").read_text().splitlines() == lines
