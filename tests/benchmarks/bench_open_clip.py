"""Compare samples/s with open_clip_train: the same tars, model, batch, precision and machine, in alternating rounds.

Each program starts as its users start it. open_clip_train runs as one process with its DataLoader, with 1 and with 2
reading processes; the faster one counts. torchrun with two gloo processes does not work on a CPU: open_clip_train
passes `device_ids` to DDP, and DDP refuses them for CPU modules. Ours is `run` with its default number of workers. Both
make random resized crops and log every step. The steady state starts after the first steps and is read from the log of
each program.

The machine must be idle. The threads of a process spin while they wait for each other, so other work slows down the
two-thread process of open_clip_train much more than our one-thread workers (6 times the processor time of a step,
measured at load 10). The ratio then has no meaning. The script prints the load before each start.

The data module of open_clip_train needs webdataset 0.2.86. With 1.0.2 it fails with `KeyError: fname`. Install it in a
separate folder:

    pip install --no-deps --target /tmp/open_clip webdataset==0.2.86
    python tests/benchmarks/bench_open_clip.py --open-clip-path /tmp/open_clip --case demo
    python tests/benchmarks/bench_open_clip.py --open-clip-path /tmp/open_clip --case vit_b_32

With `--before CLONE`, a clone at an earlier commit takes part in the same turns.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import torch
from PIL import Image

from orchestrator.cli import compose_config
from orchestrator.clip.precision import native
from orchestrator.demo.img2dataset import add_member, deterministic_tar
from orchestrator.demo.shards import POOL_PATH

HERE = Path(__file__).parents[2]
OURS, BEFORE = "ours", "ours, before"
NUM_SHARDS = 8
PICTURE_SIDE = 256
LR, WARMUP_STEPS, WEIGHT_DECAY, BETA1, BETA2, EPS = 5e-4, 10, 0.2, 0.9, 0.98, 1e-6
# the command line of open_clip_train knows only the models that ship with open_clip
WITH_CONFIG = (
    "import sys, open_clip; open_clip.add_model_config(sys.argv[1]); "
    "from open_clip_train.main import main; main(sys.argv[2:])"
)
# the same autocast under the names of open_clip_train
THEIR_PRECISIONS = {"fp32": "fp32", "bf16": "amp_bf16"}
STEP_LINE = re.compile(r"Data \(t\): ([\d.]+) Batch \(t\): [\d.]+, ([\d.e+]+)/s,")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and how both programs train it; precision `auto` is the one that this machine computes fast."""

    model: str
    precision: str
    batch_size: int
    context_length: int
    num_steps: int
    num_left_out: int


CASES = {
    "vit_b_32": Case(
        model="vit_b_32",
        precision="fp32",
        batch_size=64,
        context_length=77,
        num_steps=10,
        num_left_out=2,
    ),
    "demo": Case(
        model="resnet10t_48",
        precision="auto",
        batch_size=256,
        context_length=20,
        num_steps=38,
        num_left_out=8,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Samples/s of one program.

    `steady` covers the steady steps and `whole` all steps, including the first wait for data. `waited` is the share of
    the steady time that waited for data."""

    steady: float
    whole: float
    waited: float


def pace(samples_per_second: Sequence[float], waited: Sequence[float], case: Case) -> Pace:
    """Compute the pace from the samples/s and the seconds of waiting of each step."""
    if len(samples_per_second) < case.num_steps:
        raise RuntimeError(f"the log has {len(samples_per_second)} steps, expected {case.num_steps}")
    seconds = [case.batch_size / speed for speed in samples_per_second]
    steady = seconds[case.num_left_out :]
    return Pace(
        steady=case.batch_size * len(steady) / sum(steady),
        whole=case.batch_size * len(seconds) / sum(seconds),
        waited=sum(waited[case.num_left_out :]) / sum(steady),
    )


def write_tars(folder: Path, num_pairs: int) -> str:
    """Write the demo's pairs as 256 px JPEGs and texts in tars. Return the brace pattern of the tars."""
    rows = pl.read_parquet(POOL_PATH / "train.parquet", columns=["image", "caption"]).head(num_pairs).to_dicts()
    if len(rows) < num_pairs:
        raise ValueError(f"the pool has {len(rows):,} pairs, but {num_pairs:,} are needed: lower --num-steps")
    folder.mkdir()
    for shard in range(NUM_SHARDS):
        with deterministic_tar(folder / f"{shard:05d}.tar") as tar:
            for position, row in enumerate(rows[shard::NUM_SHARDS]):
                key = f"{shard:05d}{position:04d}"
                add_member(tar, f"{key}.jpg", _jpeg(row["image"]))
                add_member(tar, f"{key}.txt", row["caption"].encode())
    return f"{folder}/{{00000..{NUM_SHARDS - 1:05d}}}.tar"


def _jpeg(data: bytes) -> bytes:
    out = io.BytesIO()
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture.resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC).save(out, "JPEG", quality=95)
    return out.getvalue()


def theirs(case: Case, uri: str, scratch: Path, *, open_clip_path: Path, readers: int) -> Pace:
    """Train one epoch with open_clip_train."""
    model = compose_config([f"model={case.model}", "source=demo"]).model
    entry = ["-m", "open_clip_train.main"]
    name = model.name
    if name is None:
        name = case.model
        (scratch / "models").mkdir(exist_ok=True)
        (scratch / "models" / f"{name}.json").write_text(json.dumps(model.config))
        entry = ["-c", WITH_CONFIG, str(scratch / "models")]
    options = {
        "dataset-type": "webdataset", "train-data": uri, "train-num-samples": case.num_steps * case.batch_size,
        "workers": readers, "model": name, "precision": THEIR_PRECISIONS[case.precision], "batch-size": case.batch_size,
        "force-context-length": case.context_length, "lr": LR, "warmup": WARMUP_STEPS, "wd": WEIGHT_DECAY,
        "beta1": BETA1, "beta2": BETA2, "eps": EPS, "epochs": 1, "device": "cpu", "log-every-n-steps": 1,
        "save-frequency": 0, "logs": scratch / "logs", "name": "theirs",
    }  # fmt: skip
    arguments = [f"--{name}={value}" for name, value in options.items()]
    environment = {**os.environ, "PYTHONPATH": str(open_clip_path)}
    done = subprocess.run([sys.executable, *entry, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"open_clip_train failed:\n{done.stderr[-2000:]}")
    found = STEP_LINE.findall((scratch / "logs" / "theirs" / "out.log").read_text())
    return pace([float(speed) for _, speed in found], [float(waited) for waited, _ in found], case)


def ours(case: Case, uri: str, scratch: Path, *, clone: Path, overrides: list[str]) -> Pace:
    """Train one epoch with the pre-training phase of a run, by the code of a clone."""
    settings = [
        "source=webdataset", f"source.uri='{uri}'", f"model={case.model}", f"training.precision={case.precision}",
        f"model.context_length={case.context_length}", "selection.steps=[all]", "finetune.enabled=false",
        "training.epochs=1", f"training.global_batch_size={case.batch_size}", f"training.lr={LR}",
        f"training.warmup_steps={WARMUP_STEPS}", f"training.weight_decay={WEIGHT_DECAY}", f"training.beta1={BETA1}",
        f"training.beta2={BETA2}", f"training.eps={EPS}", "training.log_every_steps=1",
        "training.checkpoint_every_steps=100000", f"out={scratch / 'out'}",
        f"store={scratch / 'store'}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "orchestrator", "run", *settings, *overrides]
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=clone, env=environment)
    curve = next((scratch / "store" / "pretrain").glob("*/metrics.jsonl")).read_text().splitlines()
    records = [json.loads(line) for line in curve]
    speeds = [record["samples_per_second"] for record in records]
    waited = [record["data_wait_share"] * case.batch_size / record["samples_per_second"] for record in records]
    return pace(speeds, waited, case)


def rounds(arguments: argparse.Namespace, case: Case) -> dict[str, Pace]:
    """Run all programs in turns. Return the median pace of each."""
    clones = {OURS: HERE} | ({BEFORE: arguments.before.resolve()} if arguments.before else {})
    found: dict[str, list[Pace]] = {"open_clip_train, 1 reader": [], "open_clip_train, 2 readers": []}
    found |= {name: [] for name in clones}
    with tempfile.TemporaryDirectory() as folder:
        uri = write_tars(Path(folder) / "tars", case.num_steps * case.batch_size)
        for number in range(arguments.rounds):
            for place, name in enumerate(found):
                scratch = Path(folder) / f"{number}-{place}"
                scratch.mkdir()
                load = os.getloadavg()[0]
                if name in clones:
                    got = ours(case, uri, scratch, clone=clones[name], overrides=arguments.set)
                else:
                    got = theirs(case, uri, scratch, open_clip_path=arguments.open_clip_path, readers=place + 1)
                print(
                    f"round {number + 1}, {name}: {got.steady:,.1f} samples/s, load before {load:.1f}",
                    file=sys.stderr,
                    flush=True,
                )
                found[name].append(got)
    return {name: median(paces) for name, paces in found.items()}


def median(paces: list[Pace]) -> Pace:
    """Return the median of each figure over the rounds."""
    return Pace(
        **{name: statistics.median(getattr(one, name) for one in paces) for name in ("steady", "whole", "waited")}
    )


def chosen_case(arguments: argparse.Namespace) -> Case:
    """Return the case, changed by the command line, in a precision that this machine computes fast."""
    names = ("num_steps", "batch_size", "context_length")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    case = replace(CASES[arguments.case], **given)
    # cores without AVX-512 emulate bf16, and a step takes ten times as long
    return replace(case, precision=native(torch.device("cpu"))) if case.precision == "auto" else case


def main() -> None:
    """Print Markdown: steady samples/s and their ratio, the same with the first steps, and the wait for data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open-clip-path", type=Path, required=True, help="folder with webdataset 0.2.86")
    parser.add_argument("--case", choices=list(CASES), required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, metavar="CLONE", help="a clone at an earlier commit")
    parser.add_argument(
        "--num-steps", type=int, help="number of steps, including the first ones that do not count; default: the case's"
    )
    parser.add_argument("--batch-size", type=int, help="default: the case's")
    parser.add_argument("--context-length", type=int, help="tokens, for both programs; default: the case's")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more settings of our run")
    arguments = parser.parse_args()
    case = chosen_case(arguments)
    paces = rounds(arguments, case)
    others = [pace for name, pace in paces.items() if name not in (OURS, BEFORE)]
    best = max(others, key=lambda pace: pace.steady)
    print(
        f"{case.model}, batch {case.batch_size}, {case.precision}, {case.context_length} tokens, "
        f"{case.num_steps - case.num_left_out} steps after the first {case.num_left_out}, "
        f"median of {arguments.rounds} rounds\n\n"
        "| | samples/s | ours / this | with the first steps | ours / this | waits for data |\n|---|---|---|---|---|---|"
    )
    for name, pace in paces.items():
        label = f"**{name}**" if pace is best else name
        print(
            f"| {label} | {pace.steady:,.1f} | {paces[OURS].steady / pace.steady:.2f} | {pace.whole:,.1f} | "
            f"{paces[OURS].whole / pace.whole:.2f} | {pace.waited:.1%} |"
        )


if __name__ == "__main__":
    main()
