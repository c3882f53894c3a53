"""TRL's SFTTrainer, which has its own averages and clears them whenever it logs."""

import pytest
import torch
from datasets import Dataset

from frenet.integrations.trainer import FrenetCallback, read_trajectory
from integrations.watching import LOOKS, STEPS, model_of, probes, rows, weights
from network.models import tiny_tokenizer

pytest.importorskip("trl", reason="trl is not installed: pip install 'frenet[trl]'")


def sft(folder, watch=None):
    """Fine-tune for eight steps; the trainer."""
    from trl import SFTConfig, SFTTrainer

    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<eos>"
    args = SFTConfig(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=2,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        gradient_checkpointing=False,
        seed=3,
    )
    trainer = SFTTrainer(
        model=model_of("lora"),
        args=args,
        train_dataset=Dataset.from_list(rows(probes()[0])),
        processing_class=tokenizer,
    )
    if watch:
        FrenetCallback(probes(), **watch).attach(trainer)
    trainer.train()
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_sft_trainer_trains_and_logs_as_it_would_have(tmp_path):
    torch.manual_seed(0)
    plain = sft(tmp_path / "plain")
    out = tmp_path / "out"
    watched = sft(tmp_path / "watched", {"out": out, "every": 3, "k": 2, "n": 4})
    ours, theirs = weights(watched.model), weights(plain.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    timing = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    kept, expected = (
        [
            {key: value for key, value in entry.items() if key not in timing}
            for entry in trainer.state.log_history
            if not any("frenet" in key for key in entry)
        ]
        for trainer in (watched, plain)
    )
    assert kept == expected
    assert any("mean_token_accuracy" in entry for entry in kept)
    looks = [e["step"] for e in watched.state.log_history if "frenet/plus/energy_ratio" in e]
    assert looks == LOOKS
    assert len(read_trajectory(out)) == STEPS
