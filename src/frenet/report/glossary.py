"""What the words of a page mean: explained at their first use, and listed at its end."""

import re
from collections.abc import MutableSet

from markupsafe import Markup

from frenet.report.markup import escape, join, tag

# In the order of the list; a word may stand in the text with a plural s.
TERMS = {
    "direction": "a vector along which weights or activations are moved: a gradient, an adapter, a "
    "steering vector",
    "radius": "the largest distance along a direction at which the loss still follows its slope, "
    "within 20%",
    "lifetime": "the training steps after which a direction holds half of what it held at the "
    "start",
    "seed": "one repetition with other random numbers; the unit of most intervals",
    "interval": "the 95% confidence interval of a mean, if nothing else is said",
    "null": "what the same measurement gives if there is nothing to find, such as for shuffled "
    "labels or random vectors",
    "chance": "the number that a random choice would give",
    "ceiling": "the best that can be reached, such as by the basis of the data themselves",
    "frozen control": "the same measurement without training in between",
    "premise": "what must hold before a claim can be tested; otherwise it is not testable",
    "LoRA": "training of two thin factors A and B per weight matrix instead of the matrix",
    "factors": "the matrices A and B of LoRA",
    "in the weights": "for LoRA: measured on the change of the weights that the factors make",
    "basis": "k orthonormal directions; it holds the share of a vector that lies in their span",
    "static basis": "a basis made before the damage or the recovery, and kept",
    "prefix": "the span of the first k steps of a training",
    "first steps": "the direction, or the span, of the first k steps of a training",
    "replicate": "the same training with other minibatches",
    "random walk": "steps as long as those of a training, in random directions",
    "task vector": "the weights after a training minus those before",
    "damage": "a change of the weights that makes the network forget a task",
    "back to before the damage": "from the damaged weights to those before the damage",
    "recovery": "a training from the damaged weights until the task is known again",
    "gradient energy": "the share of the squared norm of gradients that lies in a basis",
    "energy ratio": "the gradient energy in an old basis over that in a fresh one",
    "winner of a search": "the best of the random changes of the weights that a search tried",
    "sigma": "the length of the random changes of a search, per weight",
    "contrast vector": "the difference of the mean activations of prompts of two classes",
    "own push": "a vector added with the sign of its own class",
    "stream": "the activations that one block of the network hands to the next",
    "split-half cosine": "the cosine of two vectors, each made from half of the prompts",
    "not testable": "a verdict: a premise does not hold, or was not measured",
    "equivalent": "a verdict: the difference is smaller than a margin fixed beforehand",
}
PATTERN = re.compile(rf"\b({'|'.join(sorted(map(re.escape, TERMS), key=len, reverse=True))})(s?)\b")


def explained(text: str, seen: MutableSet[str]) -> Markup:
    """A text in which the first use of every term has its meaning as a title.

    Args:
        text: any text; it is escaped.
        seen: terms that were explained before; those explained here are added.
    """

    def first(match: re.Match[str]) -> str:
        if match[1] in seen:
            return match[0]
        seen.add(match[1])
        return str(tag("abbr", Markup(match[0]), title=TERMS[match[1]]))

    return Markup(PATTERN.sub(first, str(escape(text))))


def glossary() -> Markup:
    """All terms with their meanings."""
    entries = (tag("div", tag("dt", term), tag("dd", meaning)) for term, meaning in TERMS.items())
    head = tag("header", tag("h2", "Glossary"))
    return tag("section", head, tag("dl", join(entries), class_="pairs"), id="glossary")
