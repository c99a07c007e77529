"""Folders of a machine stay on it."""

import pytest

from dinov2_jax.hub import private_paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ann/photos", "photos"),
        ("~/photos/", "photos"),
        ("/home/ann/my photos/all", "all"),
        (
            "12 images in /home/ann/photos, split train",
            "12 images in photos, split train",
        ),
        ("lists /data/a.csv,/data/b.csv", "lists a.csv,b.csv"),
        ("train:/home/ann/photos", "train:photos"),
        ("/data/a:/home/ann/b", "b"),
        ("read /data/a:/home/ann/b", "read a:b"),
        ("photos/train", "photos/train"),
        ("3 images/s of ViT-S/14", "3 images/s of ViT-S/14"),
        ("https://host/a/b", "https://host/a/b"),
        ("hf:org/name", "hf:org/name"),
        ("a / b", "a / b"),
        ("/", "/"),
    ],
)
def test_texts(text, expected):
    assert private_paths.remove(text) == expected


def test_json():
    content = {"a": [{"b": "/home/ann/x"}, 1, None, True], "c": 0.5}
    expected = {"a": [{"b": "x"}, 1, None, True], "c": 0.5}
    assert private_paths.remove(content) == expected
