"""Evaluation sets on disk, and the verb that evaluates a checkpoint on them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from orchestrator.cli import compose_config
from orchestrator.clip import model
from orchestrator.clip.zero_shot import OPENAI_IMAGENET_TEMPLATES
from orchestrator.errors import UserError
from orchestrator.evaluation.samples import read_samples
from orchestrator.evaluation.sets import open_set
from orchestrator.evaluation.stage import checkpoint_stage
from tests.support.commands import Shell
from tests.support.pools import TINY_MODEL, add, make_pairs, picture, torn, write_tars, write_zero_shot


@pytest.fixture(scope="module")
def zero_shot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zero_shot(tmp_path_factory.mktemp("set"), range(24))


def test_class_names_beside_the_tar_and_samples_in_it(zero_shot: Path) -> None:
    found = open_set(str(zero_shot), needs_classes=True)
    assert found.class_names[:2] == ("red square", "green square")
    assert len(found.class_names) == 8
    assert found.templates == ()
    samples = list(read_samples(found, found.source.parts()[0]))
    assert [sample.label for sample in samples] == [number % 8 for number in range(24)]
    assert samples[3].image == picture(3)


def test_layout_of_clip_benchmark(zero_shot: Path, tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    for number in range(2):
        (tmp_path / "test" / f"{number}.tar").write_bytes(zero_shot.read_bytes())
    (tmp_path / "classnames.txt").write_text("a\nb\n\nc\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n{c}\n")
    found = open_set(str(tmp_path), needs_classes=True)
    assert (len(found.shard_uris), found.class_names) == (2, ("a", "b", "", "c"))
    assert found.templates == ("a photo of a {c}.", "{c}")


def test_identity_depends_on_names_and_files(zero_shot: Path, tmp_path: Path) -> None:
    write_zero_shot(tmp_path, range(24))
    identities = [open_set(str(tmp_path / "zs.tar"), needs_classes=True).identity for _ in range(2)]
    (tmp_path / "zs.classnames.txt").write_text("\n".join("abcdefgh"))
    identities.append(open_set(str(tmp_path / "zs.tar"), needs_classes=True).identity)
    assert identities[0] == identities[1] != identities[2]


def test_set_without_class_names_is_refused(zero_shot: Path, tmp_path: Path) -> None:
    (tmp_path / "zs.tar").write_bytes(zero_shot.read_bytes())
    with pytest.raises(UserError, match=r"expected zs\.classnames\.txt beside"):
        open_set(str(tmp_path / "zs.tar"), needs_classes=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `OUT/model`: random weights from a fixed seed."""
    folder = tmp_path_factory.mktemp("checkpoint")
    clip = model.build(
        name=TINY_MODEL["name"],
        config=TINY_MODEL["config"],
        pretrained=None,
        image_size=None,  # type: ignore[arg-type]
        context_length=None,
        seed=0,
    )
    model.save(clip, folder / "OUT" / "model")
    return folder


def expected_hits(folder: Path, zero_shot: Path) -> dict[str, float]:
    """Compute top-1, top-5 and mean per class with open_clip alone and its own transform."""
    import io

    import open_clip

    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder / 'OUT' / 'model'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder / 'OUT' / 'model'}")
    clip.eval()
    names = (zero_shot.parent / "zs.classnames.txt").read_text().splitlines()
    dataset = open_set(str(zero_shot), needs_classes=True)
    samples = list(read_samples(dataset, dataset.source.parts()[0]))
    with torch.no_grad():
        texts = [
            clip.encode_text(
                tokenizer([t.format(c=name) if "{c}" in t else t.format(name) for t in OPENAI_IMAGENET_TEMPLATES]),
                normalize=True,
            ).mean(0)
            for name in names
        ]
        weights = torch.nn.functional.normalize(torch.stack(texts), dim=-1)
        images = torch.stack(
            [preprocess(Image.open(io.BytesIO(sample.image or b"")).convert("RGB")) for sample in samples]
        )
        best = (clip.encode_image(images, normalize=True) @ weights.T).topk(5).indices
    labels = torch.tensor([sample.label for sample in samples])
    hits = best == labels[:, None]
    per_class = [hits[labels == label, 0].float().mean().item() for label in range(8)]
    return {
        "top1": hits[:, 0].float().mean().item(),
        "top5": hits.any(1).float().mean().item(),
        "mean_per_class": sum(per_class) / 8,
    }


def test_evaluate_agrees_with_open_clip(run_command: Shell, checkpoint: Path, zero_shot: Path) -> None:
    write_zero_shot(checkpoint, range(24))
    done = run_command(
        "python -m orchestrator evaluate checkpoint=OUT/model evaluation.zero_shot.uri=zs.tar out=OUT2 store=STORE",
        cwd=checkpoint,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((checkpoint / "OUT2" / "report.json").read_text())["evaluation"]["checkpoint"]["zero_shot"]
    assert (found["num_images"], found["num_classes"], found["skipped"]) == (24, 8, 0)
    # tolerance of one image: Pillow and torchvision round a resize differently
    for name, value in expected_hits(checkpoint, zero_shot).items():
        assert found[name] == pytest.approx(value, abs=1.01 / 24), name
    assert {path.name for path in (checkpoint / "STORE").iterdir()} == {"evaluation"}, "no other artifacts"


def test_retrieval_counts_undecodable_images(run_command: Shell, checkpoint: Path) -> None:
    pairs = make_pairs(12)
    pairs[4] = type(pairs[4])(pairs[4].key, pairs[4].caption, torn(pairs[4].image or b""))
    write_tars(checkpoint / "heldout", pairs)
    done = run_command(
        "python -m orchestrator evaluate checkpoint=OUT/model evaluation.retrieval.uri=heldout out=OUT3 store=STORE",
        cwd=checkpoint,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((checkpoint / "OUT3" / "report.json").read_text())["evaluation"]["checkpoint"]["retrieval"]
    assert (found["num_pairs"], found["skipped"]) == (11, 1)
    for way in ("image_to_text", "text_to_image"):
        assert 0 <= found[f"{way}_recall_at_1"] <= found[f"{way}_recall_at_5"] <= found[f"{way}_recall_at_10"] <= 1


def test_local_dir_scheme_names_the_same_folder(
    checkpoint: Path, zero_shot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_from(reference: str) -> dict[str, Any]:
        arguments = [f"checkpoint={reference}", f"evaluation.zero_shot.uri={zero_shot}", "store=STORE"]
        return checkpoint_stage(compose_config(arguments, needs_source=False)).artifact.made_from

    monkeypatch.chdir(checkpoint)
    plain = made_from("OUT/model")
    assert made_from("local-dir:OUT/model") == made_from(f"local-dir:{checkpoint / 'OUT' / 'model'}") == plain
    # another file at the same path is another model
    os.utime(checkpoint / "OUT" / "model" / model.WEIGHTS_FILE, (1, 1))
    assert made_from("local-dir:OUT/model")["models"] != plain["models"]


def test_stage_is_picklable(checkpoint: Path, zero_shot: Path, tmp_path: Path) -> None:
    arguments = [
        f"checkpoint={checkpoint / 'OUT' / 'model'}",
        f"evaluation.zero_shot.uri={zero_shot}",
        f"store={tmp_path}",
    ]
    build = checkpoint_stage(compose_config(arguments, needs_source=False)).build
    assert pickle.loads(pickle.dumps(build)) == build


def broken_models(folder: Path) -> None:
    """Write copies of `OUT/model` that cannot be loaded: `bare`, `cut`, `list` and `torn`."""
    for name in ("bare", "cut", "list", "torn"):
        shutil.copytree(folder / "OUT" / "model", folder / name, dirs_exist_ok=True)
    (folder / "bare" / model.WEIGHTS_FILE).unlink()
    weights = folder / "cut" / model.WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:5000])
    (folder / "list" / model.CONFIG_FILE).write_text("[]")
    (folder / "torn" / model.CONFIG_FILE).write_text('{"model_cfg": ')


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("checkpoint=nowhere/model evaluation.zero_shot.uri=zs.tar", "nowhere/model"),
        ("checkpoint=OUT/model", "evaluation.zero_shot.uri="),
        ("checkpoint=OUT/model evaluation.zero_shot.uri=nowhere.tar", "evaluation.zero_shot.uri: no such path"),
        ("checkpoint=ViT-B-99 evaluation.zero_shot.uri=zs.tar", "ViT-B-99"),
        ("checkpoint=local-dir:nowhere evaluation.zero_shot.uri=zs.tar", "no model folder at nowhere: expected"),
        ("checkpoint=OUT evaluation.zero_shot.uri=zs.tar", "OUT is the folder of a run: write checkpoint="),
        (
            "checkpoint=zs.tar evaluation.zero_shot.uri=zs.tar",
            "zs.tar: expected open_clip_config.json",
        ),
        (
            "checkpoint=bare evaluation.zero_shot.uri=zs.tar",
            "bare has no weights; expected open_clip_model.safetensors",
        ),
        ("checkpoint=cut evaluation.zero_shot.uri=zs.tar", "cut: Error while deserializing header"),
        ("checkpoint=nowhere.pt evaluation.zero_shot.uri=zs.tar", "checkpoint: no such file: nowhere.pt"),
        ("checkpoint=ViT-B-32 evaluation.zero_shot.uri=zs.tar", "ViT-B-32 alone has no weights: pass as pretrained"),
        ("checkpoint=list evaluation.zero_shot.uri=zs.tar", "list: expected model_cfg in its open_clip_config.json"),
        ("checkpoint=torn evaluation.zero_shot.uri=zs.tar", "torn/open_clip_config.json is not JSON"),
    ],
)
def test_wrong_settings_are_a_one_line_error(run_command: Shell, checkpoint: Path, arguments: str, said: str) -> None:
    write_zero_shot(checkpoint, range(24))
    broken_models(checkpoint)
    done = run_command(f"python -m orchestrator evaluate {arguments} out=BAD", cwd=checkpoint)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.strip().count("\n") == 0


@pytest.mark.slow
def test_evaluate_gives_the_same_results_as_the_run(run_command: Shell, tiny_run: Path) -> None:
    done = run_command(
        "python -m orchestrator evaluate checkpoint=OUT/model evaluation.zero_shot.uri=zs.tar out=OUT2", cwd=tiny_run
    )
    assert done.returncode == 0, done.stderr
    there, here = (json.loads((tiny_run / out / "report.json").read_text())["evaluation"] for out in ("OUT", "OUT2"))
    assert here["checkpoint"]["zero_shot"] == there["finetune"]["zero_shot"]


def test_a_set_without_a_decodable_image_is_one_line(run_command: Shell, checkpoint: Path) -> None:
    pairs = [type(pair)(pair.key, pair.caption, torn(pair.image or b"")) for pair in make_pairs(3)]
    write_tars(checkpoint / "all_torn", pairs)
    write_zero_shot(checkpoint / "zs_torn", range(2))
    with tarfile.open(checkpoint / "zs_torn" / "zs.tar", "w") as tar:
        add(tar, "0.jpg", torn(picture(0)))
        add(tar, "0.cls", b"0")
    for arguments in ("evaluation.retrieval.uri=all_torn", "evaluation.zero_shot.uri=zs_torn/zs.tar"):
        done = run_command(
            f"python -m orchestrator evaluate checkpoint=OUT/model {arguments} out=BAD store=STORE", cwd=checkpoint
        )
        assert (done.returncode, done.stderr.strip().count("\n")) == (2, 0), done.stderr
        assert arguments.split(".uri")[0] in done.stderr
