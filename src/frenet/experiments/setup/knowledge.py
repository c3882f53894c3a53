"""Whether a model knows the labels of a contrast."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from frenet.experiments.experiment import Row, Scalar, number

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from frenet.network.data.contrast import Contrast

# A model that guesses answers half of the prompts right, and puts half of the pairs of prompts in
# the right order.
CHANCE = 0.5
KNOWS = "knows the labels"
UNKNOWN = "does not know the labels, so that they mean nothing to it"
SWAPPED = (
    "knows the labels with the answers swapped; pass the two --words in the other order (the "
    "labels as they are, if there are no --words)"
)


def knowledge(model: "nn.Module", contrast: "Contrast") -> Row:
    """How well the model's own answers to the prompts agree with the labels, see ``agreement``.

    Args:
        model: a decoder; left unchanged.
        contrast: statements or choices.

    Raises:
        UnansweredError: one answer is the beginning of the other.
    """
    from frenet.methods.steering_effect import answer_differences, prompted

    differences = answer_differences(model, prompted(contrast.items))
    return agreement(contrast, differences.double().numpy())


def agreement(contrast: "Contrast", differences: "np.ndarray") -> Row:
    """How well answers agree with the labels.

    Args:
        contrast: statements or choices.
        differences: (n,), log-odds of the answers to its prompts.

    Returns:
        Kind, number of prompts, accuracy and chance. Statements have the separation, the area
        under the ROC curve of the log-odds. ``known_low`` and ``known_high`` are its 95% interval
        over prompts, by DeLong; those of choices are of the accuracy, by Clopper and Pearson.
    """
    import numpy as np
    from scipy import stats

    from frenet.statistics.auc import auc_interval

    labels = np.array([item.label is not False for item in contrast.items])
    right = (differences > 0) == labels
    row: Row = {
        "kind": contrast.kind, "prompts": len(labels), "accuracy": float(right.mean()),
        "chance": CHANCE,
    }  # fmt: skip
    if contrast.kind == "statements":
        found = auc_interval(differences[labels], differences[~labels])
        return row | {
            "separation": found.value, "known_low": found.low, "known_high": found.high,
        }  # fmt: skip
    ends = stats.binomtest(int(right.sum()), len(right)).proportion_ci()
    return row | {"known_low": float(ends.low), "known_high": float(ends.high)}


def known_state(row: Mapping[str, Scalar]) -> str:
    """What the interval of ``knowledge`` says: one of three predicates of the model."""
    if row["known_low"] is not None and number(row, "known_low") > CHANCE:
        return KNOWS
    swapped = row["known_high"] is not None and number(row, "known_high") < CHANCE
    return SWAPPED if swapped else UNKNOWN


def known_text(row: Mapping[str, Scalar]) -> str:
    """The number of ``knowledge`` with its interval."""
    name = "separation" if row.get("separation") is not None else "accuracy"
    ends = (row["known_low"], row["known_high"])
    interval = "" if None in ends else " [{:.2f}, {:.2f}]".format(*ends)
    return f"{name} {number(row, name):.2f}{interval}, chance {CHANCE:g}"
