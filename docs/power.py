"""Make docs/power.md: how often every rule says which word of a planted truth."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from frenet.experiments.experiment import Verdict

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "power.md"
WORDS: tuple[str, ...] = get_args(Verdict)
# The draws of a share, and of each number of seeds that is tried.
DRAWS, TRIED = 2_000, 500
POWER, MOST = 0.8, 20
INTRO = """# What the rules can say

`make power` generates this page. Runs with a planted truth are drawn and decided by the rules
themselves, {draws:,} for every truth. A run has {planned} seeds, as many as the runs that confirm.
Quantities are normally distributed over seeds; of C5a, beta-binomial numbers of searches lie inside
their bands.

The spread over seeds is that of the pilot, seeds 0 to 2 of four networks. The typical variance is
the median of the networks' variances divided by ln 2: a variance of three values has the median
ln 2 times what it estimates. A quantity that the pilot does not have varies by {relative:.0%} of
its mean.

## Power at the declared effect

The effects are the paper's figures for C2 and C4, and ours otherwise; all premises hold clearly. A
number is the share of runs that say *supported*, with the typical spread and with that of each
network. "None": fewer than three seeds of the pilot have the quantity.
"""
WHOLE = """
## All truths

The right word is what a run should say. On a line, every word but *undecided* is wrong; at the line
of a premise the claim is not testable. A test at its own line says a wrong word in 2.5% of runs,
and in 5% if it is one of two one-sided tests.
"""


def planted() -> Any:
    """The truths and how they are drawn, from the folder of the tests."""
    if str(ROOT / "tests") not in sys.path:
        sys.path.insert(0, str(ROOT / "tests"))
    return importlib.import_module("experiments.planted")


def page(draws: int = DRAWS, tried: int = TRIED) -> str:
    """The page of the documentation."""
    at = planted()
    text = INTRO.format(draws=draws, planned=at.PLANNED, relative=at.RELATIVE)
    return text + _powers(at, draws, tried) + WHOLE + _truths(at, draws)


def _powers(at: Any, draws: int, tried: int) -> str:
    """Power by rule and network, and what would raise it where it is low."""
    networks = sorted({name for found in at.stored().values() for name in found})
    columns = ("typical", *(_network(name) for name in networks))
    rows, low = [], []
    for rule in at.RULES:
        powers = []
        for network in (None, *networks):
            share = _power(at, rule, network, count=draws)
            powers.append("none" if share is None else f"{share:.3f}")
            if share is not None and share < POWER:
                low.append(_needed(at, rule, network, share, tried))
        rows.append((rule.claim, rule.effect, *powers))
    text = _table(("rule", "declared effect", *columns), rows)
    return text + _list(f"Below {POWER:g}:", low)


def _power(at: Any, rule: Any, network: str | None, **how: Any) -> float | None:
    """Share of runs that support the declared effect."""
    if network is not None and not at.has(rule, network):
        return None
    said = at.words(rule, rule.every_truth[0], network=network, **how)
    return float(said["supported"] / said.total())


def _needed(at: Any, rule: Any, network: str | None, share: float, tried: int) -> str:
    """The power, the seeds that raise it, and the spread that is the reason."""
    numbers = range(at.PLANNED + 1, MOST + 1)
    powers = ((n, _power(at, rule, network, count=tried, n=n)) for n in numbers)
    enough = next((n for n, power in powers if power >= POWER), None)
    seeds = f"More than {MOST} seeds" if enough is None else f"{enough} seeds"
    where = "typically" if network is None else f"on {_network(network)}"
    reason = _reason(at, rule, network)
    return f"{rule.claim} {where}: {share:.3f}. {seeds} reach {POWER:g}. {reason}."


def _reason(at: Any, rule: Any, network: str | None) -> str:
    """What the power depends on."""
    if "inside" in rule.declared:
        r, count = at.correlation(network), rule.declared["searches"]
        return f"A seed has {count:g} searches; two of them have the correlation {r:.3g}"
    sources = dict.fromkeys(source for source, _ in rule.measured.values())
    spreads = (f"{name} {at.spread(at.stored()[name], network):.3g}" for name in sources)
    return f"Standard deviations over seeds: {', '.join(spreads)}"


def _network(name: str) -> str:
    return "frenet:gpt2" if name == "gpt2" else name


def _truths(at: Any, draws: int) -> str:
    """The share of every word at every truth."""
    rows = []
    for rule in at.RULES:
        for truth in rule.every_truth:
            said = at.words(rule, truth, count=draws)
            right = ", ".join(truth.right) or "undecided"
            shares = (f"{said[word] / draws:.3f}" for word in WORDS)
            rows.append((rule.claim, truth.name, right, *shares))
    return _table(("rule", "truth", "right", *WORDS), rows)


def _list(title: str, lines: Sequence[str]) -> str:
    return f"\n{title}\n\n" + "".join(f"- {line}\n" for line in lines) if lines else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (heads, ["---"] * len(heads), *rows)
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write")
    options = parser.parse_args(arguments)
    options.out.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
