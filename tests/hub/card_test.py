"""Model cards: what the hub's own parser finds in them, and what they say."""

import dataclasses
import pathlib

import huggingface_hub
import pytest
import yaml

from dinov2_jax.data import preprocessing
from dinov2_jax.hub import card, evaluations, lineage, run_record
from dinov2_jax.models import model_config, vision_transformer
from dinov2_jax.weights import reading

VERIFIED = {
    "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
    "relative_error": {"cls": 1e-6, "patches": 3e-6},
    "other_size": {"images": [2, 24, 60, 3], "relative_error": {"cls": 0.0123}},
}


def make_facts(m=None, **changes):
    module = vision_transformer.VisionTransformer(
        m or model_config.ModelConfig(32, 2, 2, patch_size=4, image_size=16)
    )
    facts = card.Facts(
        name="org/name",
        source="weights.pth",
        weights=reading.Weights(module, {}, preprocessing.Preprocessing(), None),
        num_params=12345,
        digest="0123456789abcdef" * 4,
        heads=(),
        report={"verified": VERIFIED},
        run=None,
        ancestors=(),
        evaluations=(),
    )
    return dataclasses.replace(facts, **changes)


def sections(text):
    """The text of each section, with line breaks as spaces."""
    title, *parts = text.split("\n## ")
    found = dict(part.split("\n", 1) for part in parts)
    return {"": title} | {k: " ".join(v.split()) for k, v in found.items()}


def metadata(text):
    return huggingface_hub.ModelCard(text).data.to_dict()


@pytest.mark.parametrize(
    "source", ["/home/ann/my secret, old/q.pth", "file:///home/ann/secret/q.pth"]
)
def test_sources_are_named_without_their_folders(source):
    ancestors = [
        lineage.Ancestor("were converted from", source, "", ""),
        lineage.Ancestor("were distilled from", "hf:a/b", source, ""),
    ]
    for facts in (make_facts(source=source), make_facts(ancestors=ancestors)):
        text = card.text(facts)
        assert "`q.pth`" in text and "secret" not in text and "file:" not in text


def test_what_is_unknown_is_said_to_be():
    text = card.text(make_facts())
    found = sections(text)
    assert "Unknown" in found["Training"]
    assert "No results were given" in found["Evaluation"]
    assert "unknown, none was stated" in found["Origin and licence"]
    assert "read from `weights.pth`; where that came" in found["Origin and licence"]
    assert "license" not in metadata(text)


def test_the_model():
    found = sections(card.text(make_facts(heads=["dino_head"])))["Model"]
    assert "ViT/4: width 32, 2 blocks, 2 heads, MLP" in found
    assert "| Parameters | 12,345 |" in found
    assert "position embeddings for 16 x 16 px" in found
    assert "short side to 256 px, central crop of 224 px" in found
    assert "sha256 0123456789abcdef" in found
    assert "dino_head, in the folder `native`" in found
    assert "torch 2.13.0 and transformers 5.23.0: relative error 3.0e-06" in found


@pytest.mark.parametrize("registers", [False, True])
def test_released_weights_keep_their_licence(registers):
    name = "dinov2_vits14" + "_reg" * registers
    m = model_config.released("vit_small", registers)
    text = card.text(make_facts(m, source=name))
    found = sections(text)
    assert metadata(text)["license"] == "apache-2.0"
    assert f"those of [{name}]" in found["Origin and licence"]
    assert "released by Meta under Apache-2.0" in found["Origin and licence"]
    assert f'"facebookresearch/dinov2", "{name}"' in found["Use"]
    first = 5 if registers else 1
    assert f"[B, {first} + h*w, 384]" in found["Use"]
    assert f"tokens[:, {first}:]" in found["Use"]


def test_weights_that_continue_from_released_ones():
    ancestors = [
        lineage.Ancestor(lineage.CONTINUES, "runs/a", "", "", is_run=True),
        lineage.Ancestor(lineage.CONTINUES, "x.pth", "runs/a", "dinov2_vitl14"),
        lineage.Ancestor("were distilled from", "/home/ann/big.pth", "runs/a", ""),
    ]
    text = card.text(make_facts(ancestors=ancestors))
    origin = sections(text)["Origin and licence"]
    assert "- They continue from `runs/a` (a run of dinov2_jax)." in origin
    assert "- Those of `runs/a` continue from [dinov2_vitl14](" in origin
    assert "distilled from `big.pth` (licence and origin unknown)" in origin
    assert "/home" not in text
    found = metadata(text)
    assert found["base_model"] == "facebook/dinov2-large"
    assert "license" not in found  # that of what was trained from it is not ours to say
    text = card.text(make_facts(ancestors=ancestors, license="cc-by-4.0"))
    assert metadata(text)["license"] == "cc-by-4.0"


def test_evaluations_come_with_their_protocols():
    numbers = {"top1": 0.75, "worst": None}
    settings = {"data": "folder /home/ann/val, 10 images", "k": [10, 20]}
    found = evaluations.Evaluation("knn", "ours (k 20)", settings, numbers, ["Beware."])
    text = sections(card.text(make_facts(evaluations=[found])))["Evaluation"]
    for words in (
        *("### knn", "| `top1` | 0.7500 |", "| `worst` | not finite |"),
        *(
            "Note: Beware.",
            "Protocol: ours (k 20). data: folder val, 10 images; k: 10, 20.",
        ),
    ):
        assert words in text


def test_interpolation_that_transformers_lacks():
    report = {"verified": VERIFIED, "warning": "..."}
    text = sections(card.text(make_facts(report=report)))["Use"]
    assert "same at 16 x 16 px, and differ at other sizes (by 1.2e-02 at 24" in text
    assert "interpolates" not in sections(card.text(make_facts()))["Use"]


def test_other_channels():
    m = model_config.ModelConfig(32, 2, 2, patch_size=4, image_size=16, in_chans=6)
    found = sections(card.text(make_facts(m)))
    assert "| Channels | 6 |" in found["Model"]
    assert "float32 [B, H, W, 6], normalised" in found["Use"]
    assert "preprocess(" not in found["Use"] and "cat.jpg" not in found["Use"]


def test_code_is_python():
    for m in (None, model_config.released("vit_base", True)):
        blocks = card.text(make_facts(m)).split("```python\n")[1:]
        assert len(blocks) == 2 if m is None else 3
        for block in blocks:
            compile(block.partition("```")[0], "card", "exec")


def test_metadata_is_first_and_valid():
    text = card.text(make_facts())
    front = text.split("---\n")[1]
    assert text.startswith("---\n")
    assert yaml.safe_load(front)["pipeline_tag"] == "image-feature-extraction"


def test_a_distillation():
    config = {
        **{"train.steps": 100, "train.batch_size": 8, "train.objective": "prototypes"},
        **{"distill.source": "big.pth", "distill.objective": "features"},
        **{"crops.global_crops_size": 16, "crops.local_crops_number": 2},
        **{"crops.local_crops_size": 8, "optim.trainable": "all"},
        **{"optim.name": "adamw", "optim.base_lr": 0.004},
    }
    run = run_record.Run(pathlib.Path(), 50, True, config, {}, {})
    text = sections(card.text(make_facts(run=run)))["Training"]
    assert "distillation from a frozen teacher (features)" in text
    assert "50 of 100, the best of the run's evaluations" in text
    assert "8 images; 400 seen in all" in text
    assert "| Images | unknown |" in text
    path = "/home/ann/my secret, old/all"
    data = {"description": f"12 images in {path}, split train"}
    run = dataclasses.replace(run, config=config | {"data.path": path}, data=data)
    text = sections(card.text(make_facts(run=run)))["Training"]
    assert "12 images in all, split train" in text
