"""Trainings by Trainer that take a second, with and without a FrenetCallback."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from frenet.integrations.trainer import FrenetCallback
from frenet.network.adapters import quiet_peft
from frenet.network.data.text import text_tasks
from frenet.network.tasks import collate
from network.models import tiny_gpt2, tiny_llama, tiny_tokenizer

STEPS = 8
# Steps at which a callback with every=3 measures.
LOOKS = [0, 1, 3, 6, STEPS]


@functools.cache
def _tasks() -> tuple[Any, ...]:
    lines = [
        f'{{"task": "{task}", "prompt": "{a} {sign} {b} is", "completion": " {result}"}}\n'
        for a in range(7)
        for b in range(7)
        for task, sign, result in (("plus", "plus", a + b), ("times", "by", a * b))
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sums.jsonl"
        file.write_text("".join(lines), encoding="utf-8")
        return tuple(text_tasks(file, tiny_tokenizer(), max_length=32).values())


def probes() -> list[Any]:
    """Sums and products of two digits, as two tasks that the tiny models can look at."""
    return list(_tasks())


def rows(probe: Any) -> list[dict[str, list[int]]]:
    """Training examples as Trainer takes them."""
    return [
        {
            "input_ids": row.encoded.context + row.encoded.target,
            "labels": [-100] * len(row.encoded.context) + row.encoded.target,
        }
        for row in probe.examples["train"]
    ]


def pad(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A collator that leaves what frenet needs of position ids out."""
    pairs = []
    for example in examples:
        known = sum(label == -100 for label in example["labels"])
        pairs.append((example["input_ids"][:known], example["input_ids"][known:]))
    batch = collate(pairs, padding_side="right")
    return {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}


def model_of(kind: str) -> nn.Module:
    """A tiny model with dropout: all weights of GPT-2, or an adapter on Llama."""
    if kind == "gpt2":
        return tiny_gpt2()
    config = LoraConfig(r=2, lora_alpha=4, lora_dropout=0.2, target_modules=["q_proj", "v_proj"])
    with torch.random.fork_rng(devices=[]), quiet_peft():
        torch.manual_seed(0)
        return get_peft_model(tiny_llama(), config)


def trainer_of(
    model: nn.Module, examples: list[Any], folder: Path, callbacks: Any = None, **changed: Any
) -> Trainer:
    """A trainer of eight steps on the CPU."""
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        **changed,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(str(folder), **settings),
        train_dataset=examples,
        eval_dataset=examples[:4],
        data_collator=pad,
        callbacks=callbacks,
    )


def train(model: nn.Module, folder: Path, *, watch: Any = None, **changed: Any) -> Trainer:
    """Train on the first probe; ``watch`` are settings of the callback, with "probes" and "out"."""
    examples = rows(probes()[0])
    resume = changed.pop("resume", None)
    trainer = trainer_of(model, examples, folder, **changed)
    if watch is not None:
        given = dict(watch)
        FrenetCallback(given.pop("probes"), out=given.pop("out"), **given).attach(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Crash(TrainerCallback):
    """Ends a training with an exception after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt
