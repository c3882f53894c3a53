"""Fine-tune a LoRA adapter with transformers' Trainer, and watch how long directions stay useful.

    python examples/watch_finetune.py [MODEL_FOLDER] [--out FOLDER]

Without a folder it makes a small Llama and first teaches it to repeat letters. Then the adapter
learns to write them backwards, while frenet records every step and measures both tasks.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

import frenet
from frenet.integrations.trainer import FrenetCallback, read_trajectory

LETTERS = "abcdefgh"
STEPS, EVERY, K = 60, 20, 5


def write_tasks(file: Path) -> Path:
    """Two tasks on the same prompts: repeat the letters, and write them backwards."""
    order = torch.randint(len(LETTERS), (200, 3), generator=torch.Generator().manual_seed(0))
    words = sorted({"".join(LETTERS[i] for i in row) for row in order.tolist()})
    rows = [
        {"task": task, "prompt": f"{task[0]}: {' '.join(word)} =", "completion": f" {answer}"}
        for word in words
        for task, answer in (("repeat", " ".join(word)), ("turn", " ".join(reversed(word))))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def make_model() -> tuple[Any, Any]:
    """A Llama of two blocks with random weights, and a tokenizer of words."""
    words = ["<unk>", "<eos>", *LETTERS, "r", ":", "t", "="]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>"
    )
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval(), wrapped


def teach(model: Any, task: Any) -> None:
    """Train all weights on one task, so that there is something to fine-tune."""
    training = frenet.Training("adam:5e-3", batch_size=16, steps=80)
    frenet.train_and_record(model, task, training, space=frenet.ParamSpace.select(model))


def main(folder: str | None, out: Path) -> None:
    """Train, watch, report, and check the results."""
    if folder is None:
        model, tokenizer = make_model()
    else:
        loaded = frenet.load(folder)
        model, tokenizer = loaded.model, loaded.tokenizer
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    out.mkdir(parents=True, exist_ok=True)
    tasks = frenet.text_tasks(write_tasks(out / "tasks.jsonl"), tokenizer, max_length=32)
    if folder is None:
        teach(model, tasks["repeat"])
    model = frenet.attach_lora(model, rank=4, seed=0)
    examples = [
        {
            "input_ids": row.encoded.context + row.encoded.target,
            "labels": [-100] * len(row.encoded.context) + row.encoded.target,
        }
        for row in tasks["turn"].examples["train"]
    ]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(out / "checkpoints"),
            max_steps=STEPS,
            per_device_train_batch_size=8,
            learning_rate=5e-3,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=examples,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )

    # The only line to add.
    FrenetCallback(list(tasks.values()), out=out / "watched", every=EVERY, k=K).attach(trainer)

    trainer.train()
    check(trainer, tasks, out)


def check(trainer: Trainer, tasks: dict[str, Any], out: Path) -> None:
    """Every step is recorded, the ratio at the start is 1, and each number has its reference."""
    path = read_trajectory(out / "watched")
    assert len(path) == STEPS
    end = path.space.read(trainer.model)
    assert torch.allclose(path.theta(STEPS), end, rtol=0, atol=1e-6)
    assert path.losses[-10:].mean() < path.losses[:10].mean()

    run = frenet.read_run(out / "watched")
    looks = [row for row in run.rows if row["table"] == "drift"]
    assert {row["probe"] for row in looks} == set(tasks)
    for row in looks:
        print(
            f"step {row['step']:3}  {row['probe']:8} energy ratio {row['ratio']:.2f}, control "
            f"{row['control']:.2f}, chance {row['chance']:.4f}"
        )
        assert row["step"] > 0 or abs(row["ratio"] - 1) < 1e-9
        assert row["ratio"] > row["chance"]

    last = [row for row in run.rows if row["table"] == "prefix"][-1]
    basis = path.prefix(K)
    assert abs(last["captured"] - float(basis.captured_fraction(path.displacement()))) < 1e-6
    print(
        f"the first {K} of {STEPS} steps hold {last['captured']:.2f} of the displacement, a random "
        f"walk's would {last['random_walk']:.2f}; {last['rest']:.2f} of the rest, a random "
        f"basis {last['random']:.4f}"
    )
    logged = [entry for entry in trainer.state.log_history if "frenet/turn/energy_ratio" in entry]
    assert [entry["step"] for entry in logged] == [0, 1, 5, 10, 20, 40, 60]
    report = frenet.write_report([run], out / "report.html")
    print(f"report: {report}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="model folder; without it a small model is made")
    parser.add_argument("--out", type=Path, help="folder for the results")
    options = parser.parse_args()
    main(options.model, options.out or Path(tempfile.mkdtemp(prefix="frenet-")))
