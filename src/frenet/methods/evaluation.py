"""Scores of candidates: several in one forward pass if model and score allow it."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

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
    Parts,
    can_group,
    grouped,
    only_lora,
    parts_of,
    parts_to_watch,
    shares_blocks,
    starts,
    watched,
)
from frenet.network.measuring import measuring
from frenet.network.memory import free_bytes, is_out_of_memory
from frenet.network.padding import arranged
from frenet.network.space import ParamSpace
from frenet.network.tasks import IGNORE, Batch, columns_to_keep, target_logits

# Tokens of all candidates in one forward pass. More tokens are no faster per token, and no longer
# fit the cache.
TOKENS = 4096
# Bytes of a forward pass of several candidates: logits over a large vocabulary fill the memory long
# before a pass of so many tokens does.
SHARED_BYTES = 1 << 29
# Fewer candidates that share no blocks are faster one by one: each fills the processors.
FEWEST = 4
# How far the two candidates of a check are displaced, in root mean squares of a tensor, and the
# least distance. A module that is left out then changes the logits by far more than rounding.
STRETCH, LEAST = 0.1, 0.01
# Most candidates that fit in a shared pass of a model, where more of them did not.
_FITTED: "WeakKeyDictionary[nn.Module, int]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Evaluator:
    """Everything that a candidate's score depends on, except the model; it can go to a worker.

    Attributes:
        where: the parameters, or the basis, in which candidates move.
        noise: how they are drawn.
        score: a name in ``SCORES``, or a function of model and batch.
        batch: the fixed batch that all candidates are scored on.
        decided: whether ``decide`` has chosen how candidates are evaluated. It does so once, so
            that all workers evaluate a candidate in the same way.
        layout: lets several candidates share a forward pass; None: one pass per candidate.
        most: candidates that share a pass if there is memory.
        needed: bytes that a candidate takes in a pass.
    """

    where: Where
    noise: Noise
    score: Score
    batch: Batch
    decided: bool = False
    layout: Layout | None = None
    most: int = 1
    needed: int = 0

    def __post_init__(self) -> None:
        checked(self.score)

    def decide(self, model: nn.Module) -> "Evaluator":
        """The same evaluator, with shared forward passes if they give the right logits.

        To check this it evaluates two candidates together and one by one.

        Warns:
            RuntimeWarning: their logits differ by more than rounding, or the shared pass fails.
        """
        space, layout, most = space_of(self.where), None, 1
        together = isinstance(self.score, str) and can_group(model, space)
        # A shared pass runs all rows of the batch without rearranging them.
        if together and arranged(model, self.batch) is None:
            most = most_together(model, space, self.batch)
            # A LoRA layer is faster in a shared pass, even if it is that of one candidate.
            if most > 1 or only_lora(model, space):
                layout = _layout_with_warning(model, space, self.batch)
        needed = 0 if layout is None else bytes_needed(model, space, self.batch)
        return replace(self, decided=True, layout=layout, most=most, needed=needed)

    def on(self, batch: Batch, model: nn.Module) -> "Evaluator":
        """The same on another batch, without another check of shared passes."""
        if self.layout is None:
            return replace(self, batch=batch)
        return replace(
            self,
            batch=batch,
            layout=self.layout._replace(rows=len(batch["labels"])),
            most=most_together(model, space_of(self.where), batch),
            needed=bytes_needed(model, space_of(self.where), batch),
        )

    def __call__(self, model: nn.Module, indices: Sequence[int]) -> list[float]:
        """Scores of these candidates, larger is better. The model is restored bit for bit.

        Raises:
            FloatingPointError: a score is not finite; names the candidate.
            TypeError: a user's score is not a number.

        Warns:
            RuntimeWarning: as ``decide``, which runs first if it has not yet; or fewer candidates
                than expected fit into memory, once for each model.
        """
        if not self.decided:
            return self.decide(model)(model, indices)
        scores: list[float] = []
        # Once around all groups: it looks at every module.
        with Candidates(model, self.where, self.noise) as candidates, measuring(model):
            for grouped in self._scores(candidates, list(indices)):
                scores += grouped.means().tolist()
        for index, score in zip(indices, scores, strict=True):
            if not math.isfinite(score):
                raise FloatingPointError(
                    f"the score of candidate {index} is {score} at sigma={self.noise.sigma}; "
                    "pass a smaller sigma"
                )
        return scores

    def _scores(self, candidates: Candidates, indices: list[int]) -> Iterator[RowScores]:
        layout = self.layout
        # Check how the model runs padded rows before any of its modules is replaced.
        if layout is not None and arranged(candidates.model, self.batch) is not None:
            layout = None
        size, parts = 1, None
        if layout is not None:
            size, parts = self._fitting(candidates), parts_of(candidates.model, candidates.space)
        start = 0
        while start < len(indices):
            group = indices[start : start + size]
            found = None if layout is None else self._shared(candidates, group, layout, parts)
            if found is None and len(group) > 1 and _FITTED.get(candidates.model, size) < size:
                size = _FITTED[candidates.model]
                continue
            yield from [found] if found is not None else self._one_by_one(candidates, group)
            start += len(group)

    def _fitting(self, candidates: Candidates) -> int:
        """How many candidates share a pass: half of the free memory, as other workers need some."""
        room = min(SHARED_BYTES, free_bytes(candidates.saved[0].device) // 2) // self.needed
        return max(1, min(self.most, room, _FITTED.get(candidates.model, self.most)))

    def _shared(
        self, candidates: Candidates, group: list[int], layout: Layout, parts: Parts | None
    ) -> RowScores | None:
        """Scores of a group from one pass; None if the group cannot share one."""
        assert isinstance(self.score, str)
        try:
            return group_scores(candidates, group, self.score, self.batch, layout, parts)
        except LayoutError:
            # Shapes depend on the weights, as for an expert that gets other tokens.
            return None
        except (MemoryError, RuntimeError) as error:
            if len(group) == 1 or not is_out_of_memory(error):
                raise
        _halve(candidates.model, len(group))
        return None

    def _one_by_one(self, candidates: Candidates, group: list[int]) -> Iterator[RowScores]:
        for index in group:
            candidates.put(index)
            yield row_scores(candidates.model, self.score, self.batch, whole=True)
        candidates.put(None)


def _halve(model: nn.Module, count: int) -> None:
    """Note that fewer than ``count`` candidates fit, and say so the first time."""
    if model not in _FITTED:
        warnings.warn(
            f"there is no memory for {count} candidates in one forward pass, so that at most "
            f"{count // 2} are evaluated together; the scores are the same up to rounding",
            RuntimeWarning,
            stacklevel=5,
        )
    _FITTED[model] = count // 2


def row_scores(model: nn.Module, score: Score, batch: Batch, *, whole: bool = False) -> RowScores:
    """Scores of the rows of a batch at the current parameters.

    Args:
        model: the network; left unchanged.
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
    candidates: Candidates,
    indices: list[int],
    score: str,
    batch: Batch,
    layout: Layout,
    parts: Parts | None = None,
) -> RowScores:
    """Scores of several candidates on every row of a batch, in one pass, while ``measuring``."""
    thetas = candidates.thetas(indices)
    logits, labels = _together(candidates.model, candidates.space, thetas, batch, layout, parts)
    return SCORES[score](logits, labels)


def _together(
    model: nn.Module,
    space: ParamSpace,
    thetas: Float[Tensor, "n d"],
    batch: Batch,
    layout: Layout,
    parts: Parts | None = None,
) -> tuple[Float[Tensor, "n b s v"], Tensor]:
    """Logits of the target columns of several candidates, and the targets, while ``measuring``."""
    with torch.no_grad(), grouped(model, space, thetas, layout=layout, parts=parts):
        logits, labels = target_logits(model, batch)
    return logits.view(len(thetas), layout.rows, *logits.shape[1:]), labels


def _layout_with_warning(model: nn.Module, space: ParamSpace, batch: Batch) -> Layout | None:
    """``checked_layout``, or None with a warning that says why there is none."""
    try:
        return checked_layout(model, space, batch)
    except LayoutError as error:
        warnings.warn(
            f"candidates are evaluated one by one, because a shared forward pass gives wrong "
            f"results here: {error}",
            RuntimeWarning,
            stacklevel=4,
        )
    return None


def checked_layout(model: nn.Module, space: ParamSpace, batch: Batch) -> Layout:
    """The layout with which candidates in a shared pass have the same logits as alone.

    Args:
        model: a network with ``can_group(model, space)``; restored bit for bit.
        space: the parameters in which candidates differ.
        batch: b rows.

    Raises:
        LayoutError: their logits differ, or the shared pass fails; names a module.
    """
    layout, agreement = _compared(model, space, batch)
    if agreement:
        return layout
    if not math.isfinite(agreement.error):
        raise LayoutError("the logits of a trial are not finite and cannot be compared")
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in space.names))
    while len(owners) > 1:  # halve the list until one wrong module is left
        half = owners[: len(owners) // 2]
        agreed = _compared(model, _only(space, half), batch)[1]
        owners = owners[len(half) :] if agreed else half
    raise LayoutError(
        f"the logits differ by {agreement.error:.2g}, rounding explains "
        f"{agreement.rounding:.2g}; candidates for {owners[0]} alone show that"
    )


def _only(space: ParamSpace, owners: Sequence[str]) -> ParamSpace:
    """The parameters of these modules."""
    chosen = [i for i, name in enumerate(space.names) if name.rpartition(".")[0] in owners]
    return ParamSpace(tuple(space.names[i] for i in chosen), tuple(space.shapes[i] for i in chosen))


def _compared(model: nn.Module, space: ParamSpace, batch: Batch) -> tuple[Layout, Agreement]:
    """The layout, and whether two candidates together have the same logits as alone."""
    rows, thetas = len(batch["labels"]), _two_apart(model, space)
    one_more = {key: torch.cat([value, value[:1]]) for key, value in batch.items()}
    shapes, alone = [], []
    with measuring(model), torch.no_grad(), space.restored(model):
        for theta, part in zip(thetas, (batch, one_more), strict=True):
            space.write(model, theta)
            with watched(parts_to_watch(model, space)) as seen:
                alone.append(target_logits(model, part)[0][:rows])
            shapes.append(seen)
    first, second = shapes
    layout = Layout.of(rows, first, second, starts(model, space))
    try:
        with measuring(model):
            together, labels = _together(model, space, thetas, batch, layout)
    except LayoutError:
        raise
    except Exception as error:
        raise LayoutError(f"it fails with {type(error).__name__}: {error}") from error
    targets = labels != IGNORE
    coarsest = max((p.dtype for p in space.parameters(model)), key=lambda d: torch.finfo(d).eps)
    apart = torch.stack(alone)[:, targets]
    return layout, Agreement.of(together[:, targets], apart, coarsest)


def _two_apart(model: nn.Module, space: ParamSpace) -> Float[Tensor, "2 d"]:
    """The parameters with two draws of noise, large enough in each tensor to change the logits."""
    theta, draws = space.read(model), generator(0, "check")
    noise = torch.randn(2, space.dim, generator=draws).to(theta)
    for part, tensor in zip(noise.split(space.sizes, dim=1), theta.split(space.sizes), strict=True):
        part *= max(STRETCH * root_mean_square(tensor), LEAST)
    return noise.add_(theta)


def most_together(model: nn.Module, space: ParamSpace, batch: Batch) -> int:
    """How many candidates share a forward pass if there is memory: as many as help.

    1 means the ordinary forward pass.
    """
    size = TOKENS // batch["labels"].numel()
    return size if size >= (2 if shares_blocks(model, space) else FEWEST) else 1


def bytes_needed(model: nn.Module, space: ParamSpace, batch: Batch) -> int:
    """About how many bytes a candidate takes in a shared forward pass."""
    rows, columns = batch["labels"].shape
    matrices = [p.shape for p in model.parameters() if p.dim() == 2]
    head = max((shape[0] for shape in matrices), default=1)
    width = max((shape[-1] for shape in matrices), default=1)
    logits = 3 * rows * columns_to_keep(batch) * head
    activations = 8 * rows * columns * width
    return 4 * (2 * space.dim + logits + activations)


def predictions(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The most likely tokens in the target columns, and the labels, each (b, s)."""
    with measuring(model), torch.no_grad():
        logits, labels = target_logits(model, batch)
    return logits.argmax(-1), labels
