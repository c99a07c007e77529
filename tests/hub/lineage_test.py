"""Chains of sources, from the records of runs and of conversions."""

import json

import pytest

from dinov2_jax.hub import lineage, run_record
from dinov2_jax.weights import official


def make_run(folder, **sections):
    """Make a workdir as far as its origin is concerned."""
    (folder / "checkpoints" / "5").mkdir(parents=True)
    config = {"train": {"steps": 9}} | sections
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def chain(source):
    return [
        (a.relation, a.source, a.child, a.released, a.is_run)
        for a in lineage.trace(source)
    ]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("dinov2_vits14", "dinov2_vits14"),
        ("/data/dinov2_vitb14_reg4_pretrain.pth", "dinov2_vitb14_reg"),
        ("hf:facebook/dinov2-giant", "dinov2_vitg14"),
        ("hf:facebook/dinov2-with-registers-large@main", "dinov2_vitl14_reg"),
        ("hf:someone/dinov2-giant", ""),
        ("dinov2_vits14_ade20k_linear_head.pth", ""),
        ("runs/a", ""),
        ("runs/dinov2_vits14", ""),
    ],
)
def test_released(source, name):
    assert lineage.released_name(source) == name


def test_a_run_with_the_name_of_a_released_backbone_is_none(tmp_path, monkeypatch):
    run = make_run(tmp_path / "dinov2_vits14", init={"source": "other.pth"})
    monkeypatch.chdir(tmp_path)
    for source in (run, "dinov2_vits14"):
        assert lineage.released_name(source) == ""
        assert [a.source for a in lineage.trace(source)] == ["other.pth"]


def test_an_ancestor_without_checkpoints_is_unknown(tmp_path):
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    first = str(tmp_path / "a")
    last = make_run(tmp_path / "b", init={"source": first})
    assert chain(last) == [("continue from", first, "", "", False)]


def test_every_released_backbone_is_on_the_hub():
    assert len({lineage.hub_name(name) for name in official.NAMES}) == 8


def test_a_chain_of_runs(tmp_path):
    first = make_run(tmp_path / "a", init={"source": "dinov2_vits14"})
    middle = make_run(tmp_path / "b", init={"source": f"{first}/checkpoints/5"})
    last = make_run(
        tmp_path / "c",
        init={"source": "other.pth"},
        distill={"source": "moved"},
        gram={"source": "dinov2_vitl14", "loss_weight": 0.0},
    )
    (tmp_path / "c" / "teacher.json").write_text(json.dumps({"source": middle}))
    assert chain(last) == [
        ("continue from", "other.pth", "", "", False),
        ("were distilled from", middle, "", "", True),
        ("continue from", f"{first}/checkpoints/5", middle, "", True),
        (
            *("continue from", "dinov2_vits14"),
            *(f"{first}/checkpoints/5", "dinov2_vits14", False),
        ),
    ]


def test_a_conversion(tmp_path):
    report = {"source": "dinov2_vits14_pretrain.pth"}
    (tmp_path / "a.safetensors.json").write_text(json.dumps(report))
    assert chain(tmp_path / "a.safetensors") == [
        (
            *("were converted from", "dinov2_vits14_pretrain.pth", ""),
            *("dinov2_vits14", False),
        )
    ]


def test_a_student_of_several(tmp_path):
    run = make_run(tmp_path / "a", distill={"source": "hf:someone/big"})
    (tmp_path / "a" / "small").mkdir()
    (tmp_path / "a" / "small" / "model.json").write_text("{}")
    expected = [("were distilled from", "hf:someone/big", "", "", False)]
    assert chain(f"{run}/small") == expected
    assert run_record.find(f"{run}/small").student == "small"


def test_a_circle_ends(tmp_path):
    run = make_run(tmp_path / "a", init={"source": str(tmp_path / "a")})
    assert [a.source for a in lineage.trace(run)] == [run]


def test_nothing_is_known():
    assert not lineage.trace("somebody.pth")
