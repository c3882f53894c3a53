"""The cells of experiments that damage a task and train it back, and how far a prefix may reach."""

from typing import Any

from frenet._errors import UsageError
from frenet.experiments.experiment import Cell
from frenet.experiments.setup.damage import conditions
from frenet.experiments.setup.networks import task_names

# A prefix that is a larger part of the recovery holds it by being it.
LONGEST_PREFIX = 0.35
RECOVERED = conditions("protocols", full="optimizers", lora="lora_optimizers")


def recovery_cells(config: Any) -> list[Cell]:
    """One cell a seed, space, task, protocol and optimiser.

    Raises:
        ValueError: a k that no recovery of so many steps could be measured with.
    """
    most = int(LONGEST_PREFIX * config.steps)
    if max(config.ks) > most:
        raise UsageError(
            f"k={max(config.ks)} is above {LONGEST_PREFIX} of the {config.steps} steps that a "
            f"recovery may take, so no capture could be given; pass --ks up to {most}, "
            "or more --steps"
        )
    return [
        Cell.of(seed=seed, space=space, task=task, protocol=protocol, optimizer=optimizer)
        for seed in config.seeds
        for space in config.spaces
        for task in task_names(config)
        for protocol in config.protocols
        for optimizer in (config.lora_optimizers if space == "lora" else config.optimizers)
    ]
