"""LoRA's recoveries in the weights that the factors make: what bases and prefixes hold (M13)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from frenet.experiments.experiment import Row
from frenet.experiments.setup.networks import Network
from frenet.experiments.setup.recovery import LONGEST_PREFIX
from frenet.measure.bases import Vectors
from frenet.measure.recovery_in_weights import PathInWeights
from frenet.network.checkpoints.low_rank_changes import LowRankChanges


class Held(NamedTuple):
    """Changes of the weights behind a basis.

    Attributes:
        changes: n of them.
        leading: whether their leading directions make the basis, or the span of the first ones.
        K: their Gram matrix, if they count with their own lengths; None: with unit norm.
    """

    changes: LowRankChanges
    leading: bool = False
    K: Tensor | None = None

    def shares(self, path: PathInWeights, ks: Sequence[int]) -> dict[int, float | None]:
        """The share of a recovery that the basis holds, for every k."""
        if not ks:
            return {}
        share = path.led_by if self.leading else path.spanned_by
        return dict(zip(ks, share(self.changes, ks, K=self.K), strict=True))


def images(network: Network, vectors: Mapping[str, Vectors], start: Tensor) -> dict[str, Held]:
    """The vectors of factors that start at one point, as changes of the weights.

    A gradient or direction changes them to first order, s (g_B A + B g_A); a displacement exactly.
    """
    return {
        name: Held(
            LowRankChanges.of(
                network.model,
                network.space,
                one.rows,
                start=start,
                kind="exact" if one.kind == "displacements" else "first order",
            ),
            leading=one.kind == "gradients",
        )
        for name, one in vectors.items()
    }


def weight_rows(
    own: PathInWeights,
    twin: PathInWeights | None,
    held: Mapping[str, Held],
    *,
    ks: Sequence[int],
    keys: Row,
) -> Iterator[Row]:
    """Rows of the table capture in the weights.

    Args:
        own: the recovery.
        twin: its replicate; None: it did not arrive.
        held: the changes behind every other basis.
        ks: dimensions.
        keys: of every row.
    """
    stop, dim = len(own.path), own.whole.dim
    held = {**held, "prefix": Held(own.updates, K=own.K)}
    if twin is not None:
        held["prefix of replicate"] = Held(twin.updates, K=twin.K)
        held["PCA of replicate"] = Held(twin.updates, leading=True, K=twin.K)
    given = [k for k in ks if k <= LONGEST_PREFIX * stop]
    ceiling = {} if twin is None else held["PCA of replicate"].shares(own, given)
    for name, one in held.items():
        sizes = [k for k in ks if k <= len(one.changes)]
        shares = one.shares(own, [k for k in sizes if k in given])
        for k in sizes:
            row: Row = {**keys, "coordinates": "weights", "basis": name, "k": k, "stop": stop}
            row |= {"k_over_stop": k / stop, "chance": k / dim}
            if k in given:
                of_prefix = own.prefix_capture(k) if name == "prefix" else {}
                row |= {"captured": shares[k], "ceiling": ceiling.get(k), **of_prefix}
            yield row
