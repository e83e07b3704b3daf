"""A run that fails in its evaluation still has its model and its report, and is finished later."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator import Run
from tests.pipeline.test_bad_input import refused
from tests.support.commands import Shell, tiny_command
from tests.support.pools import Pair, make_pairs, torn, write_tars


def test_a_run_whose_evaluation_fails_is_finished_by_evaluate_or_by_running_again(
    run_command: Shell, tiny_run: Path, tiny_conf: str, tar_pool: str, tmp_path: Path
) -> None:
    # the headers are whole, so only decoding finds that no image can be used
    write_tars(tmp_path / "held", [Pair(one.key, one.caption, torn(one.image or b"")) for one in make_pairs(4)])
    command = tiny_command(tiny_conf, tar_pool).replace("zs.tar", str(tiny_run / "zs.tar"))
    command += f" out=OUT store={tiny_run / 'STORE'} training.num_workers=2 evaluation.retrieval.uri=held"
    done = run_command(command, cwd=tmp_path)
    line = refused(done, "the evaluation failed: evaluation.retrieval: got 0 images")
    assert "done but for the evaluation" in done.stdout
    out = tmp_path / "OUT"
    assert f"the model and the report are in {out}; the same command, or evaluate with checkpoint={out}/model" in line
    assert (out / "report.html").exists()
    report = json.loads((out / "report.json").read_text())
    assert (report["evaluation"], report["training"]["finetune"]["epochs"]) == ({}, 1)
    reason = "evaluation.retrieval: got 0 images and 0 texts: expected pairs, at least one"
    assert (Run(out).record.not_evaluated, report["not_evaluated"]) == (reason, reason)
    page = (out / "report.html").read_text()
    assert f"<b>The evaluation failed, so there are no results: {reason}.</b>" in page

    write_tars(tmp_path / "held", make_pairs(4))
    evaluate = (
        f"python -m orchestrator evaluate checkpoint=OUT/model out=EVAL store={tiny_run / 'STORE'} "
        "evaluation.retrieval.uri=held"
    )
    for again, folder, name in ((evaluate, "EVAL", "checkpoint"), (command, "OUT", "finetune")):
        done = run_command(again, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / folder / "report.json").read_text())["evaluation"][name]["retrieval"]
        assert (found["num_pairs"], found["skipped"]) == (4, 0)
    assert (Run(out).record.not_evaluated, Run(out).report.not_evaluated) == (None, None)
    assert "The evaluation failed" not in (out / "report.html").read_text()


def test_an_unusable_evaluation_set_and_an_unknown_model_are_refused_before_anything_is_computed(
    run_command: Shell, tiny_conf: str, tar_pool: str, tmp_path: Path
) -> None:
    write_tars(tmp_path / "held", [Pair(one.key, None, one.image) for one in make_pairs(4)])
    base = f"python -m orchestrator run {tiny_conf} source.uri={tar_pool} out=OUT store=STORE"
    refused(
        run_command(f"{base} evaluation.retrieval.uri=held", cwd=tmp_path),
        "evaluation.retrieval.uri: 4 of 4 samples cannot be used",
        "missing caption",
        "source.limits.max_broken_pairs",
    )
    refused(
        run_command(f"{base} model.name=ViT-B-99 model.config=null", cwd=tmp_path), "model: unknown model 'ViT-B-99'"
    )
    refused(
        run_command(f"{base} model.pretrained=nowhere.pt", cwd=tmp_path), "model: pretrained='nowhere.pt' is neither"
    )
    assert not (tmp_path / "STORE").exists()
    sweep = base.replace(" run ", " sweep ").replace("out=OUT", "out=SWEEP")
    refused(
        run_command(f"{sweep} sweep=keep_fraction evaluation.retrieval.uri=held", cwd=tmp_path),
        "evaluation.retrieval.uri: 4 of 4 samples cannot be used",
    )
    assert not (tmp_path / "STORE" / "catalog").exists()
