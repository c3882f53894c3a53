"""Neutral text, which a steering vector or an adapter should not affect."""

from collections.abc import Sequence
from typing import Any

from frenet.network.data.tokens import Encoded, encode

# A neutral text is cut here.
LONGEST = 64
# The order is fixed: the first ones are those of earlier runs.
NEUTRAL = (
    "The ferry leaves the harbour at half past six and reaches the island before noon. Passengers "
    "may bring bicycles, which are kept on the lower deck next to the engine room.",
    "To make the soup, cut two onions and a carrot into small pieces, fry them slowly in butter, "
    "and add a litre of water. Let it simmer for forty minutes and season it at the end.",
    "The library was built in three stages. The oldest part holds maps and newspapers; the reading "
    "room with the glass roof was added later, and the archive below it last of all.",
    "Granite forms when molten rock cools far below the surface. Because it cools slowly, its "
    "crystals have time to grow, and one can see them without a magnifying glass.",
    "She closed the window, put the letters back into the drawer and went downstairs. In the "
    "kitchen the radio was still on, and somebody had left a cup of tea on the table.",
    "The function sorts the list in place and returns nothing. If the order matters and the list "
    "must not change, make a copy first and sort that one.",
    "Rain is expected in the west during the night and will reach the coast by morning. "
    "Temperatures stay between eight and twelve degrees, with light winds from the south.",
    "A violin has four strings, tuned in fifths. The player presses them against the fingerboard "
    "with the left hand and draws the bow across them with the right.",
    "Both trains stop at the junction for ten minutes. Those who travel on to the mountains change "
    "there, and buy their tickets at the counter on the second platform.",
    "Bees find their way by the position of the sun. Back in the hive they show the others by a "
    "dance in which direction the flowers are, and how far away.",
    "The contract runs for two years and is renewed unless one of the parties gives notice in "
    "writing three months before it ends. Repairs are paid by the owner of the house.",
    "He turned the key twice, but the engine did not start. After a while he took his coat from "
    "the back seat, locked the car and walked to the village along the canal.",
    "Paper was made from rags until wood took their place. The fibres are boiled, washed and "
    "spread on a sieve, where the water runs off and a thin sheet is left.",
    "For the second exercise, draw a line of eight centimetres and mark its middle. Then draw a "
    "circle around each end with a radius of five centimetres.",
    "The museum has four floors. Tools and clocks are on the ground floor, pictures on the first; "
    "the two upper floors are used for exhibitions that change every spring.",
    "A river carries sand and gravel down to the plain. Where it flows more slowly they sink to "
    "the bottom, and over many years the bed rises until the water finds another way.",
)


def neutral_tokens(
    tokenizer: Any, texts: Sequence[str] = NEUTRAL, *, longest: int | None = None
) -> list[tuple[list[int], list[int]]]:
    """Token ids of texts: the given part, which is the first token, and the predicted part.

    Args:
        tokenizer: of the model.
        texts: each is cut after 64 tokens.
        longest: the model's context length in tokens, if it is known.
    """
    pairs = [("", text) for text in texts]
    encoded = encode(tokenizer, pairs, max_length=min(LONGEST, longest or LONGEST))
    wholes = [item.context + item.target for item in encoded if isinstance(item, Encoded)]
    return [(ids[:1], ids[1:]) for ids in wholes]
