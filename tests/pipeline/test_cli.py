"""The command line as it is typed: the public calls, quoting of paths, one line for every mistake."""

from __future__ import annotations

import os
import random
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from orchestrator import __version__, cli, pipeline
from orchestrator.cli import PATH_KEYS, VERBS, compose_config, for_hydra, main
from orchestrator.config import Config
from orchestrator.errors import ClusterError, UserError
from tests.support.commands import Shell
from tests.support.pools import make_pairs, real_captions, write_tars

EXPERIMENTS = {"demo", "wfpp", "wfpp_laion", "wfpp_cc12m", "full_cc12m"}


def refused(done: Any, *, names: set[str] | list[str] = ()) -> str:
    """Checks that a command ended as a user's mistake does, and gives the line."""
    line = done.stderr.strip()
    assert done.returncode == 2, done.stderr
    assert line.startswith("orchestrator: "), line
    assert "\n" not in line
    assert "Traceback" not in done.stdout + done.stderr
    assert "ray::" not in line, "a trace folded into one line is none the better"
    assert "UDF" not in line
    for name in names:
        assert name in line, line
    return line


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """Runs `main` up to the door of the pipeline and gives the configuration that arrives there."""

    def run(*arguments: str) -> Config:
        taken: list[Config] = []
        monkeypatch.setattr(pipeline, arguments[0], lambda config, **_: taken.append(config))
        main(list(arguments))
        assert len(taken) == 1
        return taken[0]

    return run


def test_the_version_is_that_of_this_project(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"clip-orchestrator {__version__}\n"


def test_run_alone_is_the_demo(composed: Callable[..., Config]) -> None:
    assert composed("run") == composed("run", "+exp=demo")
    assert composed("run").source.format == "demo"


@pytest.mark.parametrize(
    "value",
    [
        "SHARDS/{00000..00002}.tar",
        "a=b",
        "a b/c d.tar",
        "it's",
        'say "x"',
        "back\\slash",
        "end\\",
        "end\\\\",
        "\\'",
        "'",
        "a'",
        "s3://bucket/pool/{00000..41455}.tar",
        "~/x",
        "(a),b",
        "x:y",
        "a#b",
        "100",
        "1e5",
        "true",
        "0x1f",
        "50%",
        "{a,b}/*.tar",
        " leading",
        "trailing ",
        "日本/é.tar",
        "a[0-3].tar",
        "key={x: 1}",
        "$x",
        "a,b",
        "nul",
        "inf",
        "-",
        "x\\{y}",
    ],
)
@pytest.mark.parametrize("key", ["out", "source.uri"])
def test_a_path_arrives_as_it_was_typed(key: str, value: str) -> None:
    typed = ["+exp=wfpp", f"{key}={value}"] + ["source.uri=x"] * (key != "source.uri")
    config = compose_config(for_hydra(typed))
    assert (config.out if key == "out" else config.source.uri) == value


def test_any_string_arrives_as_it_was_typed() -> None:
    draw, keys = random.Random(0), ("out", "store", "run", "to", "checkpoint")
    for _ in range(30):
        values = ["".join(draw.choices("ab0 {}()=,:.'\"\\/*?#%&;|<>~!@^+-_日é]", k=draw.randint(1, 12))) for _ in keys]
        values = [value if value[0] not in "'\"" else f"/{value}" for value in values]
        typed = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
        config = compose_config(for_hydra(["source.uri=x", *typed]))
        assert [getattr(config, key) for key in keys] == values, typed


def test_a_path_that_a_shell_made_many_of_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"source\.uri is given 3 times with different numbers: .*quote the value twice"
    ):
        compose_config(for_hydra([f"source.uri=s3://b/{i}.tar" for i in range(3)]))
    # given again on purpose
    assert compose_config(for_hydra(["source.uri=a.tar", "source.uri=b.tar"])).source.uri == "b.tar"


def test_null_lists_and_quoted_values_keep_hydras_meaning() -> None:
    assert compose_config(for_hydra(["source.uri=x", "out=null"])).out is None
    assert compose_config(for_hydra(["source.uri=[a,b]"])).source.uri == ("a", "b")
    assert compose_config(for_hydra(["source.uri='{x}'"])).source.uri == "{x}"


def test_every_path_of_the_configuration_is_path_like() -> None:
    assert {"out", "store", "run", "to", "checkpoint", "uri", "pretrained"} <= set(PATH_KEYS)


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("rnu", [*VERBS, "rnu"]),
        ("run +exp=wfpp_laoin", [*EXPERIMENTS, "wfpp_laoin"]),
        ("select source=webdatasets", ["webdataset", "parquet", "table", "demo"]),
        ("select model=vit", ["vit_b_16", "vit_b_32"]),
        ("select +exp=wfpp source.uri=x training.lrr=1", ["training.lrr", "weight_decay", "global_batch_size"]),
        ("select +exp=wfpp source.uri=x trainig.lr=1", ["trainig", "training", "selection", "source"]),
        ("select +exp=wfpp source.uri=x training.precision=fp8", ["training.precision", "fp8", "fp32", "bf16", "fp16"]),
        ("select +exp=wfpp source.uri=x selection.steps=[wfp]", ["wfp", "wfpp", "random", "all"]),
        ("select +exp=wfpp source.uri=x selection.wfpp.method=foo", ["selection.wfpp.method", "foo", "random", "all"]),
        ("select +exp=wfpp source.uri=x +selection.wfpp.keepfraction=1", ["selection.wfpp.keepfraction"]),
        ("select +exp=wfpp", ["source.uri"]),
        ("select exp=wfpp", ["+exp=NAME"]),
        ("select +exp=wfpp source.uri=x 'training.lr=[1'", []),
        ("export run=nowhere to=kept.parquet", ["nowhere", "run.json"]),
        ("export to=kept.parquet", ["run="]),
        ("evaluate out=x", ["checkpoint="]),
    ],
)
def test_a_mistake_is_one_line_that_names_what_is_valid(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: str,
    names: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command))
    assert ended.value.code == 2
    said = capfd.readouterr().err.strip()
    assert said.startswith("orchestrator: ")
    assert "\n" not in said
    assert all(name in said for name in names), said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["rnu", "run +exp=wfpp_laoin", "select +exp=wfpp source.uri=x training.lrr=1"])
def test_a_mistake_in_a_shell(run_process: Shell, tmp_path: Path, command: str) -> None:
    refused(
        run_process(f"python -m orchestrator {command}", cwd=tmp_path),
        names=["wfpp_laion" if "laoin" in command else "expected one of"],
    )


def test_help_needs_neither_torch_nor_ray(run_process: Shell, tmp_path: Path) -> None:
    for command in ("--help", "run --help"):
        done = run_process(f"python -X importtime -m orchestrator {command}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert all(verb in done.stdout for verb in (*VERBS, *EXPERIMENTS))
        modules = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
        assert "hydra" in modules
        assert not modules & {"torch", "ray", "open_clip", "polars", "pyarrow"}


def test_cfg_job_behind_a_verb(run_process: Shell, tmp_path: Path) -> None:
    done = run_process("python -m orchestrator plan +exp=wfpp_laion source.uri='S/{0..2}.tar' --cfg job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "global_batch_size: 32768" in done.stdout
    assert "S/{0..2}.tar" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_folder_of_ones_own(run_process: Shell, tiny_conf: str, tmp_path: Path) -> None:
    done = run_process(f"python -m orchestrator run {tiny_conf} source.uri=x --cfg job", cwd=tmp_path)
    assert "name: tiny" in done.stdout, done.stderr
    done = run_process(f"python -m orchestrator run {tiny_conf.replace('tiny', 'tinny')} source.uri=x", cwd=tmp_path)
    refused(done, names=["tinny"])


def test_plan_shows_pairs_and_samples_and_computes_nothing(run_command: Shell, tmp_path: Path) -> None:
    write_tars(tmp_path / "SHARDS", make_pairs(30), num_shards=3)
    before = sorted(tmp_path.rglob("*"))
    done = run_command(
        "python -m orchestrator plan   +exp=wfpp_laion source.uri='SHARDS/{00000..00002}.tar' plan.probe=false",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells]
        for cells in (line.split("│") for line in done.stdout.splitlines())
        if len(cells) == 7
    }
    assert rows["wfpp"][3:5] == ["to compute", "~24"]
    assert rows["pretrain"][3:6] == ["to compute", "~24", f"~{24 * 32}"]
    assert rows["finetune"][3:6] == ["to compute", "~30", "~30"]
    assert f"~{24 * 32 + 30}" in done.stdout.split("samples seen:")[1]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def selected(run_command: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the public `select` was typed."""
    import polars as pl

    folder = tmp_path_factory.mktemp("select")
    pl.DataFrame({"url": [f"http://x/{i}" for i in range(200)], "caption": real_captions(400)[:200]}).write_parquet(
        folder / "captions.parquet"
    )
    done = run_command(
        "python -m orchestrator select +exp=wfpp source=table source.uri=captions.parquet "
        "source.caption_column=caption selection.wfpp.keep_fraction=0.5 out=OUT",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_select_writes_the_run_into_out(selected: Path) -> None:
    assert {"report.json", "report.html", "run.json", "config.json"} <= set(os.listdir(selected / "OUT"))
    assert "Traceback" not in (selected / "OUT" / "report.html").read_text()


def test_export_follows_the_ending(selected: Path, run_command: Shell) -> None:
    done = run_command("python -m orchestrator export run=OUT to=kept.parquet", cwd=selected)
    assert done.returncode == 0, done.stderr
    table = pq.read_table(selected / "kept.parquet")
    assert table.column_names[:3] == ["shard", "row", "key"]
    assert {"url", "caption", "score"} <= set(table.column_names)
    assert table.num_rows == 100
    places = list(zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True))
    assert places == sorted(places)
    assert len(set(places)) == 100
    refused(
        run_command("python -m orchestrator export run=OUT to=kept.xlsx", cwd=selected),
        names=[".xlsx", ".parquet", ".npy"],
    )
    assert sorted(path.name for path in selected.glob("kept*")) == ["kept.parquet"]


def exit_code_of_plan(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Any:
    """Return the exit code of a `plan` that raises an error."""

    def fail(config: Config) -> None:
        raise error

    monkeypatch.setattr(pipeline, "plan", fail)
    with pytest.raises(SystemExit) as ended:
        main(["plan", "+exp=wfpp", "source.uri=x"])
    return ended.value.code


def test_a_fault_of_ours_shows_its_trace_and_ends_with_1(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    assert exit_code_of_plan(monkeypatch, ZeroDivisionError("ours")) == cli.FAILURE
    assert "ZeroDivisionError: ours" in capfd.readouterr().err


def test_a_mistake_is_found_under_what_was_raised_while_it_was_handled(
    monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def mistaken(config: Config) -> None:
        try:
            raise UserError("source.uri: nothing there")
        except UserError:
            raise RuntimeError("while tidying up")  # noqa: B904 without a cause of its own

    monkeypatch.setattr(pipeline, "plan", mistaken)
    with pytest.raises(SystemExit) as ended:
        main(["plan", "+exp=wfpp", "source.uri=x"])
    assert ended.value.code == cli.USAGE_ERROR
    assert capfd.readouterr().err == "orchestrator: source.uri: nothing there\n"


def test_a_cluster_that_does_not_start_is_a_failure(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    assert exit_code_of_plan(monkeypatch, ClusterError("Ray did not start")) == cli.FAILURE
    assert capfd.readouterr().err == "orchestrator: Ray did not start\n"


def test_a_node_that_is_lost_is_no_fault_of_ours(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    from ray.exceptions import LocalRayletDiedError

    assert exit_code_of_plan(monkeypatch, LocalRayletDiedError()) == cli.FAILURE
    told = capfd.readouterr().err
    assert len(told.splitlines()) == 1
    assert "LocalRayletDiedError" in told
    assert "run the same command again to resume" in told


@pytest.mark.parametrize(
    ("typed", "dimensions"),
    [
        ([], ["keep_fraction", "num_clusters"]),
        (["sweep=eps"], ["eps"]),
        (["sweep.space={training.lr: {grid: [1e-3]}}"], ["training.lr"]),
        (["sweep.space.tau={keys: selection.dbp.tau, grid: [0.1]}"], ["keep_fraction", "num_clusters", "tau"]),
        (["sweep=eps", "sweep.space.eps.grid=[0.1]"], ["eps"]),
    ],
)
def test_a_space_that_is_given_takes_the_place_of_the_experiments(typed: list[str], dimensions: list[str]) -> None:
    config = compose_config(for_hydra(["+exp=demo_sweep", *typed]))
    assert list(config.sweep.space) == dimensions
    assert config.sweep.samples == 12_800
