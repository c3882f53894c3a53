"""Sources of steering vectors: contrasts of activations, and gradient steps."""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.geometry.alignment import Contrasted
from frenet.measure.activation_shift import activation_shift
from frenet.measure.activations import last_activations
from frenet.measure.forward_passes import TOKENS, length_groups
from frenet.methods.steering_vector import SteeringVector
from frenet.network.blocks import residual_blocks
from frenet.network.data.contrast import Contrast
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import collate, example_losses

Form = Literal["class", "answer"]
Aggregate = Callable[[Contrasted], Tensor]


class Streams(NamedTuple):
    """Streams of both sides of a contrast after several blocks, (p, l, h) and (n, l, h)."""

    positive: Float[Tensor, "p l h"]
    negative: Float[Tensor, "n l h"]
    paired: bool

    def at(self, index: int) -> Contrasted:
        """The two sides after one of the blocks, by its index in the list."""
        return Contrasted(self.positive[:, index], self.negative[:, index], self.paired)

    def norms(self) -> Float[Tensor, " l"]:
        """Root mean square norm of the streams of both sides after each block."""
        return torch.cat([self.positive, self.negative]).norm(dim=2).square().mean(0).sqrt()


def contrast_streams(
    model: nn.Module,
    contrast: Contrast,
    blocks: Sequence[int],
    *,
    form: Form | None = None,
    path: str | None = None,
    tokens: int = TOKENS,
) -> Streams:
    """Activations of both sides of a contrast at their last tokens.

    Args:
        model: a decoder; left unchanged.
        contrast: the prompts.
        blocks: l block indices.
        form: "class" compares prompts of the positive class with those of the negative one, at the
            last token before the answers differ; "answer" compares every prompt with its positive
            answer to the same with its negative one, at the answer's last token. None: "class" if
            prompts have one.
        path: dotted name of the list of blocks; None: frenet looks for it.
        tokens: most tokens in one forward pass.

    Returns:
        The streams, on the CPU.

    Raises:
        ValueError: the form is "class" and the prompts have none.
    """
    form = form or ("class" if contrast.kind == "statements" else "answer")
    if form == "class" and contrast.kind != "statements":
        raise UsageError(
            f"the prompts of contrast {contrast.name!r} have no class (they are "
            f"{contrast.kind}); pass form='answer'"
        )
    if form == "class":
        sides = [[item.context for item in contrast.of_class(label)] for label in (True, False)]
    else:
        sides = [[item.sides[side] for item in contrast.items] for side in (0, 1)]
    together = last_activations(model, sides[0] + sides[1], blocks, path=path, tokens=tokens).cpu()
    first, second = together.split([len(sides[0]), len(sides[1])])
    return Streams(first, second, form == "answer")


def mean_difference(sides: Contrasted) -> Float[Tensor, " h"]:
    """Mean of the positive side minus mean of the negative one."""
    return sides.difference()


def principal_difference(sides: Contrasted) -> Float[Tensor, " h"]:
    """First principal component of the paired differences, about zero, as long as their mean.

    Its sign is that of the mean difference.

    Raises:
        ValueError: the sides have different lengths.
    """
    if len(sides.positive) != len(sides.negative):
        raise UsageError(
            f"{len(sides.positive)} positive and {len(sides.negative)} negative streams make no "
            "pairs; use mean_difference"
        )
    differences = sides.positive.double() - sides.negative.double()
    first = torch.linalg.svd(differences, full_matrices=False)[2][0]
    mean = differences.mean(0)
    return first * mean.norm() * (1 if float(first @ mean) >= 0 else -1)


def caa(
    model: nn.Module,
    contrast: Contrast,
    *,
    blocks: Sequence[int] | None = None,
    form: Form | None = None,
    aggregate: Aggregate = mean_difference,
    fingerprint: str = "",
    path: str | None = None,
) -> SteeringVector:
    """Contrastive activation addition: one direction for each block from a contrast's streams.

    v_l = mean of h_l over the positive side - mean over the negative side, or the result of
    ``aggregate``.

    Args:
        model: a decoder; left unchanged.
        contrast: the prompts.
        blocks: block indices; None: all.
        form: see ``contrast_streams``.
        aggregate: from the streams of both sides after one block to a direction (h,).
        fingerprint: of the model; stored with the vector.
        path: dotted name of the list of blocks; None: frenet looks for it.

    Raises:
        ValueError: the direction is zero after every block.

    Source: Rimsky et al. (2024), Steering Llama 2 via contrastive activation addition,
    arXiv 2312.06681.
    """
    chosen = list(range(len(residual_blocks(model, path)[1])) if blocks is None else blocks)
    streams = contrast_streams(model, contrast, chosen, form=form, path=path)
    return from_streams(streams, contrast, chosen, aggregate=aggregate, fingerprint=fingerprint)


def from_streams(
    streams: Streams,
    contrast: Contrast,
    blocks: Sequence[int],
    *,
    aggregate: Aggregate = mean_difference,
    fingerprint: str = "",
) -> SteeringVector:
    """The vector of ``caa`` from streams that were read already.

    Args:
        streams: of the contrast after the blocks.
        contrast: the prompts.
        blocks: block indices, in the order of the streams.
        aggregate: from the streams of both sides after one block to a direction (h,).
        fingerprint: of the model; stored with the vector.

    Raises:
        ValueError: the direction is zero after every block.
    """
    directions = {b: aggregate(streams.at(i)).float().cpu() for i, b in enumerate(blocks)}
    if not any(bool(direction.any()) for direction in directions.values()):
        raise UsageError(
            f"the two sides of contrast {contrast.name!r} have the same mean stream after every "
            "block, so there is no direction; pass prompts with last tokens that depend on what "
            "differs"
        )
    name = getattr(aggregate, "__name__", "aggregate").replace("_", " ")
    return SteeringVector(
        directions, f"CAA, {name} of {contrast.name}", fingerprint, contrast.fingerprint,
        dict(zip(blocks, map(float, streams.norms()), strict=True)),
    )  # fmt: skip


def push_items(
    contrast: Contrast, *, towards: bool = True, flipped: bool = False
) -> list[tuple[list[int], list[int]]]:
    """Prompts with the tokens of the answer that a gradient step pushes them to.

    All choices, but statements of one class only: a loss that pushes the classes apart flips its
    sign when answers are saturated.

    Args:
        contrast: the prompts.
        towards: the positive answer, or the negative one.
        flipped: push the prompts of the other class, to the wrong answer. If the model is sure of
            the right answers, only wrong ones have a large gradient.

    Raises:
        ValueError: the items are pairs of texts, which have no answer, or choices to flip, which
            have no class.
        UnansweredError: one answer is the beginning of the other.
    """
    if contrast.kind == "pairs":
        raise UsageError(
            f"the pairs of contrast {contrast.name!r} have no answer to push towards; a gradient "
            "needs statements or choices"
        )
    if contrast.kind == "choices":
        if flipped:
            raise UsageError(f"the questions of contrast {contrast.name!r} have no class to flip")
        items = list(contrast.items)
    else:
        items = contrast.of_class(towards != flipped)
    return [(item.context, item.both_answers()[not towards]) for item in items]


def push_gradient(
    model: nn.Module,
    prompts: Sequence[tuple[list[int], list[int]]],
    *,
    space: ParamSpace,
    tokens: int = TOKENS // 8,
) -> Float[Tensor, " d"]:
    """Gradient of the mean loss of an answer, g = d/dtheta mean_i -log p(answer_i | prompt_i).

    The log probability of an answer is the sum over its tokens, each after those before it.

    Args:
        model: a decoder; left unchanged.
        prompts: token ids of the prompt, and of the answer.
        space: the d parameters.
        tokens: most tokens in one forward and backward pass; with a width of 1,000 and 24 blocks
            their activations take more than 2 MB per token.

    Raises:
        FloatingPointError: the gradient is not finite; names the parameter.
    """
    parameters = space.parameters(model)
    g = torch.zeros(space.dim, device=parameters[0].device)
    with measuring(model, space), torch.enable_grad(), contextlib.ExitStack() as hooks:
        # Gradients are added up one by one, without a second copy of all of them.
        for parameter, part in zip(parameters, space.unflatten(g).values(), strict=True):
            handle = parameter.register_post_accumulate_grad_hook(partial(_moved, part))
            hooks.callback(handle.remove)
        # The last token of an answer predicts nothing.
        for group in length_groups([given + answer[:-1] for given, answer in prompts], tokens):
            losses, _ = example_losses(model, collate([prompts[i] for i in group]))
            (losses.sum() / len(prompts)).backward()
    space.check_finite(g, "the gradient of the answer")
    return g


def _moved(total: Tensor, parameter: Tensor) -> None:
    """Add a parameter's gradient to the total, and free it."""
    if parameter.grad is not None:
        total.add_(parameter.grad)
        parameter.grad = None


def gradient_shift(
    model: nn.Module,
    contrast: Contrast,
    rows: Sequence[Sequence[int]],
    *,
    space: ParamSpace,
    blocks: Sequence[int] | None = None,
    towards: bool = True,
    fingerprint: str = "",
    path: str | None = None,
) -> SteeringVector:
    """The mean shift of the stream under a gradient step towards an answer, J_l(theta) (-g).

    Args:
        model: a decoder; left unchanged.
        contrast: its ``push_items`` define g.
        rows: token ids of the prompts to measure the shift on, not those of g.
        space: the parameters that step: all weights, or an adapter's.
        blocks: block indices; None: all.
        towards: the positive answer, or the negative one.
        fingerprint: of the model; stored with the vector.
        path: dotted name of the list of blocks; None: frenet looks for it.
    """
    chosen = list(range(len(residual_blocks(model, path)[1])) if blocks is None else blocks)
    g = push_gradient(model, push_items(contrast, towards=towards), space=space)
    moved = activation_shift(model, rows, g.neg_(), space=space, blocks=chosen, path=path).mean(0)
    word = "positive" if towards else "negative"
    norms = last_activations(model, rows, chosen, path=path).norm(dim=2).square().mean(0).sqrt()
    return SteeringVector(
        {b: moved[i].cpu() for i, b in enumerate(chosen)},
        f"gradient step towards the {word} answer of {contrast.name}",
        fingerprint,
        contrast.fingerprint,
        dict(zip(chosen, norms.tolist(), strict=True)),
    )


def group_shifts(
    model: nn.Module,
    prompts: Sequence[tuple[list[int], list[int]]],
    rows: Sequence[Sequence[int]],
    *,
    space: ParamSpace,
    blocks: Sequence[int],
    groups: int,
    path: str | None = None,
) -> tuple[Float[Tensor, "g m l h"], Float[Tensor, " g"]]:
    """The shifts J_l(theta) (-g_i) by the steps of groups of prompts.

    Their mean, weighted by the sizes of the groups, is the shift by the step of all prompts, since
    a shift is linear in the step. So any subset of the groups has a shift without further passes.

    Args:
        model: a decoder; left unchanged.
        prompts: token ids of a prompt and of the answer that it is pushed to.
        rows: token ids of the m prompts to measure the shift on.
        space: the parameters that step.
        blocks: l block indices.
        groups: how many; with fewer prompts, each is a group. Each takes a gradient of its prompts
            and a forward derivative of all rows, about three forward passes.
        path: dotted name of the list of blocks; None: frenet looks for it.

    Returns:
        The shifts on the CPU, and the number of prompts in each of the g groups.
    """
    parts = [prompts[i::groups] for i in range(min(groups, len(prompts)))]
    shifts = []
    for part in parts:
        # In place: memory holds few copies of a large model's weights.
        step = push_gradient(model, part, space=space).neg_()
        moved = activation_shift(model, rows, step, space=space, blocks=blocks, path=path)
        shifts.append(moved.cpu())
    return torch.stack(shifts), torch.tensor([float(len(part)) for part in parts])


def shifted_prompts(contrast: Contrast) -> list[list[int]]:
    """Prompts to measure the shift on: statements of the negative class; all choices."""
    items = contrast.of_class(False) if contrast.kind == "statements" else contrast.items
    return [item.context for item in items]
