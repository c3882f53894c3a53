"""The networks that experiments measure: built once, taught their tasks, cached."""

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

# How other tasks than the first ones are measured.
CHOOSE = "--only names others, --max-tasks 0 takes all"
# Examples on which derivatives are checked.
CHECKED = 8

# What a page of results says of the network and its tasks, and of how a language model learned
# them; the synthetic transformer comes trained.
TOLD = ("seeds", "spaces", "tasks", "only")
LEARNING = ("learn_optimizer", "learn_steps")
# What the presets "smoke" of all experiments say of the network.
SMALL_NETWORK: dict[str, Any] = {"seeds": (0, 1), "width": 32, "train_steps": 300}

# torch and transformers are imported inside the functions: a command line that only prints its
# help reads the configurations and should not wait seconds for them.


@dataclass(frozen=True)
class NetworkConfig(TaskReadingConfig, LoadingConfig):
    """Which network, which tasks, how it learned them."""

    model: str = "synthetic"
    """'synthetic', a hub id, a folder in Hugging Face format, or a GGUF file. Of a PEFT adapter the
    base is meant; frenet probe takes the adapter itself as --vectors."""
    tasks: tuple[str, ...] = ()
    """Task files or data set names; for the synthetic network task names. Empty: all it has."""
    only: tuple[str, ...] = ()
    """Names of the tasks to measure, where the files hold more. Empty: all."""
    max_tasks: int = 0
    """Measure only so many tasks, the first ones, where none are named; the others are still
    learned. 0: all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One network is trained, and everything is drawn, for each seed."""
    spaces: tuple[str, ...] = ("full",)
    """'full' (all weights) and 'lora' (rank-r adapters): the parameters that move."""
    rank: int = 4
    """Rank of the LoRA adapters."""
    targets: tuple[str, ...] = ()
    """Modules that a LoRA adapter goes on, by the last parts of their names. Empty: those that PEFT
    takes for a model of this family."""
    width: int = 64
    """Width of the synthetic transformer."""
    train_steps: int = 2400
    """Steps in which the synthetic transformer is trained on its eight tasks."""
    learn_steps: int = 120
    """Steps in which a language model learns the tasks before it is measured. 0: it stays as it is.
    """
    learn_optimizer: str = "adamw:2e-3"
    """Optimiser and rate of that learning."""
    learn_batch: int = 10
    """Examples in a batch of that learning."""
    max_length: int = 64
    """Longest text in tokens; longer prompts lose their beginning."""

    @property
    def minibatches(self) -> dict[str, int]:
        """Examples in the minibatches of training and of gradients, by the setting that says so."""
        return {}

    @property
    def preparing_steps(self) -> int:
        """Steps in which the network of a seed is trained before it is measured."""
        return self.train_steps if self.model == SYNTHETIC else self.learn_steps


@dataclass(frozen=True)
class MinibatchConfig(NetworkConfig):
    """A network that is trained, or whose gradients are taken, in minibatches of one size."""

    batch_size: int = 64
    """Examples in a minibatch, of training and of the sampled gradients."""

    @property
    def minibatches(self) -> dict[str, int]:
        """That of the field."""
        return {"batch_size": self.batch_size}


@dataclass(frozen=True)
class Network:
    """A network at theta_0 with the tasks that it knows.

    Attributes:
        model: the network, in evaluation mode.
        space: the parameters that recover and whose gradients are measured.
        damage_space: the parameters that damage moves. It is the space itself, except for adapters
            on the synthetic transformer: there the weights are damaged and the adapters recover.
        tasks: the tasks it has learned, by name.
        measured: names of those that the configuration asks about.
        unseen: tasks it has not learned, for ordinary fine-tuning and for forgetting.
        untrained: the space's parameters before the tasks were learned, where they still mean
            something: a language model that has not been fine-tuned. None for the synthetic one.
        chance: ln V, the loss of a uniform guess over the vocabulary, in nats per token.
        notes: what the report must say about it.
        tokenizer: of the model; None for the synthetic one.
        context_length: tokens that the model can read at once, where it says so.
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
    """The network of one seed, from the cache where it was built before.

    Raises:
        ValueError: an unknown space or task name, or a network whose gradient is not the derivative
            of its loss.
    """
    if space not in ("full", "lora"):
        raise UsageError(f"unknown space {space!r}; there are full and lora")
    make = _synthetic if config.model == SYNTHETIC else _language_model
    network = make(config, space, seed)
    return replace(network, notes=(*network.notes, *_not_checked(network)))


def _not_checked(network: Network) -> list[str]:
    """Nothing where the derivatives of a task are seen to be right, else why they are not.

    Raises:
        ValueError: the network's gradient is not the derivative of its loss.
    """
    from frenet.measure.checked import check_slope

    found = ""
    for name in network.measured:
        task = network.tasks[name]
        batch = next(task.batches("train", at_most(task, "train", CHECKED), 0))
        found = check_slope(network.model, task, batch, space=network.space).note
        if not found:
            break
    return [found] if found else []


def only_first(measured: Collection[str], known: Collection[str], what: str, how: str) -> list[str]:
    """A note where fewer are measured than the files hold, and how to choose."""
    if len(measured) == len(known):
        return []
    return [f"measured: {listed(measured)}, of {len(known)} {what} ({listed(known)}); {how}"]


def prepare(config: NetworkConfig, cell: Cell) -> None:
    """Put the network of this cell into the cache."""
    build(config, space=cell["space"], seed=cell.seed)


def at_most(task: "Task", split: "Split", examples: int) -> int:
    """So many examples of a split, or as many as a task from a file has."""
    from frenet.network.data.text import TextTask

    return min(examples, len(task.examples[split])) if isinstance(task, TextTask) else examples


def held_out(task: "Task") -> "Split":
    """Split whose minibatches no training, search or choice has seen.

    The synthetic tasks draw new examples for every seed; a file has the same ones for all seeds.
    """
    from frenet.network.data.text import TextTask

    return "test" if isinstance(task, TextTask) else "train"


def task_names(config: NetworkConfig) -> tuple[str, ...]:
    """Names of the tasks that the configuration measures, without loading the model.

    Raises:
        ValueError: ``only`` names a task that is not there.
    """
    known = _known_tasks(config)
    if missing := [name for name in config.only if name not in known]:
        raise UsageError(
            f"no task {missing[0]!r}; there are {listed(known)}: pass some of them as --only"
        )
    return config.only or known[: config.max_tasks or None]


def network_cells(
    config: NetworkConfig, **keys: Sequence[Any] | Callable[[dict[str, Any]], Sequence[Any]]
) -> list[Cell]:
    """The cells for every seed, every space and every combination of further keys.

    Args:
        config: seeds and spaces.
        keys: the values of each further key, or what gives them for the keys before it.

    Raises:
        ValueError: ``only`` names a task that is not there: refused before anything is made.
    """
    task_names(config)
    found: list[dict[str, Any]] = [
        {"seed": seed, "space": space} for seed in config.seeds for space in config.spaces
    ]
    for key, values in keys.items():
        found = [
            {**cell, key: value}
            for cell in found
            for value in (values(cell) if callable(values) else values)
        ]
    return [Cell.of(**cell) for cell in found]


def by_space(space: str, full: T, lora: T) -> T:
    """Which of two settings counts: the one for all weights, or the one for adapters."""
    return lora if space == "lora" else full


def _known_tasks(config: NetworkConfig) -> tuple[str, ...]:
    if config.model != SYNTHETIC:
        from frenet.network.data.text import task_names

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
    """Raise ValueError for a model with an adapter on it, whose own weights would stand still."""
    if hasattr(model, "peft_config"):
        raise UsageError(
            f"{source} is an adapter on its base, of which only the adapter would move; pass the "
            "base as --model, and the adapter as --vectors of frenet probe, or merge it into the "
            "base first (merge_and_unload of peft)"
        )


def _language_model(config: NetworkConfig, space: str, seed: int) -> Network:
    from frenet.measure.damage import Mixture
    from frenet.measure.trajectory import Training, train_and_record
    from frenet.network.adapters import attach_lora
    from frenet.network.space import ParamSpace
    from frenet.network.tasks import base_model

    loaded = config.load(config.model)
    _refuse_adapter(config.model, loaded.model)
    # Experiments take what a small file has; the note of ``describe`` says where it is less.
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
    # What was not there to choose is no part of the keys of caches that are there.
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
    """What must be said of a language model and its tasks."""
    from frenet.network.data.text import reading_notes

    dtype = f"{config.model}: weights measured in {loaded.dtype}"
    chosen = only_first(measured, tasks, "tasks", CHOOSE)
    return (dtype, *loaded.notes, *reading_notes(tasks.values()), *chosen)


def _require_batches(task: "TextTask", config: NetworkConfig) -> None:
    """Raise ValueError where all minibatches of a task's gradients would be the same one."""
    rows = len(task.examples["train"])
    for asked, examples in config.minibatches.items():
        if rows <= examples:
            raise UsageError(
                f"task {task.name!r} has {rows} training rows and {asked} asks for {examples}, so "
                f"that all minibatches would be the same; pass a smaller {asked}, or more rows"
            )


def _learned(key: list[Any], learn: Any) -> Any:
    """The parameter vector that ``learn()`` gives, kept in the cache under ``key``."""
    from frenet.network.checkpoints.cache import cache_dir, kept_tensors
    from frenet.network.measuring import torch_threads

    digest = hashlib.sha256(json.dumps([*key, LEARNING_THREADS]).encode()).hexdigest()[:16]
    path = cache_dir() / "learned" / f"{digest}.safetensors"

    def made() -> dict[str, Any]:
        with torch_threads(LEARNING_THREADS):
            return {"theta": learn()}

    return kept_tensors(path, made)["theta"]
