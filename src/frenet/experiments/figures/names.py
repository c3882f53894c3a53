"""The names of directions, bases and settings in figures and pages, in words that explain them."""

import re

# Name in the rows -> its label. Rows keep their names, so that stored runs stay comparable.
LABELS = {
    "full": "all weights",
    "lora": "LoRA",
    "lora, in the weights": "LoRA, in the weights",
    "prefix": "first steps",
    "moving prefix": "first steps, refreshed",
    "prefix from step k": "first steps, kept",
    "steering": "steering vector",
    "damage line": "back to before the damage",
    "damage direction": "back to before the damage",
    "search winner": "winner of a search",
    "replicate": "second run",
    "PCA of replicate": "second run (ceiling)",
    "prefix of replicate": "first steps, second run",
    "wrong-answers": "wrong answers",
    "relative-noise": "relative noise",
    "absolute-noise": "absolute noise",
    "zeroed-head": "zeroed head",
    "zeroed-mlp": "zeroed MLP",
    "finetune": "fine-tuning",
}
OPTIMIZER = re.compile(r"(adamw?|sgd):(\d[\d.e+-]*)")
OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}
RANDOM = re.compile(r"random:(\d+)")


def label(name: str) -> str:
    """The label of a name; any other text as it is.

    >>> label("prefix"), label("adam:3e-5"), label("random:100"), label("my-adapter")
    ('first steps', 'Adam, rate 3e-5', '100 random directions', 'my-adapter')
    """
    if found := OPTIMIZER.fullmatch(name):
        return f"{OPTIMIZERS[found[1]]}, rate {found[2]}"
    if found := RANDOM.fullmatch(name):
        return f"{found[1]} random directions"
    return LABELS.get(name, name)
