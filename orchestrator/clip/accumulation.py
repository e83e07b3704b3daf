"""Gradient accumulation for a contrastive loss (GradCache, Gao et al. 2021; open_clip's `accum_freq`).

The loss needs the features of all pairs at once, but the backward pass needs memory for one chunk at a time only:

1. Each chunk runs without gradients, and its features are kept.
2. The loss on all features gives the gradient of each feature.
3. Each chunk runs again, and its features' gradient goes back through it.

A single chunk needs no first pass: it runs once, with gradients. Its use is that the loss and the towers can have
different contexts in the backward pass too.

Loss and gradients equal those of a single pass. Batch norm is the exception: it sees chunks, and updates its running
averages in both passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from orchestrator.clip.towers import Outputs


def backward_in_chunks(
    num_chunks: int,
    *,
    forward: Callable[[int], Outputs],
    loss: Callable[[Outputs], torch.Tensor],
    backward: Callable[[torch.Tensor], None],
    no_sync: Callable[[], AbstractContextManager[None]],
    in_towers: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> torch.Tensor:
    """Return the loss, after adding its gradients to those of the parameters.

    forward(i): the outputs of chunk i, equal in both calls; loss(outputs): the loss of all chunks' features together;
    backward(loss): its backward pass; no_sync(): a context in which ranks exchange no gradients; in_towers(): a context
    for both passes of the towers."""
    with torch.set_grad_enabled(num_chunks == 1), in_towers():
        chunks = [forward(index) for index in range(num_chunks)]
    whole = _as_leaves(chunks)
    value = loss(whole)
    backward(value)
    image_gradients, text_gradients = (
        _gradient(features).split([len(chunk.images) for chunk in chunks]) for features in (whole.images, whole.texts)
    )
    for index in range(num_chunks):
        is_last = index + 1 == num_chunks
        with nullcontext() if is_last else no_sync(), in_towers():
            outputs = chunks[0] if num_chunks == 1 else forward(index)
            pairs = [(outputs.images, image_gradients[index]), (outputs.texts, text_gradients[index])]
            if is_last:
                # scale and bias enter the loss once, not once per chunk
                pairs.append((outputs.scale, _gradient(whole.scale)))
                if outputs.bias is not None and whole.bias is not None:
                    pairs.append((outputs.bias, _gradient(whole.bias)))
            _backward_features(pairs)
    return value.detach()


def _as_leaves(chunks: list[Outputs]) -> Outputs:
    bias = chunks[0].bias
    return Outputs(
        images=torch.cat([chunk.images.detach() for chunk in chunks]).requires_grad_(),
        texts=torch.cat([chunk.texts.detach() for chunk in chunks]).requires_grad_(),
        scale=chunks[0].scale.detach().requires_grad_(),
        bias=None if bias is None else bias.detach().requires_grad_(),
    )


def _gradient(leaf: torch.Tensor) -> torch.Tensor:
    assert leaf.grad is not None
    return leaf.grad


def _backward_features(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    # the features of a locked tower have no gradient
    wanted = [(output, gradient) for output, gradient in pairs if output.requires_grad]
    torch.autograd.backward([output for output, _ in wanted], [gradient for _, gradient in wanted])
