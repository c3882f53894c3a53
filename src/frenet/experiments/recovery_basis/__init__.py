"""Which bases hold a recovery: fixed ones, or its own first updates? (M2 and M4, claims C2, C4)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from frenet.experiments.experiment import MADE, MODEL, Experiment, Later
from frenet.experiments.recovery_basis.figures import FIGURES, TABLES
from frenet.experiments.recovery_basis.findings import CLAIMS
from frenet.experiments.setup.damage import DEMO_DAMAGE, FEW, LANGUAGE_MODEL, DamageConfig
from frenet.experiments.setup.describe import NETWORK_TABLES
from frenet.experiments.setup.networks import DEMO_NETWORK, SMALL_NETWORK, MinibatchConfig, prepare
from frenet.experiments.setup.recovery import RECOVERED, recovery_cells

if TYPE_CHECKING:
    from frenet.geometry.basis import Basis

    Bases = dict[str, Basis]


@dataclass(frozen=True)
class Config(DamageConfig, MinibatchConfig):
    """Damage a task, recover it twice, and measure what each basis holds of the displacement."""

    protocols: tuple[str, ...] = (
        "wrong-answers",
        "relative-noise",
        "absolute-noise",
        "forgetting",
        "ascent",
        "zeroed-head",
        "zeroed-mlp",
    )
    """Ways to damage the task."""
    optimizers: tuple[str, ...] = ("adam:3e-5", "adam:3e-4", "adam:1e-3", "sgd:0.01")
    """Optimisers for recovering all weights, with their rates."""
    lora_optimizers: tuple[str, ...] = ("adam:5e-4", "adam:1e-3", "adam:2e-3")
    """Optimisers for recovering by LoRA, with their rates. C4 takes the largest rate of Adam with
    recoveries of 29 steps or more, and a median of at most 60; rates a factor of 2 apart seldom
    miss that range."""
    steps: int = 100
    """Steps that a recovery is planned to take; one that needs more than 5 times as many is given
    up, and reported as not recovered."""
    every: int = 1
    """Steps between measurements of the loss during recovery."""
    ks: tuple[int, ...] = (1, 2, 5, 10, 20)
    """Basis dimensions."""
    n: int = 64
    """Gradients in a gradient basis."""
    second_order: tuple[str, ...] = ("Krylov", "Hessian")
    """Bases that need Hessian products: the Krylov space of the gradient, top eigenvectors."""
    vector_steps: int = 30
    """Training steps for the task vector of each other task."""
    optimised: tuple[str, ...] = ("prefix", "gradients at damage", "random")
    """Bases inside which the network is also trained."""
    function_k: int = 10
    """Basis dimension at which loss and accuracy are measured and networks are trained."""
    probe_size: int = 128
    """Examples on which loss and accuracy are measured."""


MADE_RATES = {"lora_optimizers": ("adamw:1e-3", "adamw:2e-3", "adamw:4e-3")}
EXPERIMENT = Experiment(
    name="recovery-basis",
    question="Which bases hold a recovery: fixed ones, or its own first updates?",
    claims=CLAIMS,
    config=Config,
    cells=recovery_cells,
    run=Later("frenet.experiments.recovery_basis.measure:run"),
    tables=TABLES | NETWORK_TABLES,
    figures=FIGURES,
    presets={
        "smoke": Config(
            only=("reverse",),
            protocols=("wrong-answers",),
            optimizers=("adam:3e-4",),
            steps=30,
            n=12,
            batch_size=16,
            ks=(1, 5, 10),
            second_order=(),
            vector_steps=3,
            optimised=("prefix",),
            **SMALL_NETWORK,
        ),
        "demo": Config(
            only=("reverse",),
            spaces=("full", "lora"),
            protocols=("wrong-answers", "relative-noise"),
            optimizers=("adam:5e-5",),
            lora_optimizers=("adam:1e-3",),
            ks=(1, 2, 5, 10),
            n=32,
            every=2,
            second_order=("Krylov",),
            vector_steps=10,
            optimised=("prefix",),
            probe_size=64,
            **DEMO_NETWORK,
            **DEMO_DAMAGE,
        ),
        "cpu": Config(spaces=("full", "lora")),
        "gpu": Config(spaces=("full", "lora"), seeds=(0, 1, 2, 3, 4)),
        "lm": Config(
            protocols=("wrong-answers", "absolute-noise"),
            lora_optimizers=("adamw:2.5e-4", "adamw:5e-4", "adamw:1e-3"),
            steps=80,
            batch_size=8,
            every=2,
            ks=(1, 2, 5, 10, 16),
            n=12,
            second_order=(),
            vector_steps=5,
            optimised=("prefix",),
            probe_size=16,
            **LANGUAGE_MODEL,
        ),
    },
    changes={
        MODEL: {
            "smoke": {
                "seeds": (0,), "max_tasks": 1, "steps": 30, "ks": (1, 5, 10),
                "protocols": ("absolute-noise",), "lora_optimizers": ("adamw:5e-4",),
            },
            "demo": FEW,
            "cpu": {"max_tasks": 1},
        },
        # A small network that knows nothing but what it was just taught needs 4 times the rate of a
        # pretrained one to recover in as many steps.
        MADE: {
            "smoke": {"lora_optimizers": ("adamw:2e-3",)},
            "demo": {"lora_optimizers": ("adamw:2e-3",)},
            "cpu": MADE_RATES,
            "gpu": MADE_RATES,
        },
    },
    reproduced={
        "cpu": {
            "max_tasks": 1, "protocols": ("wrong-answers", "relative-noise", "forgetting"),
            "optimizers": ("adam:3e-4", "sgd:0.01"),
        },
    },
    shown_settings=RECOVERED,
    prepare=prepare,
    leads=True,
)  # fmt: skip
