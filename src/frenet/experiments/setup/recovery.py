"""The cells of experiments that damage a task and train it back, and how far a prefix may reach."""

from typing import Any

from frenet._errors import UsageError
from frenet.experiments.experiment import Cell
from frenet.experiments.setup.damage import shown_settings
from frenet.experiments.setup.networks import by_space, network_cells, require_values, task_names

# A longer prefix would hold the recovery simply by being most of it.
LONGEST_PREFIX = 0.35
# A recovery that needs more than this many times the planned steps is hopeless. At one rate the
# slowest recoveries of the pilot took 4 to 5 times as long as the fastest, by damage and by seed.
HOPELESS = 5
RECOVERED = shown_settings("protocols", full="optimizers", lora="lora_optimizers")


def recovery_cells(config: Any) -> list[Cell]:
    """One cell per seed, space, task, protocol and optimiser.

    Raises:
        ValueError: a k that is too large for the steps of a recovery.
    """
    most = int(LONGEST_PREFIX * config.steps)
    require_values(config, "ks")
    if max(config.ks) > most:
        raise UsageError(
            f"k={max(config.ks)} is above {LONGEST_PREFIX} of the {config.steps} steps of a "
            f"recovery, so no capture could be given; pass --ks up to {most}, or more --steps"
        )
    return network_cells(
        config,
        task=task_names(config),
        protocol=config.protocols,
        optimizer=lambda cell: by_space(cell["space"], config.optimizers, config.lora_optimizers),
    )
