"""Embedding: our encoder from images in host memory to vectors in host memory, against the bare model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from orchestrator.clip.encoders import Encoder
from orchestrator.clip.preprocessing import Normaliser, image_input
from tests.gpu.harness import Check, at_least, at_most, figure
from tests.gpu.lab import Lab
from tests.gpu.models import built, made_up

MODEL = "ViT-B-16"
# the rate of the encoder as a share of the bare model's
WANTED = 0.9


def encoders(lab: Lab) -> Iterator[Check]:
    """ViT-B/16 in bf16 embeds images at .9 of the rate of a bare loop, and near the vectors of fp32."""
    size, num_batches = lab.size(1024, 4), lab.size(8, 2)
    batches = [made_up(lab, built(lab, MODEL), size, seed=seed) for seed in range(2)]
    rates, vectors = {}, {}
    for precision in ("fp32", "bf16"):
        encoder = _encoder(lab).place(lab.device, precision)

        def embed(encoder: Encoder = encoder) -> None:
            for number in range(num_batches):
                encoder.encode_images(batches[number % 2].images)

        vectors[precision] = encoder.encode_images(batches[0].images)
        rates[precision] = size * num_batches / lab.median_seconds(embed, rounds=lab.size(3, 1))
        yield figure(f"{precision}: our encoder", rates[precision], "images/s")
    bare = _bare_rate(lab, batches[0].images, num_batches)
    yield figure("bf16: bare model, images on the device", bare, "images/s")
    cosines = (vectors["bf16"] * vectors["fp32"]).sum(dim=1)
    yield at_least("smallest cosine of a vector in bf16 with its vector in fp32", cosines.min().item(), 0.999)
    yield at_most("norm of a vector, off 1", (vectors["bf16"].norm(dim=1) - 1).abs().max().item(), 1e-5)
    if not lab.is_dry:
        yield at_least("our encoder / bare model", rates["bf16"] / bare, WANTED)


def _encoder(lab: Lab) -> Encoder:
    clip = built(lab, MODEL)
    images = image_input(MODEL, clip.preprocess_cfg["size"], clip.preprocess_cfg["resize_mode"])
    return Encoder(clip=clip, image_input=images, dims={"image": clip.model_cfg["embed_dim"]})


def _bare_rate(lab: Lab, images: torch.Tensor, num_batches: int) -> float:
    """Return images/s of the image tower alone: bf16 weights, and pixels that are on the device already."""
    clip = built(lab, MODEL)
    normalise = Normaliser(clip.preprocess_cfg["mean"], clip.preprocess_cfg["std"], lab.device)
    tower, pixels = clip.model.to(lab.device, torch.bfloat16).eval(), normalise(images).bfloat16()

    @torch.inference_mode()
    def embed() -> None:
        for _ in range(num_batches):
            F.normalize(tower.encode_image(pixels), dim=-1)

    return len(images) * num_batches / lab.median_seconds(embed, rounds=lab.size(3, 1))
