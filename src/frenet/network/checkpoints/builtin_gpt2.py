"""A small GPT-2 that frenet trains: a language model without a download."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from torch import nn

from frenet._files import DamagedFileError, named_errors, whole_files
from frenet.geometry import rng
from frenet.network.checkpoints.cache import VARIABLE, cache_dir
from frenet.network.checkpoints.gguf import say_on_stderr
from frenet.network.checkpoints.made_folder import RECORD, seal_folder, whole_folder
from frenet.network.checkpoints.tensor_files import save_tensors
from frenet.network.data.builtin_data import PREFIX, made_rows
from frenet.network.data.contrasts import ANSWERED, ASKED
from frenet.network.data.schemas import Template
from frenet.network.data.text import TextTask, text_tasks
from frenet.network.measuring import torch_threads
from frenet.network.tasks import collate, token_loss

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

NAME = f"{PREFIX}gpt2"
VERSION = 1
CONTEXT = 96
_VOCABULARY = 384
STEPS = 1200
ROWS = 32
_RATE = 3e-3


def made_model() -> Path:
    """The folder of ``frenet:gpt2``, from the cache, or trained now in about two minutes.

    It has GPT-2's architecture (4 blocks of width 64, learned positions, tied head, context 96)
    and a special tokenizer. It learns the five tasks of ``frenet:words``, and to answer Yes or No
    about ``frenet:comparisons``. It is trained in one thread, so that every run gives the same.
    """
    folder, about = made_folder(), {"name": NAME, "version": VERSION}
    with named_errors(folder, moves=VARIABLE):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        try:
            if whole_folder(folder, about):
                return folder
        except DamagedFileError as error:
            say_on_stderr(f"{error.where} {error.why}: {NAME} is trained again")
        say_on_stderr(f"training {NAME}: about two minutes, once")
        with whole_files(folder, last=RECORD, alone=True, moves=VARIABLE) as partial:
            tokenizer = made_tokenizer()
            _save(trained_gpt2(tokenizer, steps=STEPS), partial)
            tokenizer.save_pretrained(partial)
            seal_folder(partial, about)
    return folder


def made_folder() -> Path:
    """The folder of ``frenet:gpt2``, which may not exist yet."""
    return cache_dir() / "made" / f"gpt2-v{VERSION}"


def _save(model: "GPT2LMHeadModel", folder: Path) -> None:
    """Write a model folder; the head is the embedding, which is stored once."""
    model.config.save_pretrained(folder)
    tensors = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}
    save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})


def made_tokenizer() -> Any:
    """A byte-pair tokenizer over bytes and single digits, trained on the built-in data."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_of])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, model_max_length=CONTEXT
    )


def _texts() -> list[str]:
    words = made_rows(f"{PREFIX}words").values
    asked = made_rows(f"{PREFIX}comparisons").values
    texts = [f"{row['task']}: {row['input']} -> {row['output']}" for row in words]
    return texts + [f"{ASKED.format(**row)} {ANSWERED[row['label'] == 0]}" for row in asked]


def made_tasks(tokenizer: Any) -> dict[str, TextTask]:
    """The training tasks of ``frenet:gpt2``: word tasks, and comparisons as questions."""
    answers = {"1": ANSWERED[0], "0": ANSWERED[1]}
    asked = Template(ASKED, "{label}", labels=ANSWERED, words=answers)
    words = text_tasks(f"{PREFIX}words", tokenizer, max_length=CONTEXT)
    compared = text_tasks(f"{PREFIX}comparisons", tokenizer, max_length=CONTEXT, template=asked)
    return words | compared


def fresh_gpt2(tokenizer: Any) -> "GPT2LMHeadModel":
    """The network before training; always the same."""
    from transformers import GPT2Config, GPT2LMHeadModel

    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=64, n_layer=4, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=end, eos_token_id=end,
        dtype="float32",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(config)


# In one thread, so that the cached network does not depend on the run that trains it.
@torch_threads(1)
def trained_gpt2(tokenizer: Any, *, steps: int) -> "GPT2LMHeadModel":
    """Train on the built-in data: AdamW, a tenth of warm-up, linear decay, clip 1."""
    model = fresh_gpt2(tokenizer)
    tasks = made_tasks(tokenizer).values()
    examples = [row.encoded for task in tasks for row in task.examples["train"]]
    draw = rng.generator(0, "made", "training")
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (steps // 10), 1.1 * (1 - step / steps), 1.0)
    )
    for _ in range(steps):
        chosen = torch.randint(len(examples), (ROWS,), generator=draw).tolist()
        batch = collate([(examples[i].context, examples[i].target) for i in chosen])
        optimizer.zero_grad()
        token_loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.zero_grad()
    return model.eval()
