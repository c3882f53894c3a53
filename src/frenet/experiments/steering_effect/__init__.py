"""Does the shift by a gradient step steer as the contrast vector does? (M7, claim C7)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from frenet.experiments.experiment import Cell, Experiment, Row
from frenet.experiments.setup.contrasts import (
    BEHAVIOUR_TABLES,
    Steered,
    SteeringConfig,
    cells,
    describe,
    left_out,
    prepare,
    skipped,
    steered,
)
from frenet.experiments.steering_effect.figures import FIGURES
from frenet.experiments.steering_effect.findings import CLAIMS, TABLES
from frenet.experiments.steering_effect.measure import (
    Dosed,
    dose_rows,
    effects_of,
    equal_rows,
    slope_rows,
)

if TYPE_CHECKING:
    import torch

    from frenet.methods.steering import Streams


@dataclass(frozen=True)
class Config(SteeringConfig):
    """Dose-response of answers to vectors of equal norm, and what the vectors cost."""

    doses: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.4)
    """Lengths of the added vector, in units of the stream's root mean square norm; both signs."""
    draws: int = 8
    """Random, covariance-matched and label-shuffled vectors of each kind."""
    resamples: int = 2000
    """Bootstrap samples of the prompts."""
    equal_dose: float = 0.1
    """Dose of the contrast vector whose effect the others are brought to, to compare costs."""
    equal_rows: int = 24
    """Most prompts in that comparison, whose weight steps need whole forward passes."""
    neutral_rows: int = 8
    """Neutral texts for KL divergence and perplexity."""


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables behaviour, dose, slope, ratio and equal."""
    from frenet.network.contrast import UnansweredError

    try:
        subject = steered(config, cell)
    except UnansweredError as error:
        yield from left_out(cell, error)
        return
    if skipped(subject, cell):
        return
    dosed = _dosed(config, cell, subject)
    effects = effects_of(dosed)
    yield from describe(subject, cell, effects.before)
    yield from dose_rows(dosed, effects)
    yield from slope_rows(dosed, effects, resamples=config.resamples)
    yield from equal_rows(
        dosed,
        effects,
        dose=config.equal_dose,
        most=config.equal_rows,
        neutral=config.neutral_rows,
    )


def _dosed(config: Config, cell: Cell, subject: Steered) -> Dosed:
    """Unit vectors at the block where the contrast vector steers best on other prompts."""
    import torch

    from frenet.geometry import rng
    from frenet.geometry.alignment import matched_vectors, shuffled_differences
    from frenet.measure.shift import activation_shift
    from frenet.methods.steering import (
        contrast_streams,
        push_gradient,
        push_items,
        shifted_prompts,
    )

    model, parts, path = subject.model, subject.parts, subject.path
    streams = contrast_streams(model, parts["push"], subject.blocks, path=path)
    norms = torch.cat([streams.positive, streams.negative]).norm(dim=2).square().mean(0).sqrt()
    index = _steerable(subject, streams, norms, dose=config.doses[0])
    block = subject.blocks[index]
    pushed = push_items(parts["push"], flipped=cell["push"] == "flipped")
    # In place: of a large model's weights there is memory for few copies.
    step = push_gradient(model, pushed, space=subject.space).neg_()
    rows = shifted_prompts(parts["moved"])
    moved = activation_shift(model, rows, step, space=subject.space, blocks=[block], path=path)
    shift = moved[:, 0].mean(0).cpu()
    draw = rng.generator(cell["seed"], "steering-effect", cell["behaviour"])
    found = streams.at(index)
    vectors = {
        "contrast": found.difference()[None],
        "gradient": shift.double()[None],
        "shuffled": shuffled_differences(found, config.draws, draw),
        "random": torch.randn(config.draws, len(shift), generator=draw, dtype=torch.float64),
        "matched": matched_vectors(found.rows, config.draws, draw),
    }
    for name in ("contrast", "gradient"):
        if not vectors[name].any():
            raise ValueError(
                f"the {name} vector of {cell['behaviour']} is zero after block {block}, so it has "
                "no direction to steer along; use prompts whose two sides differ before the block"
            )
    return Dosed(
        cell=cell,
        subject=subject,
        block=block,
        norm=float(norms[index]),
        doses=config.doses,
        vectors={name: v / v.norm(dim=1, keepdim=True) for name, v in vectors.items()},
        step=step,
        shift=float(shift.norm()),
    )


def _steerable(subject: Steered, streams: "Streams", norms: "torch.Tensor", *, dose: float) -> int:
    """Index of the block at which the contrast vector has the largest slope on other prompts."""
    import torch

    from frenet.methods.steering_effect import prompted, steered_differences

    count, width = len(subject.blocks), streams.positive.shape[2]
    variants = {}
    for i, block in enumerate(subject.blocks):
        v = streams.at(i).difference().float()
        unit = dose * norms[i] * v / v.norm().clamp_min(1e-30)
        rows = torch.zeros(2 * count, width)
        rows[2 * i], rows[2 * i + 1] = unit, -unit
        variants[block] = rows
    prompts = prompted(subject.parts["choose"].items)
    effects = steered_differences(subject.model, prompts, variants, path=subject.path).mean(0)
    return int((effects[0::2] - effects[1::2]).argmax())


EXPERIMENT = Experiment(
    name="steering-effect",
    question="Does the shift by a gradient step steer answers as the contrast vector does?",
    claims=CLAIMS,
    config=Config,
    cells=cells,
    run=run,
    tables=TABLES | BEHAVIOUR_TABLES,
    figures=FIGURES,
    presets={
        "smoke": Config(
            seeds=(0, 1), width=32, train_steps=300, rows=32, only=("parity",), draws=3,
            resamples=200, doses=(0.05, 0.2), equal_dose=0.2,
        ),
        "demo": Config(),
        "cpu": Config(rows=192, spaces=("full", "lora")),
        "gpu": Config(rows=192, spaces=("full", "lora"), seeds=(0, 1, 2, 3, 4)),
        "lm": Config(
            rows=24, pushes=("own",), draws=4, doses=(0.02, 0.05, 0.1, 0.3), equal_rows=12
        ),
    },
    prepare=prepare,
)  # fmt: skip
