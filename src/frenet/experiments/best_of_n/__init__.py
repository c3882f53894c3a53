"""Does theory say what Gaussian random search brings? (M5, claims C5a and C5b)."""

import dataclasses
from dataclasses import dataclass

from frenet.experiments.best_of_n.columns import TABLES
from frenet.experiments.best_of_n.figures import FIGURES
from frenet.experiments.best_of_n.findings import CLAIMS
from frenet.experiments.experiment import MODEL, Cell, Experiment, Later, Texts
from frenet.experiments.setup.damage import FEW, LANGUAGE_MODEL, DamageConfig, shown_settings
from frenet.experiments.setup.describe import NETWORK_TABLES
from frenet.experiments.setup.networks import (
    DEMO_NETWORK,
    SMALL_NETWORK,
    NetworkConfig,
    build,
    by_space,
    network_cells,
    task_names,
)


@dataclass(frozen=True)
class Config(DamageConfig, NetworkConfig):
    """Damage a task, predict the gain of random search around the damaged point, and search."""

    protocols: tuple[str, ...] = ("relative-noise", "wrong-answers")
    """Ways to damage the task; 'none' searches around the trained weights."""
    places: tuple[str, ...] = (
        "all",
        "random:10",
        "random:100",
        "random:1000",
        "gradients:10",
        "prefix:10",
        "name:embed",
        "name:up_proj",
    )
    """Where candidates move: all selected parameters, K random directions, the K leading directions
    of the task's gradients, the first K recovery updates, or weights by name (not in adapters)."""
    widths: tuple[int, ...] = ()
    """Further widths of the synthetic transformer; all their weights are searched."""
    ranks: tuple[int, ...] = ()
    """Further ranks of the adapters; all their parameters are searched."""
    searches: int = 5
    """Searches at each sigma; each draws new noise, probes and random directions."""
    candidates: int = 512
    """Candidates of a search, a power of 2."""
    factors: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0)
    """Values of sigma, as multiples of the predicted best one for this number of candidates."""
    select_size: int = 128
    """Examples on which all candidates are scored."""
    test_size: int = 256
    """Held-out examples on which the winner is scored."""
    probes: int = 16
    """Random vectors in the estimate of the Hessian's trace."""
    prefix_optimizer: str = "adam:3e-4"
    """Optimiser of the recovery that gives the prefix."""


def cells(config: Config) -> list[Cell]:
    """One cell per seed, space, size, task, protocol and place."""
    return network_cells(
        config,
        size=lambda cell: _sizes(config, cell["space"]),
        task=task_names(config),
        protocol=config.protocols,
        place=lambda cell: _places(config, cell["space"], cell["size"]),
    )


def _places(config: Config, space: str, size: int) -> tuple[str, ...]:
    """Further sizes are searched in all parameters only; adapters have no weights by name."""
    if size != _own_size(config, space):
        return ("all",)
    named = space == "full"
    return tuple(place for place in config.places if named or not place.startswith("name:"))


def _own_size(config: Config, space: str) -> int:
    """Width of the network, or rank of the adapters."""
    return by_space(space, config.width, config.rank)


def _sizes(config: Config, space: str) -> list[int]:
    """The widths, or ranks, to search."""
    further = by_space(space, config.widths, config.ranks)
    return list(dict.fromkeys((_own_size(config, space), *further)))


def _sized(config: Config, cell: Cell) -> Config:
    """The configuration of the network of a cell."""
    name = by_space(cell["space"], "width", "rank")
    return dataclasses.replace(config, **{name: cell["size"]})


def prepare(config: Config, cell: Cell) -> None:
    """Put all networks of this cell's seed into the cache."""
    for space in config.spaces:
        for size in _sizes(config, space):
            sized = _sized(config, Cell.of(space=space, size=size))
            build(sized, space=space, seed=cell.seed)


def passes(config: Config, texts: Texts) -> float:
    """Every candidate of every search on the examples that score it."""
    searches = config.searches * len(config.factors)
    return float(searches * config.candidates * min(config.select_size, texts.rows))


EXPERIMENT = Experiment(
    name="best-of-n",
    question="Does theory say what Gaussian random search brings, before it is run?",
    claims=CLAIMS,
    config=Config,
    cells=cells,
    run=Later("frenet.experiments.best_of_n.measure:run"),
    tables=TABLES | NETWORK_TABLES,
    figures=FIGURES,
    presets={
        "smoke": Config(
            only=("reverse",),
            protocols=("relative-noise",),
            places=("all", "random:10"),
            searches=2,
            candidates=32,
            factors=(0.25, 0.5, 1.0),
            select_size=32,
            test_size=64,
            probes=4,
            **SMALL_NETWORK,
        ),
        "demo": Config(
            only=("reverse",),
            protocols=("relative-noise",),
            depth=0.3,
            places=("all", "random:100"),
            searches=2,
            candidates=64,
            factors=(0.25, 0.5, 1.0),
            select_size=64,
            probes=6,
            **DEMO_NETWORK,
        ),
        "cpu": Config(
            spaces=("full", "lora"), max_tasks=2, depth=0.3, widths=(32, 128), ranks=(1, 16)
        ),
        "gpu": Config(
            spaces=("full", "lora"),
            seeds=(0, 1, 2, 3, 4),
            depth=0.3,
            widths=(32, 128, 256),
            ranks=(1, 16),
        ),
        "lm": Config(
            protocols=("absolute-noise",),
            places=("all", "random:10", "random:100", "random:1000", "gradients:5"),
            candidates=256,
            factors=(0.25, 0.5, 1.0, 2.0, 4.0),
            select_size=8,
            test_size=32,
            probes=8,
            prefix_optimizer="adamw:5e-4",
            **{**LANGUAGE_MODEL, "max_tasks": 1},
        ),
    },
    changes={
        MODEL: {
            "smoke": {
                "seeds": (0,), "max_tasks": 1, "candidates": 8, "factors": (1.0,),
                "places": ("all", "random:10"),
            },
            "demo": {
                **FEW, "candidates": 32, "factors": (0.5, 1.0), "places": ("all", "random:100"),
            },
            "cpu": {
                # The best sigma of a model often lies beyond twice the largest trusted one.
                "max_tasks": 1, "searches": 4, "candidates": 64, "factors": (0.5, 1.0, 2.0, 4.0),
                "places": ("all", "random:10", "random:100"),
            },
        },
    },
    reproduced={
        "cpu": {
            "max_tasks": 1, "widths": (), "ranks": (), "candidates": 128, "searches": 3,
            "probes": 8, "places": ("all", "random:10", "random:100", "random:1000"),
        },
    },
    shown_settings=shown_settings("protocols"),
    prepare=prepare,
    passes=passes,
)  # fmt: skip
