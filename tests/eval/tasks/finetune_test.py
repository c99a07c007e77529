"""Fine-tuning on scikit-learn's digits: numbers, files, resumption, errors."""

import functools
import json

import digits
import numpy as np
import pytest
from peers import torch, transformers
from PIL import Image
from sklearn import linear_model

from dinov2_jax.eval import __main__ as program
from dinov2_jax.eval import baselines, features, saved_state
from dinov2_jax.eval.tasks import finetune as finetune_task

FLAGS = (
    "--steps=6",
    "--train-batch-size=16",
    "--every=3",
    "--lr=1e-3",
    "--layerwise-decay=0.9",
    "--ema=0.5",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small weights, 60 training digits and 40 others."""
    root = tmp_path_factory.mktemp("digits")
    return digits.write_all(root, train=range(60), val=range(900, 940))


@pytest.fixture(scope="module")
def finetune(files):
    """`digits.evaluate` of fine-tuning."""
    return functools.partial(digits.evaluate, files, "finetune", *FLAGS)


@pytest.fixture(scope="module")
def whole(finetune):
    """The result of a run that was not interrupted."""
    code, result = finetune(out="whole")
    assert code == 0
    return result


def test_the_result_states_its_protocol(whole, files):
    assert set(whole["numbers"]) == {
        "finetune/top1",
        "finetune/top5",
        "finetune/mean_per_class",
    }
    assert whole["protocol"] == "ours"
    assert whole["card"]["selected on"].startswith("nothing")
    assert whole["card"]["trained"] == "everything"
    assert whole["card"]["mixup_alpha"] == 0.8
    (course,) = whole["tables"]
    assert [row[0] for row in course["rows"]] == [3, 6]
    assert "mean loss" in (files / "whole/report.html").read_text()
    assert not list((files / "cache").glob("*"))  # features of these weights alone


def test_transformers_and_predict_agree_with_the_result(whole, files, capsys):
    """The folder in transformers' own library, its accuracy, and `predict`."""
    folder = files / "whole/huggingface"
    model, info = transformers.AutoModelForImageClassification.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[problem] for problem in info), info
    assert type(model).__name__ == "Dinov2ForImageClassification"
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    paths = sorted((files / "val").glob("*/*.png"))
    inputs = processor([Image.open(path) for path in paths], return_tensors="pt")
    with torch.inference_mode():
        scores = model.eval()(**inputs).logits.softmax(dim=-1).numpy()
    names = [model.config.id2label[i] for i in scores.argmax(axis=1)]
    right = np.mean([name == path.parent.name for name, path in zip(names, paths)])
    assert whole["numbers"]["finetune/top1"] == pytest.approx(right)
    code = program.main(
        [
            "predict",
            f"--model={folder}",
            f"--head={files / 'whole/head.pth'}",
            f"--out={files / 'predictions'}",
            "--top=1",
            "--images",
            *map(str, paths[:4]),
        ]
    )
    assert code == 0, capsys.readouterr().err
    found = json.loads((files / "predictions/predictions.json").read_text())
    for entry, expected in zip(found, scores):
        (best,) = entry["classes"]
        assert best["name"] == str(expected.argmax())
        assert best["probability"] == pytest.approx(expected.max(), abs=1e-4)


def test_a_killed_run_resumes_to_the_same_numbers(whole, finetune, files, monkeypatch):
    save, saved = saved_state.save, []

    def save_once(path, state, *, done, settings):
        if saved:
            raise KeyboardInterrupt
        saved.append(done)
        save(path, state, done=done, settings=settings)

    with monkeypatch.context() as patch:
        patch.setattr(saved_state, "save", save_once)
        assert finetune(out="resumed")[0] == 130
    assert saved == [3]
    code, resumed = finetune(out="resumed")
    assert code == 0 and resumed["numbers"] == whole["numbers"]
    for name in ("huggingface/model.safetensors", "head.pth"):
        both = [(files / out / name).read_bytes() for out in ("whole", "resumed")]
        assert both[0] == both[1]


@pytest.mark.slow  # seven seconds
def test_pixels_are_classified_by_logistic_regression(files, monkeypatch):
    """As scikit-learn does it, on what the pixels' stand-in gives."""
    flags = [f"--model={files / 'small.pth'}", "--num-heads=2", "--baselines"]
    flags += [f"--cache={files / 'pixels'}", "--size=28", "--resize=28"]
    flags += [f"--{part}-path={files / part}" for part in ("train", "val")]
    args = program.parse_arguments(["finetune", *flags])
    monkeypatch.setattr(finetune_task, "_C_OF_PIXELS", (0.1,))
    backbone = features.load(args.model, num_heads=2, cache=args.cache)
    result = finetune_task.run(args, baselines.pixels(backbone))
    sets = []
    for part in ("train", "val"):
        paths = sorted((files / part).glob("*/*.png"))
        images = [Image.open(p).convert("RGB") for p in paths]
        images = [
            np.asarray(image.resize((14, 14), Image.Resampling.BOX)) for image in images
        ]
        rows = np.stack(images) / 255 / [0.229, 0.224, 0.225]
        rows = rows.reshape(len(rows), -1)
        sets += [rows - rows.mean(axis=1, keepdims=True)]
        sets += [np.array([path.parent.name for path in paths])]
    peer = linear_model.LogisticRegression(C=result.card.fields["C"], max_iter=10_000)
    expected = peer.fit(*sets[:2]).score(*sets[2:])
    assert result.numbers["finetune/top1"] == pytest.approx(expected, abs=0.05)
    assert result.numbers.keys() == {
        f"finetune/{name}" for name in ("top1", "top5", "mean_per_class")
    }
    (picture,) = result.pictures
    assert picture.caption.startswith("The surest mistakes")


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--group-size=6"], "use --train-batch-size=18"),
        (["--last-blocks=3"], "the model has 2 blocks"),
        (["--drop-path=1"], "--drop-path=1: use a number from 0 to below 1"),
        (["--lr=0"], "--lr=0: use a number above 0"),
        (["--mixup=-1"], "--mixup=-1: use 0 or more"),
    ],
)
def test_bad_flags_give_one_line(finetune, capsys, flags, text):
    assert finetune(*flags, out="bad")[0] == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and text in error


@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_seeds_that_no_generator_takes(finetune, capsys, seed):
    with pytest.raises(SystemExit):
        finetune(f"--seed={seed}", out="bad")
    assert "is not a whole number from 0 to" in capsys.readouterr().err


def test_a_state_of_other_settings_is_refused(whole, finetune, capsys):
    assert finetune("--seed=1", out="whole")[0] == 2
    assert "fine-tuning with other settings: choose another" in capsys.readouterr().err


def test_videos_are_classified_by_their_frames(files):
    """Videos whose frames are digits of one class."""
    for part, shown in (("train", range(200)), ("val", range(900, 960))):
        digits.write(files / "frames" / part, shown, classes=3)
        for image in sorted((files / "frames" / part).glob("*/*.png")):
            number = int(image.stem) // 10
            folder = files / "videos" / part / image.parent.name / str(number)
            folder.mkdir(parents=True, exist_ok=True)
            image.rename(folder / image.name)
    accuracies = {}
    for how in ("mean", "concat"):
        code, result = digits.evaluate(
            files,
            "video",
            *("--frames=2", f"--combine={how}", "--cs", "0.1"),
            out="video",
            train=files / "videos/train",
            val=files / "videos/val",
        )
        assert code == 0
        assert result["protocol"] == "ours" and result["card"]["combine"] == how
        accuracies[how] = result["numbers"]["video/accuracy"]
    assert min(accuracies.values()) > 0.6  # of three classes
