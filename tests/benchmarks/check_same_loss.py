"""Check that our loop and the loop of open_clip_train give the same loss at each step, from the same weights.

Theirs is `train_one_epoch`, with the arguments of its parser, and its schedule, loss and parameter groups. Its images
go through the evaluation transform that open_clip makes for the model (full decoding, centre crop). Ours is
`TrainStep`, with `decode` and with captions trimmed as in training. Both get the same batches from the same JPEG
bytes.

"same" pixels: theirs gets the pixels that ours decoded. Only fp32 arithmetic can differ. A loss of 4 has a spacing of
5e-7, and the differences stay small over 20 steps (measured: 1e-6; allowed: ten times that).

"own" pixels: each decodes for itself. Some pixels differ by a level or more, because Pillow rounds to 8 bits between
its two passes and the crop boxes differ (measured: 6e-5; allowed: 2e-4).

A learning rate that is wrong by one thousandth gives a difference of 5e-4.

    python tests/benchmarks/check_same_loss.py
"""

from __future__ import annotations

import io
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import open_clip
import polars as pl
import torch
from open_clip_train.distributed import init_distributed_device
from open_clip_train.params import parse_args
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from PIL import Image

from orchestrator.clip import model
from orchestrator.clip.model import Clip
from orchestrator.clip.recipe import Recipe
from orchestrator.clip.schedule import learning_rate
from orchestrator.clip.train_step import Batch, TrainStep
from orchestrator.data.image_decode import decode
from orchestrator.demo.shards import POOL_PATH
from orchestrator.training.sample_order import SampleOrder

NUM_STEPS, BATCH_SIZE, NUM_EPOCHS, NUM_SHARDS = 20, 64, 5, 8
LR, WARMUP_STEPS, WEIGHT_DECAY = 1e-3, 5, 0.2
Pixels = Literal["same", "own"]
TOLERANCES: dict[Pixels, float] = {"same": 1e-5, "own": 2e-4}
PICTURE_SIZES = ((256, 256), (256, 192), (180, 300))
IMAGE_SIZE = 64
MODEL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": IMAGE_SIZE, "patch_size": 16, "layers": 3, "width": 128, "head_width": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 3},
}


class Pair(NamedTuple):
    """A pair as stored in a shard."""

    jpeg: bytes
    caption: str


def batches() -> list[list[Pair]]:
    """Return the first global batches of the demo's pool, with images as JPEGs of several shapes."""
    shard = BATCH_SIZE * NUM_STEPS // NUM_EPOCHS // NUM_SHARDS
    stream = SampleOrder(
        kept_per_part=(shard,) * NUM_SHARDS,
        num_samples=BATCH_SIZE * NUM_STEPS,
        global_batch_size=BATCH_SIZE,
        num_lanes=NUM_SHARDS,
        window=16,
        seed=0,
    )
    rows = pl.read_parquet(POOL_PATH / "train.parquet", columns=["image", "caption"], n_rows=shard * NUM_SHARDS)
    pool = [Pair(_jpeg(image, number), caption) for number, (image, caption) in enumerate(rows.rows())]
    steps = (stream.batch(step) for step in range(NUM_STEPS))
    return [[pool[place] for place in (pairs.part * shard + pairs.kept_ordinal).tolist()] for pairs in steps]


def _jpeg(data: bytes, number: int) -> bytes:
    out = io.BytesIO()
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    size = PICTURE_SIZES[number % len(PICTURE_SIZES)]
    picture.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def build() -> Clip:
    """Return the model that both loops start from."""
    return model.build(name=None, config=MODEL, pretrained=None, image_size=None, context_length=None, seed=0)


def our_losses(clip: Clip, pairs: list[list[Pair]], *, lr_factor: float = 1.0) -> list[float]:
    """Train the model; return the loss of each step. An `lr_factor` other than 1 shows that the check finds errors."""
    train_step = TrainStep(clip, Recipe(weight_decay=WEIGHT_DECAY), device=torch.device("cpu"))
    losses = []
    for step, batch in enumerate(pairs):
        lr = learning_rate(
            step,
            schedule="cosine",
            peak_lr=LR * lr_factor,
            num_steps=NUM_STEPS,
            num_warmup_steps=WARMUP_STEPS,
        )
        losses.append(train_step.run(_our_batch(clip, batch), lr=lr, step=step).loss.item())
    return losses


def _pixels(pair: Pair) -> np.ndarray:
    return decode(pair.jpeg, size=IMAGE_SIZE, max_pixels=10**7)


def _our_batch(clip: Clip, pairs: list[Pair]) -> Batch:
    return Batch(
        images=torch.from_numpy(np.stack([_pixels(pair) for pair in pairs])).permute(0, 3, 1, 2),
        texts=clip.tokenizer([pair.caption for pair in pairs]),
        valid=torch.ones(len(pairs), dtype=torch.bool),
        keys=None,
    )


@dataclass
class _Data:
    """The data object and the data loader that `train_one_epoch` expects, in one."""

    pairs: list[list[Pair]]
    picture: Callable[[Pair], Image.Image]
    transform: Any
    tokenizer: Any

    num_batches, num_samples = NUM_STEPS, NUM_STEPS * BATCH_SIZE

    @property
    def dataloader(self) -> _Data:
        return self

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: there is one epoch."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self.pairs:
            images = [self.transform(self.picture(pair)) for pair in batch]
            yield torch.stack(images), self.tokenizer([pair.caption for pair in batch])


class _Writer:
    """A TensorBoard writer that keeps the losses, because the log has only five digits."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Keep the value if it is a loss."""
        if name == "train/loss":
            self.losses.append(value)


def their_losses(folder: Path, pairs: list[list[Pair]], pixels: Pixels) -> list[float]:
    """Train with open_clip_train from the weights in the folder; return the loss of each step."""
    reference = f"local-dir:{folder}"
    trained, _, transform = open_clip.create_model_and_transforms(reference, output_dict=True)
    options = {
        "model": reference, "device": "cpu", "precision": "fp32", "batch-size": BATCH_SIZE, "lr": LR,
        "wd": WEIGHT_DECAY, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6, "warmup": WARMUP_STEPS, "log-every-n-steps": 1,
    }  # fmt: skip
    args = parse_args([f"--{name}={value}" for name, value in options.items()])
    init_distributed_device(args)
    args.distill = args.wandb = False
    optimiser = _their_optimiser(trained, args)
    data = {"train": _Data(pairs, PICTURES[pixels], transform, open_clip.get_tokenizer(reference))}
    schedule = cosine_lr(optimiser, args.lr, args.warmup, NUM_STEPS)
    writer = _Writer()
    loss = open_clip.create_loss(args)
    train_one_epoch(trained, data, loss, 0, optimiser, None, schedule, None, args, tb_writer=writer)
    return writer.losses


def _their_optimiser(trained: torch.nn.Module, args: Any) -> torch.optim.AdamW:
    # a copy: open_clip_train has this code inside its main function
    def exclude(name: str, parameter: torch.Tensor) -> bool:
        return parameter.ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "logit_scale" in name

    named = list(trained.named_parameters())
    gain_or_bias = [parameter for name, parameter in named if exclude(name, parameter) and parameter.requires_grad]
    rest = [parameter for name, parameter in named if not exclude(name, parameter) and parameter.requires_grad]
    groups = [{"params": gain_or_bias, "weight_decay": 0.0}, {"params": rest, "weight_decay": args.wd}]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps)


# the transform does not change an image that has the model's size already
PICTURES: dict[Pixels, Callable[[Pair], Image.Image]] = {
    "same": lambda pair: Image.fromarray(_pixels(pair)),
    "own": lambda pair: Image.open(io.BytesIO(pair.jpeg)),
}


class Losses(NamedTuple):
    """The loss of each step: ours, theirs on our pixels, theirs with its own decoding."""

    ours: list[float]
    theirs: dict[Pixels, list[float]]

    def largest_difference(self, pixels: Pixels) -> float:
        """Return the largest difference over all steps."""
        return max(abs(one - other) for one, other in zip(self.ours, self.theirs[pixels], strict=True))


def losses() -> Losses:
    """Train all three from the same weights."""
    clip, pairs = build(), batches()
    with tempfile.TemporaryDirectory() as folder:
        model.save(clip, Path(folder))
        theirs = {pixels: their_losses(Path(folder), pairs, pixels) for pixels in TOLERANCES}
    return Losses(our_losses(clip, pairs), theirs)


def main() -> int:
    """Print the losses. Return 1 if they differ by more than `TOLERANCES`."""
    logging.disable(logging.INFO)
    found = losses()
    print(
        "| step | ours | theirs, our pixels | difference | theirs, own pixels | difference |\n|---|---|---|---|---|---|"
    )
    for step, (ours, same, own) in enumerate(zip(found.ours, found.theirs["same"], found.theirs["own"], strict=True)):
        print(f"| {step} | {ours:.6f} | {same:.6f} | {ours - same:+.1e} | {own:.6f} | {ours - own:+.1e} |")
    largest = {pixels: found.largest_difference(pixels) for pixels in TOLERANCES}
    for pixels, difference in largest.items():
        print(f"\n{pixels} pixels: largest difference {difference:.1e}, allowed {TOLERANCES[pixels]:.0e}")
    return int(any(largest[pixels] > allowed for pixels, allowed in TOLERANCES.items()))


if __name__ == "__main__":
    sys.exit(main())
