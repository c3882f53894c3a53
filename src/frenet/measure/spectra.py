"""How low-rank the held-out gradients of a task are, compared with nulls and ceilings."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from frenet.geometry import energy, linalg, nulls

# Inner products of some vectors: of their coordinates, or of the changes that they make.
GramOf = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n n"]]
Split = tuple[Int[Tensor, " a"], Int[Tensor, " b"]]


class NullSpectra(NamedTuple):
    """Gram matrices, of unit rows, of one draw of each null of a gradient matrix."""

    gaussian: Float[Tensor, "n n"]
    shuffle: Float[Tensor, "n n"]
    sign: Float[Tensor, "n n"]

    @classmethod
    def draw(
        cls,
        gradients: Float[Tensor, "n d"],
        sizes: Sequence[int],
        generator: torch.Generator,
        gram: GramOf = linalg.gram,
    ) -> "NullSpectra":
        """Gaussian noise of equal norms, shuffled coordinates, and random signs."""
        return cls(
            unit_gram(nulls.gaussian_like(gradients, sizes, generator), gram),
            unit_gram(nulls.shuffled_like(gradients, sizes, generator), gram),
            unit_gram(nulls.sign_flipped_like(gradients, generator), gram),
        )


def unit_gram(rows: Float[Tensor, "n d"], gram: GramOf = linalg.gram) -> Float[Tensor, "n n"]:
    """Gram matrix of the rows scaled to unit norm, float64."""
    return energy.unit_rows(gram(rows))


def held_out_energy(
    gradients: Float[Tensor, "n d"],
    shuffled: Float[Tensor, "n d"],
    *,
    splits: Sequence[Split],
    draws: Sequence[NullSpectra],
    ks: Sequence[int],
    gram: GramOf = linalg.gram,
) -> dict[str, list[float | None]]:
    """Energy of one half of the gradients in the top-k basis of the other half, with references.

    n vectors always fit into n dimensions, so only held-out energy is informative:
    E(k) = mean over g in the second half of ||U_k^T g||^2 / ||g||^2, U_k from the first half.

    Args:
        gradients: n minibatch gradients of the task; scaled to unit norm here, since one batch
            dominates raw stacks.
        shuffled: gradients of the same task with its labels shuffled.
        splits: index pairs (fit, test).
        draws: nulls; each column has the highest of its draws.
        ks: basis dimensions.
        gram: inner products in which gradients are compared, such as those of their changes of the
            weights, if they are of LoRA's factors; the draws have the same.

    Returns:
        Lists over ks, as fractions: ``energy``; ``ceiling`` (the second half in its own basis);
        ``centred`` (without the fit half's mean; None if nothing is left); ``label_shuffled``
        (the shuffled task in its own basis); ``in_shuffled_basis`` (the task in the shuffled task's
        basis); ``null_gaussian``, ``null_shuffle``, ``null_sign``.
    """
    count = len(gradients)
    joint = unit_gram(torch.cat([gradients, shuffled]), gram)
    task_gram = joint[:count, :count]

    def mean(K: Tensor, pairs: Sequence[Split]) -> Tensor:
        return torch.stack([energy.captured_energy(K, a, b, ks) for a, b in pairs]).mean(0)

    columns = {
        "energy": mean(task_gram, splits),
        "ceiling": mean(task_gram, [(b, b) for _, b in splits]),
        "label_shuffled": mean(joint[count:, count:], splits),
        "in_shuffled_basis": mean(joint, [(a + count, b) for a, b in splits]),
    }
    for name in NullSpectra._fields:
        energies = torch.stack([mean(getattr(draw, name), splits) for draw in draws])
        columns[f"null_{name}"] = energies.max(0).values
    moved = [(energy.centred(task_gram, fit), fit, test) for fit, test in splits]
    # Gradients of a single batch all equal their mean.
    left = [part for part in moved if part[0].diagonal()[part[2]].any()]
    live = [energy.captured_energy(*part, ks) for part in left]
    centred = torch.stack(live).mean(0).tolist() if live else [None] * len(ks)
    return {"centred": centred} | {name: values.tolist() for name, values in columns.items()}


def effective_ranks(
    gradients: Float[Tensor, "n d"], null: NullSpectra, gram: GramOf = linalg.gram
) -> dict[str, float]:
    """Participation ratio, stable rank and rank of the unit gradients and of the Gaussian null.

    ``mean_share`` is the share of their energy in their mean (1/n for independent ones),
    ``zero_share`` the share of coordinates in which all gradients are zero. ``gram`` is as for
    :func:`held_out_energy`.
    """
    columns = {"zero_share": float((gradients == 0).all(0).float().mean())}
    for suffix, K in (("", unit_gram(gradients, gram)), ("_null", null.gaussian)):
        S, _ = linalg.spectrum(K)
        columns[f"participation_ratio{suffix}"] = linalg.participation_ratio(S)
        columns[f"stable_rank{suffix}"] = linalg.stable_rank(S)
        columns[f"rank{suffix}"] = len(S)
        # For unit rows the mean of all inner products is the squared norm of the mean row.
        columns[f"mean_share{suffix}"] = float(K.mean())
    return columns
