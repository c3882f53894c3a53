"""What is watched of a training, the same for Trainer and for a loop of one's own."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from frenet._errors import UsageError
from frenet.experiments.watched_training import WatchConfig
from frenet.integrations.checks import require_room
from frenet.integrations.order import cost_of_look
from frenet.integrations.probes import Probe, make_probes
from frenet.integrations.projections import cost_of_projections
from frenet.integrations.session import Plan, Session
from frenet.integrations.trained import Trained, trained_space
from frenet.measure.lie_bracket import MANY
from frenet.network.space import Where
from frenet.network.tasks import Task

logger = logging.getLogger("frenet")


class Watching(NamedTuple):
    """Probes, settings and parameters, before the model is known.

    Attributes:
        probes: tasks with fixed examples.
        config: what is recorded and measured.
        where: the parameters.
    """

    probes: tuple[Probe, ...]
    config: WatchConfig
    where: Where

    @classmethod
    def of(
        cls,
        tasks: Sequence[Task],
        *,
        every: int,
        k: int,
        n: int,
        where: Where,
        gradients: bool,
        order: bool,
        projection_rank: int | None,
    ) -> "Watching":
        """Check the settings, see ``FrenetCallback``.

        Raises:
            ValueError: a number is out of range, there is no pair of probes with an order, or no
                probe to project the gradient of; or see ``make_probes``.
        """
        least = [("every", every, 1), ("k", k, 1), ("n", n, 2)]
        if projection_rank is not None:
            least.append(("projection_rank", projection_rank, 1))
        for name, value, smallest in least:
            if value < smallest:
                raise UsageError(f"{name}={value}; pass at least {smallest}")
        if order and len(tasks) < 2:
            raise UsageError(f"{len(tasks)} probe has no order; pass two or more, or order=False")
        if projection_rank is not None and not tasks:
            raise UsageError("projection_rank needs a probe whose gradients are projected")
        pattern = where if isinstance(where, str) else "" if where is None else "a function"
        config = WatchConfig(
            "", tuple(task.name for task in tasks), every, k, n, gradients, pattern, order,
            projection_rank or 0,
        )  # fmt: skip
        return cls(make_probes(tasks, n=n), config, where)

    def begin(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        out: Path,
        plan: Plan,
        recorded: int,
        start_over: bool = False,
    ) -> Session:
        """Say what it costs, and begin to record.

        Args:
            model: to be trained.
            optimizer: of the training; None if unknown.
            out: the folder.
            plan: planned and taken steps.
            recorded: steps for which there must be room on the disk.
            start_over: discard an earlier start of this training in the folder.
        """
        space = trained_space(model, self.where, optimizer)
        logger.info("frenet: %s", require_room(space, self.config, steps=recorded, out=out))
        name = str(getattr(getattr(model, "config", None), "_name_or_path", "")) or "the model"
        n, probes, rank = self.config.n, len(self.probes), self.config.projection_rank
        if rank:
            cost = cost_of_projections(space, rank=rank, probes=probes, n=n)
            logger.info("frenet: %s", cost)
        session = Session(
            Trained(model, space, self.where), self.probes, replace(self.config, model=name),
            out=out, plan=plan, start_over=start_over,
        )  # fmt: skip
        if self.config.order:
            level = logging.WARNING if probes > MANY else logging.INFO
            logger.log(level, "frenet: %s", cost_of_look(probes, n))
        return session
