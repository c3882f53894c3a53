"""Neutral text, which a steering vector or an adapter should not affect."""

from typing import Any

from frenet.network.data.tokens import Encoded, encode

# A neutral text is cut here.
LONGEST = 64
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
)


def neutral_rows(
    tokenizer: Any, *, count: int = len(NEUTRAL), context: int | None = None
) -> list[tuple[list[int], list[int]]]:
    """Token ids of neutral texts: the first token, and the others, which are predicted.

    Args:
        tokenizer: of the model.
        count: most texts.
        context: tokens that the model can read at once; None: as many as are needed.
    """
    pairs = [("", text) for text in NEUTRAL[:count]]
    encoded = encode(tokenizer, pairs, max_length=min(LONGEST, context or LONGEST))
    wholes = [item.context + item.target for item in encoded if isinstance(item, Encoded)]
    return [(ids[:1], ids[1:]) for ids in wholes]
