"""Does the order of two updates matter, and does the Lie bracket say so? (M10, C8 and C9)."""

from dataclasses import dataclass

from frenet._errors import UsageError
from frenet.experiments.experiment import MADE, MODEL, Cell, Experiment, Later, Setting
from frenet.experiments.setup.describe import NETWORK_TABLES
from frenet.experiments.setup.networks import (
    DEMO_NETWORK,
    SMALL_NETWORK,
    MinibatchConfig,
    network_cells,
    prepare,
)
from frenet.experiments.update_order.figures import FIGURES, TABLES
from frenet.experiments.update_order.findings import CLAIMS

PRECISIONS = ("float64", "float32")


@dataclass(frozen=True)
class Config(MinibatchConfig):
    """Take two updates in both orders, for every pair of tasks, and compare with the bracket."""

    noise: float = 0.02
    """Standard deviation of Gaussian noise added to every weight first: where a task is learned,
    its gradient is rounding. 0: none."""
    adapter_steps: int = 60
    """Steps in which a fresh adapter is trained on all tasks together before it is measured."""
    adapter_optimizer: str = "adamw:2e-3"
    """Optimiser and rate of that training."""
    unseen: bool = True
    """Measure pairs with the tasks that the synthetic network has not learned, too, unless --only
    names some. Claims do not count them."""
    precision: str = "float64"
    """Precision of the weights while gradients are taken: float64 (8 bytes each) or float32."""
    fractions: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """Step sizes, as shares of the onset of each pair."""
    optimizers: tuple[str, ...] = ("sgd:0.01", "adam:1e-4")
    """Optimisers and rates whose single steps are compared, over all weights."""
    lora_optimizers: tuple[str, ...] = ("sgd:0.1", "adamw:5e-4")
    """The same for LoRA."""
    carried: int = 20
    """Minibatches of all tasks that an optimiser with a carried state has seen."""
    steps: int = 20
    """Steps on each task of the trainings in both orders."""
    long_pairs: int = 3
    """Pairs of tasks that are trained in both orders, the first ones. 0: none."""
    eval_size: int = 128
    """Held-out examples on which these trainings are compared; all of them if there are fewer."""
    eps: float = 0.2
    """Relative deviation from linearity that ends the window of a single step."""

    @property
    def damage_batch(self) -> int:
        """No task is damaged."""
        return 0


def cells(config: Config) -> list[Cell]:
    """One cell per seed and space: pairs need all tasks together.

    Raises:
        ValueError: an unknown precision, or a step size that is not positive.
    """
    if config.precision not in PRECISIONS:
        raise UsageError(f"--precision {config.precision}; pass {' or '.join(PRECISIONS)}")
    if not config.fractions or min(config.fractions) <= 0:
        shown = " ".join(map(str, config.fractions)) or "no value"
        raise UsageError(f"--fractions got {shown}; pass one or more, each above 0")
    return network_cells(config)


# Three word tasks: all pairs of them, and adapters that have already learned them.
_LANGUAGE_MODEL = Config(spaces=("lora",), max_tasks=3, batch_size=8, noise=0.0, eval_size=32)

EXPERIMENT = Experiment(
    name="update-order",
    question="Does the order of two updates matter, and does the Lie bracket say so?",
    claims=CLAIMS,
    config=Config,
    cells=cells,
    run=Later("frenet.experiments.update_order.measure:run"),
    tables=TABLES | NETWORK_TABLES,
    figures=FIGURES,
    presets={
        "smoke": Config(
            only=("reverse", "sort", "copy"), batch_size=16, fractions=(0.01, 0.1, 1.0), carried=4,
            steps=4, long_pairs=1, eval_size=32, **SMALL_NETWORK,
        ),
        "demo": Config(only=("reverse", "sort", "copy"), long_pairs=1, **DEMO_NETWORK),
        "cpu": Config(spaces=("full", "lora")),
        "gpu": Config(spaces=("full", "lora"), seeds=(0, 1, 2, 3, 4)),
        "lm": _LANGUAGE_MODEL,
    },
    changes={
        MODEL: {
            "smoke": {"seeds": (0,), "max_tasks": 2, "fractions": (0.01, 0.1), "long_pairs": 1},
            "demo": {"seeds": (0, 1), "max_tasks": 2},
        },
        MADE: {},
    },
    shown_settings=(
        Setting("noise", "noise"),
        Setting("precision", "precision"),
        Setting("full space trained by", "optimizers", "full"),
        Setting("lora space trained by", "lora_optimizers", "lora"),
    ),
    prepare=prepare,
    in_demo=False,
)  # fmt: skip
