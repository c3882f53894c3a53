"""Whether the order of updates on the probes of a training would matter, by their Lie brackets."""

import warnings
from collections.abc import Sequence

from torch import nn

from frenet._errors import UsageError
from frenet.experiments.experiment import Row
from frenet.geometry import rng
from frenet.integrations.probes import Probe, undisturbed
from frenet.measure.lie_bracket import Minibatch, lie_brackets
from frenet.network.space import ParamSpace

# At the beginning of notes.
UNMEASURED = "the order of probes was not measured"


def cost_of_look(probes: int, n: int) -> str:
    """What a look at the order of all pairs of probes costs, in a sentence.

    >>> cost_of_look(9, 8)
    'each look at the order of 9 probes takes 9 gradients and 144 Hessian products of 8 examples'
    """
    products = 2 * probes * (probes - 1)
    return (
        f"each look at the order of {probes} probes takes {probes} gradients and {products} "
        f"Hessian products of {n} examples"
    )


def order_rows(
    model: nn.Module, probes: Sequence[Probe], *, space: ParamSpace, n: int, step: int
) -> list[Row]:
    """Rows of the table order for every pair of probes; the model is left unchanged.

    Returns:
        A note instead if there is no order to measure, as at B = 0 of an adapter.

    Raises:
        FloatingPointError: a gradient or a Hessian product is not finite.
    """
    minibatches = [
        Minibatch(probe.task, {key: rows[:n] for key, rows in probe.batch.items()})
        for probe in probes
    ]
    draw = rng.generator(0, "watched training", "order")
    try:
        with undisturbed(model), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # Its cost was said at the start.
            brackets = lie_brackets(
                model, minibatches, space=space, clear=[None] * len(probes), null=draw
            )
    except UsageError as error:
        return [{"table": "notes", "step": step, "note": f"{UNMEASURED}: {error}"}]
    return [
        {
            "table": "order", "pair": " and ".join(found.names), "step": step,
            "kappa": found.kappa, "null_kappa": found.null_kappa,
            "rounding": found.rounding / found.length,
            "onset": found.onset if found.is_clear else None,
            "null_onset": 0.1 / found.null_kappa if found.null_kappa else None,
        }
        for found in brackets.values()
    ]  # fmt: skip
