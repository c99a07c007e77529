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
        ("12 images of /home/ann/my secret (x), old/all", "12 images of all"),
        (
            "12 images of ~/ann's photos/all, split train",
            "12 images of all, split train",
        ),
        ("lists /data/a.csv,/data/b.csv", "lists a.csv,b.csv"),
        ("train:/home/ann/photos", "train:photos"),
        ("/data/a:/home/ann/b", "a:b"),
        ("read /data/a:/home/ann/b", "read a:b"),
        ("/home/ann/my secret, old/dir/q.pth", "q.pth"),
        ("/data/a, /data/b", "a, b"),
        ("file:///home/ann/q.pth", "q.pth"),
        ("read file:///home/ann/q.pth", "read q.pth"),
        ("file://host/home/ann/q.pth", "q.pth"),
        ("photos/train", "photos/train"),
        ("3 images/s of ViT-S/14", "3 images/s of ViT-S/14"),
        ("https://host/a/b", "https://host/a/b"),
        ("images of /data/x, https://host/a", "images of x, https://host/a"),
        ("hf:org/name", "hf:org/name"),
        ("a / b", "a / b"),
        ("/", "/"),
    ],
)
def test_texts(text, expected):
    assert private_paths.remove(text) == expected


def test_paths_that_are_known():
    config = {"data.path": "/home/ann/my secret, old/all", "mixture": [["/b c/d", 1.0]]}
    text = "12 images in /home/ann/my secret, old/all and /b c/d, split train"
    expected = "12 images in all and d, split train"
    assert private_paths.remove_known(text, config) == expected


def test_json():
    content = {"a": [{"b": "/home/ann/x"}, 1, None, True], "c": 0.5}
    expected = {"a": [{"b": "x"}, 1, None, True], "c": 0.5}
    assert private_paths.remove(content) == expected
