"""The networks that experiments measure: built once, trained on their tasks, cached."""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from frenet._errors import UsageError
from frenet._notebook import listed
from frenet.experiments.experiment import SYNTHETIC, Cell
from frenet.experiments.setup.reading import LoadingConfig, TaskReadingConfig, reading_of, tasks_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from frenet.network.checkpoints.load import Loaded
    from frenet.network.data.text import TextTask
    from frenet.network.space import ParamSpace
    from frenet.network.tasks import Split, Task

T = TypeVar("T")
# A cached network must not depend on the threads of the run that happened to make it; two threads
# that wait for each other on a busy machine take many times as long as one.
LEARNING_THREADS = 1

# How to measure tasks other than the first ones.
CHOOSE = "--only names others, --max-tasks 0 takes all"
# Examples on which derivatives are checked.
CHECKED = 8

# Settings of network and tasks on a page of results, and of how a language model learned the tasks;
# the synthetic transformer is already trained.
SHOWN = ("seeds", "spaces", "tasks", "only")
LEARNING = ("learn_optimizer", "learn_steps")
# The network of the presets "smoke".
SMALL_NETWORK: dict[str, Any] = {"seeds": (0, 1), "width": 32, "train_steps": 300}
# That of `frenet demo`, in two thirds of the usual time. After 1,000 steps the seeds still differ
# so much that C2 and C4 stay open.
DEMO_NETWORK: dict[str, Any] = {"train_steps": 1600}

# torch and transformers are imported inside the functions: a command line that only prints its
# help reads the configurations and should not wait seconds for them.


@dataclass(frozen=True)
class NetworkConfig(TaskReadingConfig, LoadingConfig):
    """Which network, which tasks, how it learned them."""

    model: str = "synthetic"
    """'synthetic', a hub id, a folder in Hugging Face format, or a GGUF file. For a PEFT adapter,
    give its base; frenet probe takes the adapter as --vectors."""
    tasks: tuple[str, ...] = ()
    """Task files or data set names; for the synthetic network, names of its tasks. Empty: all of
    them."""
    only: tuple[str, ...] = ()
    """Names of the tasks to measure, if the files hold more. Empty: all."""
    max_tasks: int = 0
    """Measure only this many tasks, the first ones, unless --only names some; the others are still
    learned. 0: all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each seed trains one network and draws all random numbers anew."""
    spaces: tuple[str, ...] = ("full",)
    """'full' (all weights) and 'lora' (rank-r adapters): the parameters that move."""
    rank: int = 4
    """Rank of the LoRA adapters."""
    targets: tuple[str, ...] = ()
    """Modules that get a LoRA adapter, by the last parts of their names. Empty: PEFT's choice for
    this family of models."""
    width: int = 64
    """Width of the synthetic transformer."""
    train_steps: int = 2400
    """Steps in which the synthetic transformer is trained on its eight tasks."""
    learn_steps: int = 120
    """Training steps of a language model on the tasks before it is measured. 0: no training."""
    learn_optimizer: str = "adamw:2e-3"
    """Optimiser and rate of that training."""
    learn_batch: int = 10
    """Examples in a batch of that training."""

    @property
    def minibatches(self) -> dict[str, int]:
        """Examples in the minibatches of training and of gradients, by the name of the setting."""
        return {}

    @property
    def preparing_steps(self) -> int:
        """Training steps of the network of a seed before it is measured."""
        return self.train_steps if self.model == SYNTHETIC else self.learn_steps


@dataclass(frozen=True)
class MinibatchConfig(NetworkConfig):
    """A network that is trained, or that gives gradients, in minibatches of one size."""

    batch_size: int = 64
    """Examples in a minibatch, of training and of the sampled gradients."""

    @property
    def minibatches(self) -> dict[str, int]:
        """The one size."""
        return {"batch_size": self.batch_size}


@dataclass(frozen=True)
class Network:
    """A network at theta_0 with the tasks that it knows.

    Attributes:
        model: the network, in evaluation mode.
        space: the parameters that recover and that have the measured gradients.
        damage_space: the parameters that damage moves. It is the space itself, except for adapters
            on the synthetic transformer: there the weights are damaged and the adapters recover.
        tasks: the tasks it has learned, by name.
        measured: names of the tasks to measure.
        unseen: tasks it has not learned, for ordinary fine-tuning and for forgetting.
        untrained: the space's parameters before the tasks were learned, for a language model; None
            for the synthetic one.
        chance: ln V, the loss of a uniform guess over the vocabulary, in nats per token.
        notes: caveats for the report.
        tokenizer: of the model; None for the synthetic one.
        context_length: tokens that the model can read at once; None if unknown.
    """

    model: "nn.Module"
    space: "ParamSpace"
    damage_space: "ParamSpace"
    tasks: "dict[str, Task]"
    measured: tuple[str, ...]
    unseen: "dict[str, Task]"
    untrained: "Tensor | None"
    chance: float
    notes: tuple[str, ...] = ()
    tokenizer: Any = None
    context_length: int | None = None


def build(config: NetworkConfig, *, space: str, seed: int) -> Network:
    """The network of one seed, from the cache if it was built before.

    Raises:
        ValueError: an unknown space or task name, or a gradient that is not the derivative of the
            network's loss.
    """
    if space not in ("full", "lora"):
        raise UsageError(f"unknown space {space!r}; there are full and lora")
    make = _synthetic if config.model == SYNTHETIC else _language_model
    network = make(config, space, seed)
    return replace(network, notes=(*network.notes, *_not_checked(network)))


def _not_checked(network: Network) -> list[str]:
    """A note if the derivatives could not be checked on any task; empty otherwise.

    Raises:
        ValueError: the network's gradient is not the derivative of its loss.
    """
    from frenet.measure.checked import check_slope

    note = ""
    for name in network.measured:
        task = network.tasks[name]
        batch = next(task.batches("train", at_most(task, "train", CHECKED), 0))
        note = check_slope(network.model, task, batch, space=network.space).note
        if not note:
            break
    return [note] if note else []


def only_first(measured: Collection[str], known: Collection[str], what: str, how: str) -> list[str]:
    """A note if fewer are measured than the files hold, and how to choose."""
    if len(measured) == len(known):
        return []
    return [f"measured: {listed(measured)}, of {len(known)} {what} ({listed(known)}); {how}"]


def prepare(config: NetworkConfig, cell: Cell) -> None:
    """Put the network of this cell into the cache."""
    build(config, space=cell["space"], seed=cell.seed)


def at_most(task: "Task", split: "Split", examples: int) -> int:
    """This number of examples of a split, or all that a task from a file has."""
    from frenet.network.data.text import TextTask

    return min(examples, len(task.examples[split])) if isinstance(task, TextTask) else examples


def held_out(task: "Task") -> "Split":
    """The split with minibatches that no training, search or choice has seen.

    The synthetic tasks draw new examples for every seed; a file has the same ones for all seeds.
    """
    from frenet.network.data.text import TextTask

    return "test" if isinstance(task, TextTask) else "train"


def task_names(config: NetworkConfig) -> tuple[str, ...]:
    """Names of the tasks that the configuration measures, without loading the model.

    Raises:
        ValueError: ``only`` names a task that does not exist.
    """
    if config.max_tasks < 0:
        raise UsageError(f"max_tasks={config.max_tasks}; pass 0 for all tasks, or how many")
    known = _known_tasks(config)
    if missing := [name for name in config.only if name not in known]:
        raise UsageError(
            f"no task {missing[0]!r}; there are {listed(known)}: pass some of them as --only"
        )
    return config.only or known[: config.max_tasks or None]


def require_values(config: NetworkConfig, *names: str) -> None:
    """Refuse a list of numbers that is empty, or holds one below 1.

    Raises:
        ValueError: names the option.
    """
    for name in names:
        values = getattr(config, name)
        if not values or min(values) < 1:
            shown = " ".join(map(str, values)) or "no value"
            raise UsageError(
                f"--{name.replace('_', '-')} got {shown}; pass one or more, each at least 1"
            )


def network_cells(
    config: NetworkConfig, **keys: Sequence[Any] | Callable[[dict[str, Any]], Sequence[Any]]
) -> list[Cell]:
    """The cells for every seed, every space and every combination of further keys.

    Args:
        config: seeds and spaces.
        keys: the values of each further key, or a function of the keys before it.

    Raises:
        ValueError: ``only`` names a task that does not exist.
    """
    task_names(config)
    combinations: list[dict[str, Any]] = [
        {"seed": seed, "space": space} for seed in config.seeds for space in config.spaces
    ]
    for key, values in keys.items():
        combinations = [
            {**cell, key: value}
            for cell in combinations
            for value in (values(cell) if callable(values) else values)
        ]
    return [Cell.of(**cell) for cell in combinations]


def by_space(space: str, full: T, lora: T) -> T:
    """Which of two settings counts: the one for all weights, or the one for adapters."""
    return lora if space == "lora" else full


def _known_tasks(config: NetworkConfig) -> tuple[str, ...]:
    if config.model != SYNTHETIC:
        from frenet.network.data.text import task_names

        if not config.model:
            raise UsageError("model is empty; pass synthetic, a hub id, a folder or a GGUF file")
        if not config.tasks:
            raise UsageError(f"model {config.model} needs tasks: pass --tasks FILE.jsonl")
        reading = reading_of(config.rows_read())
        return tuple(name for source in config.tasks for name in task_names(source, reading))
    from frenet.network.synthetic.model import LEARNED

    if any(config.rows_read().values()):
        raise UsageError(
            "the synthetic network reads no files: leave --columns, --prompt, --completion, "
            "--words and --chat out, or pass --model"
        )
    if unknown := [name for name in config.tasks if name not in LEARNED]:
        raise UsageError(f"no synthetic task {unknown[0]!r}; there are {', '.join(LEARNED)}")
    return config.tasks or LEARNED


def _synthetic(config: NetworkConfig, space: str, seed: int) -> Network:
    from frenet.network.space import ParamSpace
    from frenet.network.synthetic.model import (
        LEARNED,
        UNSEEN,
        VOCABULARY,
        SyntheticConfig,
        SyntheticTask,
        trained_synthetic,
    )

    shape = SyntheticConfig(width=config.width, steps=config.train_steps)
    model: nn.Module = trained_synthetic(shape, seed=seed)
    tasks: dict[str, Task] = {name: SyntheticTask(name) for name in LEARNED}
    unseen: dict[str, Task] = {name: SyntheticTask(name) for name in UNSEEN}
    weights = ParamSpace.select(model)
    if space == "lora":
        from frenet.network.adapters import attach_lora

        model = attach_lora(model, rank=config.rank, targets=["q_proj", "v_proj"], seed=seed)
        selected = ParamSpace.select(model)
        weights = ParamSpace.select(model, lambda name, _: "lora_" not in name)
    else:
        selected = weights
    known = tasks, task_names(config), unseen
    return Network(model, selected, weights, *known, None, math.log(VOCABULARY))


def _refuse_adapter(source: str, model: "nn.Module") -> None:
    """Raise ValueError for a model with an adapter on it: the base weights would not move."""
    if hasattr(model, "peft_config"):
        raise UsageError(
            f"{source} is an adapter on its base, and only the adapter would move; pass the base "
            "as --model (and the adapter as --vectors of frenet probe), or first merge it into the "
            "base (merge_and_unload of peft)"
        )


def _language_model(config: NetworkConfig, space: str, seed: int) -> Network:
    from frenet.measure.damage import Mixture
    from frenet.measure.trajectory import Training, train_and_record
    from frenet.network.adapters import attach_lora
    from frenet.network.space import ParamSpace
    from frenet.network.tasks import base_model

    loaded = config.load(config.model)
    _refuse_adapter(config.model, loaded.model)
    # A small file is used whole; ``describe`` notes if it has less than requested.
    tasks = {n: replace(task, whole=True) for n, task in tasks_of(config, loaded).items()}
    measured = task_names(config)
    for name in measured:
        _require_batches(tasks[name], config)
    model: nn.Module = loaded.model
    if space == "lora":
        model = attach_lora(model, rank=config.rank, targets=config.targets or None, seed=seed)
    selected = ParamSpace.select(model)
    selected.require_float32(model, "training")
    training = Training(config.learn_optimizer, config.learn_batch, config.learn_steps, seed=seed)
    untrained = selected.read(model)
    prints = [task.fingerprint for task in tasks.values()]
    key = [loaded.fingerprint, prints, space, config.rank, config.max_length, str(training)]
    # Later settings enter the key only if they are not the default, so that older caches stay good.
    if (config.targets, config.dtype) != ((), "float32"):
        key.append([*config.targets, config.dtype])
    if config.untie:
        key.append("untied")
    if config.learn_steps:
        theta = _learned(
            key,
            lambda: train_and_record(
                model, Mixture(tuple(tasks.values())), training, space=selected
            ).theta(config.learn_steps),
        )
        selected.write(model, theta)
    return Network(
        model=model.eval(),
        space=selected,
        damage_space=selected,
        tasks=dict(tasks),
        measured=measured,
        unseen={},
        untrained=untrained,
        chance=math.log(base_model(model).get_output_embeddings().weight.shape[0]),
        notes=_notes(config, loaded, tasks, measured),
        tokenizer=loaded.tokenizer,
        context_length=loaded.context_length,
    )


def _notes(
    config: NetworkConfig,
    loaded: "Loaded",
    tasks: "Mapping[str, TextTask]",
    measured: Collection[str],
) -> tuple[str, ...]:
    """Notes on a language model and its tasks."""
    from frenet.network.data.text import reading_notes

    dtype = f"{config.model}: weights measured in {loaded.dtype}"
    chosen = only_first(measured, tasks, "tasks", CHOOSE)
    return (dtype, *loaded.notes, *reading_notes(tasks.values()), *chosen)


def _require_batches(task: "TextTask", config: NetworkConfig) -> None:
    """Raise ValueError if all minibatches of a task's gradients would be the same."""
    rows = len(task.examples["train"])
    for setting, examples in config.minibatches.items():
        if rows <= examples:
            raise UsageError(
                f"task {task.name!r} has {rows} training rows and {setting} asks for {examples}, "
                f"so all minibatches would be the same; pass a smaller {setting}, or more rows"
            )


def _learned(key: list[Any], learn: Any) -> Any:
    """The parameter vector that ``learn()`` returns, cached under ``key``."""
    from frenet.network.checkpoints.cache import cache_dir, kept_tensors
    from frenet.network.measuring import torch_threads

    digest = hashlib.sha256(json.dumps([*key, LEARNING_THREADS]).encode()).hexdigest()[:16]
    path = cache_dir() / "learned" / f"{digest}.safetensors"

    def made() -> dict[str, Any]:
        with torch_threads(LEARNING_THREADS):
            return {"theta": learn()}

    return kept_tensors(path, made)["theta"]
