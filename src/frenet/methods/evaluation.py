"""Scores of candidates: several in one forward pass where model and score allow it."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet.geometry.linalg import root_mean_square
from frenet.geometry.rng import generator
from frenet.methods.candidates import Candidates, Noise, Where, space_of
from frenet.methods.scores import SCORES, RowScores, Score, checked, user_score
from frenet.network.hooks.batched_weights import (
    Agreement,
    Layout,
    LayoutError,
    can_group,
    grouped,
    parts_to_watch,
    shares_blocks,
    watched,
)
from frenet.network.measuring import measuring
from frenet.network.memory import free_bytes
from frenet.network.padding import arranged
from frenet.network.space import ParamSpace
from frenet.network.tasks import IGNORE, Batch, columns_to_keep, target_logits

# Tokens of all candidates in one forward pass: with more a pass is no faster for each token, and
# what it works on no longer fits the cache.
TOKENS = 4096
# Fewer candidates than this that share no blocks are faster one by one: each fills the processors.
FEWEST = 4
# How far the two candidates of a check are displaced: in units of the root mean square of a tensor,
# and at least so far. What a module that is left out would have done is then far above rounding.
STRETCH, LEAST = 0.1, 0.01


@dataclass(frozen=True)
class Evaluator:
    """All that the score of a candidate depends on besides the model; a worker can be sent it.

    Attributes:
        where: the parameters, or the basis, in which candidates move.
        noise: how they are drawn.
        score: a name in ``SCORES``, or a function of model and batch.
        batch: the fixed batch that all candidates are scored on.
        decided: whether it is known how candidates are evaluated. ``decide`` finds out, once for
            all workers, so that every one of them evaluates a candidate in the same way.
        layout: with which several candidates share a forward pass; None: each has its own.
    """

    where: Where
    noise: Noise
    score: Score
    batch: Batch
    decided: bool = False
    layout: Layout | None = None

    def __post_init__(self) -> None:
        checked(self.score)

    def decide(self, model: nn.Module) -> "Evaluator":
        """The same evaluator, with candidates in shared forward passes if they are right there.

        Two candidates are evaluated together and one by one, which takes as long as four of them.

        Warns:
            RuntimeWarning: their logits differ by more than rounding, or the pass of both fails.
        """
        layout = None
        together = isinstance(self.score, str) and can_group(model, space_of(self.where))
        # Candidates share a pass of all rows of the batch, as they are.
        if together and arranged(model, self.batch) is None:
            with Candidates(model, self.where, self.noise) as candidates:
                size = group_size(candidates, self.batch)
            if size > 1:
                layout = _layout_with_warning(model, space_of(self.where), self.batch)
        return replace(self, decided=True, layout=layout)

    def __call__(self, model: nn.Module, indices: Sequence[int]) -> list[float]:
        """Scores of these candidates, larger is better. The model comes back bit for bit.

        Raises:
            FloatingPointError: a score is not finite; names the candidate.
            TypeError: a user's score is not a number.

        Warns:
            RuntimeWarning: as ``decide``, which is done first where it has not been.
        """
        if not self.decided:
            return self.decide(model)(model, indices)
        found: list[float] = []
        with Candidates(model, self.where, self.noise) as candidates:
            for scores in self._scores(candidates, list(indices)):
                found += scores.means().tolist()
        for index, score in zip(indices, found, strict=True):
            if not math.isfinite(score):
                raise FloatingPointError(
                    f"the score of candidate {index} is {score} at sigma={self.noise.sigma}; "
                    "pass a smaller sigma"
                )
        return found

    def _scores(self, candidates: Candidates, indices: list[int]) -> Iterator[RowScores]:
        size = 1
        # How the model runs padded rows is looked at before any of its modules is replaced.
        if self.layout is not None and arranged(candidates.model, self.batch) is None:
            size = group_size(candidates, self.batch)
        for start in range(0, len(indices), size):
            group = indices[start : start + size]
            if size > 1 and self.layout is not None and isinstance(self.score, str):
                try:
                    yield group_scores(candidates, group, self.score, self.batch, self.layout)
                    continue
                except LayoutError:
                    # The shapes follow the weights, as those of an expert that gets other tokens.
                    pass
            for index in group:
                candidates.put(index)
                yield row_scores(candidates.model, self.score, self.batch, whole=True)
            candidates.put(None)


def row_scores(model: nn.Module, score: Score, batch: Batch, *, whole: bool = False) -> RowScores:
    """Scores of the rows of a batch at the present point.

    Args:
        model: the network; left as it is.
        score: a name in ``SCORES``, or a function of model and batch.
        batch: b rows.
        whole: call a user's function once for the batch instead of once for every row.
    """
    with measuring(model), torch.no_grad():
        if isinstance(score, str):
            logits, labels = target_logits(model, batch)
            return SCORES[score](logits[None], labels)
        count = len(batch["labels"])
        rows = (
            [batch]
            if whole
            else [{k: v[i : i + 1] for k, v in batch.items()} for i in range(count)]
        )
        values = torch.tensor([[user_score(score, model, row) for row in rows]])
        return RowScores(values, torch.ones(len(rows)))


def group_scores(
    candidates: Candidates, indices: list[int], score: str, batch: Batch, layout: Layout
) -> RowScores:
    """Scores of several candidates on every row of a batch, in one forward pass."""
    thetas = candidates.thetas(indices)
    logits, labels = _together(candidates.model, candidates.space, thetas, batch, layout)
    return SCORES[score](logits, labels)


def _together(
    model: nn.Module, space: ParamSpace, thetas: Float[Tensor, "n d"], batch: Batch, layout: Layout
) -> tuple[Float[Tensor, "n b s v"], Tensor]:
    """Logits of the target columns of several candidates, and the targets."""
    with measuring(model), torch.no_grad(), grouped(model, space, thetas, layout=layout):
        logits, labels = target_logits(model, batch)
    return logits.view(len(thetas), layout.rows, *logits.shape[1:]), labels


def _layout_with_warning(model: nn.Module, space: ParamSpace, batch: Batch) -> Layout | None:
    """``checked_layout``, or None with a warning that says why there is none."""
    try:
        return checked_layout(model, space, batch)
    except LayoutError as error:
        warnings.warn(
            f"candidates are evaluated one by one, because one forward pass of several is not "
            f"right here: {error}",
            RuntimeWarning,
            stacklevel=4,
        )
    return None


def checked_layout(model: nn.Module, space: ParamSpace, batch: Batch) -> Layout:
    """The layout with which candidates in one forward pass have the logits that they have alone.

    Args:
        model: the network, ``can_group(model, space)``; comes back bit for bit.
        space: the parameters in which candidates differ.
        batch: b rows.

    Raises:
        LayoutError: they have other logits, or there is no such pass; names a module.
    """
    layout, found = _compared(model, space, batch)
    if found:
        return layout
    if not math.isfinite(found.error):
        raise LayoutError("the logits of a trial are not finite, so that nothing can be compared")
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in space.names))
    while len(owners) > 1:  # by halves, to a module that is wrong alone
        half = owners[: len(owners) // 2]
        agreed = _compared(model, _only(space, half), batch)[1]
        owners = owners[len(half) :] if agreed else half
    raise LayoutError(
        f"the logits differ by {found.error:.2g} where rounding explains {found.rounding:.2g}, and "
        f"so they do with candidates for {owners[0]} alone"
    )


def _only(space: ParamSpace, owners: Sequence[str]) -> ParamSpace:
    """The parameters of these modules."""
    chosen = [i for i, name in enumerate(space.names) if name.rpartition(".")[0] in owners]
    return ParamSpace(tuple(space.names[i] for i in chosen), tuple(space.shapes[i] for i in chosen))


def _compared(model: nn.Module, space: ParamSpace, batch: Batch) -> tuple[Layout, Agreement]:
    """The layout, and whether two candidates together have the logits of each alone."""
    rows, thetas = len(batch["labels"]), _two_apart(model, space)
    one_more = {key: torch.cat([value, value[:1]]) for key, value in batch.items()}
    shapes, alone = [], []
    with measuring(model), torch.no_grad(), space.restored(model):
        for theta, part in zip(thetas, (batch, one_more), strict=True):
            space.write(model, theta)
            with watched(parts_to_watch(model, space)) as seen:
                alone.append(target_logits(model, part)[0][:rows])
            shapes.append(seen)
    layout = Layout.of(rows, *shapes)
    try:
        together, labels = _together(model, space, thetas, batch, layout)
    except LayoutError:
        raise
    except Exception as error:
        raise LayoutError(f"it fails with {type(error).__name__}: {error}") from error
    wanted = labels != IGNORE
    coarsest = max((p.dtype for p in space.parameters(model)), key=lambda d: torch.finfo(d).eps)
    apart = torch.stack(alone)[:, wanted]
    return layout, Agreement.of(together[:, wanted], apart, coarsest)


def _two_apart(model: nn.Module, space: ParamSpace) -> Float[Tensor, "2 d"]:
    """The present parameters with two draws of noise that each tensor shows in the logits."""
    theta, draws = space.read(model), generator(0, "check")
    noise = torch.randn(2, space.dim, generator=draws).to(theta)
    for part, own in zip(noise.split(space.sizes, dim=1), theta.split(space.sizes), strict=True):
        part *= max(STRETCH * root_mean_square(own), LEAST)
    return noise.add_(theta)


def group_size(candidates: Candidates, batch: Batch) -> int:
    """How many candidates share a forward pass: as many as help, in half of the free memory.

    1 stands for the ordinary forward pass.
    """
    rows, columns = batch["labels"].shape
    model = candidates.model
    head = max((p.shape[0] for p in model.parameters() if p.dim() == 2), default=1)
    width = max((p.shape[-1] for p in model.parameters() if p.dim() == 2), default=1)
    logits = 3 * rows * columns_to_keep(batch) * head
    activations = 8 * rows * columns * width
    needed = 4 * (2 * candidates.space.dim + logits + activations)
    fits = free_bytes(candidates.saved[0].device) // (2 * needed)
    size = min(TOKENS // (rows * columns), fits)
    fewest = 2 if shares_blocks(model, candidates.space) else FEWEST
    return size if size >= fewest else 1


def predictions(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The most likely tokens in the target columns, and the labels, each (b, s)."""
    with measuring(model), torch.no_grad():
        logits, labels = target_logits(model, batch)
    return logits.argmax(-1), labels
