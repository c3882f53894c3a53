"""How far and for how long can each direction be followed? (M9): radius and lifetime."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from frenet._errors import UsageError
from frenet.experiments.direction_scale import advised
from frenet.experiments.direction_scale.answers import sentences
from frenet.experiments.direction_scale.figures import FIGURES, TABLES, reread
from frenet.experiments.direction_scale.kinds import FRESH, KINDS
from frenet.experiments.direction_scale.reach import reach
from frenet.experiments.experiment import MODEL, SYNTHETIC, Cell, Experiment, Later, Study
from frenet.experiments.setup.commands import command_line
from frenet.experiments.setup.damage import (
    DEMO_DAMAGE,
    FEW,
    LANGUAGE_MODEL,
    DamageConfig,
    shown_settings,
)
from frenet.experiments.setup.describe import NETWORK_TABLES
from frenet.experiments.setup.networks import (
    DEMO_NETWORK,
    SMALL_NETWORK,
    MinibatchConfig,
    network_cells,
    prepare,
    require_values,
    task_names,
)
from frenet.experiments.setup.reading import ContrastConfig

C = TypeVar("C", bound="Config")
# Steps after which to measure; the value that asks for no training.
LAGS, HOW_FAR = (1, 3, 10, 30, 100), (0,)
# Kinds of direction that a training makes.
TRAINED = ("prefix", "task vector")


@dataclass(frozen=True)
class Config(ContrastConfig, DamageConfig, MinibatchConfig):
    """Make directions at a point, go along each, and train on to see how long each lasts."""

    directions: tuple[str, ...] = KINDS
    """Kinds of direction: gradient, 'Adam step', prefix, 'task vector', 'damage line', 'search
    winner', random, steering. Without any: what is given by --vectors, --steering and --contrasts;
    otherwise gradient, 'Adam step' and random, and with a training prefix and 'task vector'."""
    vectors: tuple[str, ...] = ()
    """Further directions from disk: adapters, checkpoints, task vectors. Each comes with a random
    change of the same weights of equal norm."""
    steering: str = ""
    """File of a steering vector to follow, in place of one made from the contrast."""
    trajectory: str = ""
    """Folder of a training run that FrenetCallback recorded. Lifetimes are measured along it, and
    prefix and task vector come from it, in place of a new run."""
    protocol: str = "wrong-answers"
    """Damage before the measurement; 'none' leaves the weights unchanged."""
    optimizer: str = "adam:1e-4"
    """Optimiser and rate for training all weights."""
    lora_optimizer: str = "adam:1e-3"
    """Optimiser and rate for training LoRA."""
    k: int = 10
    """Steps of the prefix."""
    n: int = 16
    """Minibatch gradients averaged in a direction; as many are held out."""
    eval_size: int = 128
    """Held-out examples on which the radius is measured; all of them if there are fewer."""
    lags: tuple[int, ...] = LAGS
    """Training steps after which to measure how long a direction lasts; the task vector ends at the
    last one. 0: only how far, without a training."""
    eps: float = 0.2
    """Relative deviation from linearity that defines the radius."""
    candidates: int = 64
    """Candidates of the search."""
    probes: int = 4
    """Random vectors in the search plan's estimate of the Hessian's trace."""
    prompts: int = 64
    """Prompts in each of the three parts of the contrast."""
    path: str = ""
    """Dotted name of the list of blocks, if frenet does not detect it."""


def resolved(config: C) -> C:
    """The configuration with the directions that it leaves open, and the lags of a recorded path.

    Whoever names a vector asks about that one, and about no other kind; whoever names a training
    asks about its prefix and its whole, too.
    """
    if config.trajectory and config.lags == HOW_FAR:
        config = replace(config, lags=LAGS)
    if config.directions:
        return config
    if config.vectors or (not config.trajectory and (config.contrasts or config.steering)):
        return replace(config, directions=("steering",))
    trained = () if config.lags == HOW_FAR else TRAINED
    return replace(config, directions=(*FRESH, *trained, "random", "steering"))


def cells(config: Config) -> list[Cell]:
    """One cell per seed, space and task.

    Raises:
        ValueError: an unknown kind of direction, a prefix as long as the training, or a steering
            vector without the prompts that it steers.
        FileNotFoundError: a vector, contrast or training that does not exist.
    """
    from frenet.network.data.hub import is_path

    if unknown := [name for name in config.directions if name not in KINDS]:
        raise UsageError(f"no direction {unknown[0]!r}; there are {', '.join(KINDS)}")
    config = resolved(config)
    if config.lags != HOW_FAR:
        require_values(config, "lags")
    steps = max(config.lags, default=0)
    if trained := [name for name in TRAINED if name in config.directions and not steps]:
        raise UsageError(
            f"the {trained[0]} is a part of a training, and --lags 0 starts none; pass --lags 1 10 "
            "100, or --directions without it"
        )
    if "prefix" in config.directions and config.k >= steps:
        remedy = f"--k {steps - 1} or less" if steps > 1 else "--directions without prefix"
        raise UsageError(
            f"a prefix of k={config.k} steps is all of a training of {steps} steps (the last of "
            f"--lags); pass {remedy}, or a last lag above {config.k}"
        )
    if config.vectors:
        from frenet.methods.vector_files import check_sources

        if config.dtype != "float32":
            raise UsageError(
                f"--vectors are lines in the weights, and {config.dtype} rounds their small steps "
                "away; pass --dtype float32"
            )
        check_sources(config.vectors, base=config.model)
    # Contrasts may come from a data set on the hub.
    contrasts = (config.contrasts,) if is_path(config.contrasts) else ()
    for source in (*contrasts, config.steering, config.trajectory):
        if source and not Path(source).expanduser().exists():
            raise FileNotFoundError(f"there is no file or folder {source}")
    if config.steering and not config.contrasts and config.model != SYNTHETIC:
        raise UsageError(
            f"--steering {config.steering} needs prompts to steer; pass --contrasts FILE"
        )
    return network_cells(config, task=task_names(config))


EXPERIMENT = Experiment(
    name="direction-scale",
    question="How far, and for how long, can each direction be followed?",
    claims=(),
    config=Config,
    cells=cells,
    run=Later("frenet.experiments.direction_scale.measure:run"),
    tables=TABLES | NETWORK_TABLES,
    figures=FIGURES,
    presets={
        "smoke": Config(
            only=("reverse",), n=4, batch_size=16, eval_size=16, lags=(1, 3, 12), candidates=8,
            probes=2, prompts=16, damage_batch=16, **SMALL_NETWORK,
        ),
        "demo": Config(
            only=("reverse",), eval_size=64, candidates=32, probes=2, prompts=32,
            lags=(3, 10, 30, 100), **DEMO_NETWORK, **DEMO_DAMAGE,
        ),
        "cpu": Config(spaces=("full", "lora"), max_tasks=3),
        "gpu": Config(spaces=("full", "lora"), seeds=(0, 1, 2, 3, 4)),
        "lm": Config(
            lora_optimizer="adamw:5e-4", batch_size=8, n=8, eval_size=32, candidates=32, prompts=16,
            **{**LANGUAGE_MODEL, "max_tasks": 1},
        ),
    },
    changes={
        MODEL: {
            "smoke": {"seeds": (0,), "max_tasks": 1, "lags": (1, 3, 12), "candidates": 8},
            "demo": FEW,
            # Wrong answers hardly damage a small model that has only just learned its tasks.
            "cpu": {"protocol": "absolute-noise"},
        },
    },
    reproduced={"cpu": {"max_tasks": 2}},
    shown_settings=shown_settings("protocol", full="optimizer", lora="lora_optimizer"),
    prepare=prepare,
    leads=True,
    reread=reread,
    answers=sentences,
    reach=reach,
)  # fmt: skip


@dataclass(frozen=True)
class ProbeConfig(Config):
    """Go along directions from a point of a model, and advise how far."""

    scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
    """Coefficients of --vectors that are tried, with 1 among them."""
    neutral: str = ""
    """File, or name of a data set, of other text, whose loss is the cost of a coefficient. Empty:
    neutral paragraphs that frenet has."""
    ranks: bool = False
    """Also find a small rank for every weight of the adapters, so that all together hold --share of
    the adapter's effect on the loss."""
    share: float = 0.9
    """Share of the effect that --ranks is to hold."""


# The defaults of `frenet probe`: the user's weights, undamaged, and no training.
PROBE = ProbeConfig(
    lora_optimizer="adamw:5e-4", batch_size=8, n=8, eval_size=32, lags=HOW_FAR,
    seeds=(0,), protocol="none", learn_steps=0, directions=(),
    **{**LANGUAGE_MODEL, "max_tasks": 1},
)  # fmt: skip


def require_advice(config: ProbeConfig) -> None:
    """Raise ValueError if a setting of the advice is out of range."""
    from frenet.methods.coefficient import require_scales

    require_scales(config.scales)
    if not 0 < config.share < 1:
        raise UsageError(f"share={config.share}; pass a number between 0 and 1")
    if config.eval_size < 2:
        raise UsageError(f"eval_size={config.eval_size}; pass at least 2, for an interval")


def probe_cells(config: ProbeConfig) -> list[Cell]:
    """The same cells, after a check of what is asked about vectors.

    Raises:
        ValueError: settings are out of range, or ranks are asked for without a vector.
    """
    from frenet.network.data.hub import is_path

    require_advice(config)
    if config.ranks and not config.vectors:
        raise UsageError("--ranks is about adapters, and there is none; pass them as --vectors")
    if is_path(config.neutral) and not Path(config.neutral).expanduser().exists():
        raise FileNotFoundError(f"there is no file or folder {config.neutral}")
    return cells(config)


STUDY = Study(
    name="probe",
    question="How far can each direction be followed, and which coefficient is best?",
    claims=(),
    config=ProbeConfig,
    tables=advised.TABLES | TABLES | NETWORK_TABLES,
    figures=advised.FIGURES + tuple(figure._replace(front=False) for figure in FIGURES),
    command=partial(command_line, "frenet probe", PROBE),
    answers=advised.all_sentences,
    reach=reach,
)
# The same with its cells, for the engine that fills run folders.
PROBED = Experiment.of_command(
    STUDY,
    cells=probe_cells,
    run=Later("frenet.experiments.direction_scale.advice:run"),
    prepare=prepare,
)
