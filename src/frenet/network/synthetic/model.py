"""The synthetic multitask transformer: a small decoder and the sequence tasks that it learns."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from frenet._errors import UsageError
from frenet.geometry import rng
from frenet.network.checkpoints.cache import cache_dir, kept_tensors
from frenet.network.measuring import torch_threads
from frenet.network.tasks import (
    IGNORE,
    Batch,
    Split,
    causal_mask,
    evaluate,
    example_losses,
    token_loss,
)

LENGTH, BASE = 6, 10
SEPARATOR = BASE
FIRST_TASK_TOKEN = BASE + 1
Digits = Int[Tensor, "b m"]

# Every task maps six digits to at most six; the order fixes the task tokens. The network is
# trained on LEARNED; UNSEEN are for fine-tuning on a new task.
RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "copy": lambda x: x,
    "reverse": lambda x: x.flip(1),
    "sort": lambda x: x.sort(1).values,
    "successor": lambda x: (x + 1) % BASE,
    "addition": lambda x: (x[:, :3] + x[:, 3:]) % BASE,
    "parity": lambda x: x.cumsum(1) % 2,
    "maximum": lambda x: x.max(1, keepdim=True).values,
    "count": lambda x: (x % 2 == 0).sum(1, keepdim=True),
    "predecessor": lambda x: (x - 1) % BASE,
    "descending": lambda x: x.sort(1, descending=True).values,
}
LEARNED = tuple(RULES)[:8]
UNSEEN = tuple(RULES)[8:]
VOCABULARY = FIRST_TASK_TOKEN + len(RULES)


class Output(NamedTuple):
    """What the forward pass returns, with the names of transformers."""

    logits: Float[Tensor, "b s v"]


@dataclass(frozen=True)
class SyntheticConfig:
    """Shape and training of the synthetic transformer; the defaults learn all tasks in a minute."""

    width: int = 64
    layers: int = 2
    heads: int = 4
    steps: int = 2400
    batch_size: int = 64
    lr: float = 3e-3


class Block(nn.Module):
    """Pre-LN attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.o_proj = nn.Linear(width, width), nn.Linear(width, width)
        # Attention that starts nearly uniform learns addition hundreds of steps later, and from
        # some seeds never.
        with torch.no_grad():
            self.q_proj.weight.mul_(3)
            self.k_proj.weight.mul_(3)
        self.up_proj, self.down_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "b t h"], mask: Tensor | None) -> Float[Tensor, "b t h"]:
        """Residual stream after the block; ``mask`` is True where attention is allowed."""
        b, t, h = x.shape
        y = self.ln_1(x)
        q, k, v = (
            proj(y).view(b, t, self.heads, h // self.heads).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.o_proj(y.transpose(1, 2).reshape(b, t, h))
        return x + self.down_proj(F.gelu(self.up_proj(self.ln_2(x))))


class SyntheticTransformer(nn.Module):
    """A decoder with learned positions and an untied head, called like a transformers model."""

    def __init__(self, config: SyntheticConfig | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.shape = config or SyntheticConfig()
        width = self.shape.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.torch_seed(seed))
            self.embed = nn.Embedding(VOCABULARY, width)
            self.positions = nn.Embedding(2 * LENGTH + 2, width)
            self.blocks = nn.ModuleList(
                Block(width, self.shape.heads) for _ in range(self.shape.layers)
            )
            self.ln_f = nn.LayerNorm(width)
            self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(
        self,
        input_ids: Int[Tensor, "b t"],
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "b t"] | None = None,
        logits_to_keep: int = 0,
    ) -> Output:
        """Logits of the last ``logits_to_keep`` columns (0: all of them).

        ``attention_mask`` is ``(b, t)`` with 1 at real tokens, or a complete ``(b, 1, t, t)``
        boolean mask; without it attention is causal and nothing is padded.
        """
        t = input_ids.shape[1]
        positions = (
            torch.arange(t, device=input_ids.device) if position_ids is None else position_ids
        )
        mask = attention_mask
        if mask is not None and mask.dim() == 2:
            mask = causal_mask(mask)
        x = self.embed(input_ids) + self.positions(positions)
        for block in self.blocks:
            x = block(x, mask)
        return Output(self.head(self.ln_f(x[:, -logits_to_keep:])))


@cache
def _split_table() -> Int[Tensor, " n"]:
    """For each of the million inputs 0 (train, 80%), 1 (select, 10%) or 2 (test, 10%)."""
    order = torch.randperm(BASE**LENGTH, generator=rng.generator(0, "synthetic", "splits"))
    table = torch.zeros(BASE**LENGTH, dtype=torch.int64)
    tenth = BASE**LENGTH // 10
    table[order[:tenth]], table[order[tenth : 2 * tenth]] = 1, 2
    return table


@cache
def _shuffle_table(seed: int) -> Int[Tensor, " n"]:
    """A random permutation of the million inputs."""
    return torch.randperm(BASE**LENGTH, generator=rng.generator(seed, "synthetic", "shuffle"))


_PLACES = BASE ** torch.arange(LENGTH - 1, -1, -1)


def draw_digits(count: int, split: Split, generator: torch.Generator) -> Int[Tensor, "b m"]:
    """``count`` six-digit inputs drawn with replacement from one split."""
    index = ("train", "select", "test").index(split)
    inputs: list[Tensor] = []
    missing = count
    while missing > 0:
        numbers = torch.randint(BASE**LENGTH, (12 * missing + 32,), generator=generator)
        inputs.append(numbers[_split_table()[numbers] == index][:missing])
        missing -= len(inputs[-1])
    return torch.cat(inputs)[:, None] // _PLACES % BASE


@dataclass(frozen=True)
class SyntheticTask:
    """One sequence task: ``[TASK] x1 .. x6 [SEP] y1 .. ym``, loss on y.

    >>> batch = next(SyntheticTask("reverse").batches("train", 4, 0))
    >>> bool((batch["input_ids"][:, 1:7].flip(1) == batch["labels"][:, 8:]).all())
    True
    """

    name: str
    shuffle_seed: int | None = None

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise UsageError(f"no synthetic task {self.name!r}; there are {', '.join(RULES)}")

    def encode(self, digits: Digits) -> Batch:
        """The batch for given inputs."""
        source = digits
        if self.shuffle_seed is not None:
            numbers = (digits * _PLACES).sum(1)
            source = _shuffle_table(self.shuffle_seed)[numbers][:, None] // _PLACES % BASE
        answers = RULES[self.name](source)
        task = torch.full((len(digits), 1), FIRST_TASK_TOKEN + tuple(RULES).index(self.name))
        separator = torch.full_like(task, SEPARATOR)
        ids = torch.cat([task, digits, separator, answers], dim=1)
        labels = ids.clone()
        labels[:, : LENGTH + 2] = IGNORE
        return {"input_ids": ids, "labels": labels}

    def batches(self, split: Split, batch_size: int, seed: int) -> Iterator[Batch]:
        """Endless batches, drawn from the inputs of the split."""
        generator = rng.generator(seed, "synthetic", self.name, split)
        while True:
            yield self.encode(draw_digits(batch_size, split, generator))

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Mean loss in nats per target token."""
        return token_loss(model, batch)

    def score(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Token accuracy and exact match on 512 inputs of the split."""
        result = evaluate(model, next(self.batches(split, 512, 0)))
        return {"token_accuracy": result.token_accuracy, "exact_match": result.exact_match}

    def shuffled(self, seed: int) -> "SyntheticTask":
        """The label-shuffled control: every input has the answer of a random other input."""
        return SyntheticTask(self.name, shuffle_seed=seed)


def mixed_batch(shares: dict[str, int], *, generator: torch.Generator) -> Batch:
    """Training batch with this number of rows of each task, padded on the right to one width."""
    parts = [
        SyntheticTask(name).encode(draw_digits(rows, "train", generator))
        for name, rows in shares.items()
    ]
    width = max(part["input_ids"].shape[1] for part in parts)

    def padded(key: str, fill: int) -> Tensor:
        return torch.cat([F.pad(p[key], (0, width - p[key].shape[1]), value=fill) for p in parts])

    # Padding follows the targets, so causal attention never sees it: no mask is needed.
    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", IGNORE)}


# In one thread, so that the cached network does not depend on the run that trains it.
@torch_threads(1)
def train_synthetic(config: SyntheticConfig, *, seed: int) -> SyntheticTransformer:
    """Train on all learned tasks: AdamW, 160 steps of warm-up, cosine decay to 2%, clip 1.

    Tasks get rows in proportion to their recent loss: with equal shares modular addition stays at
    chance for most of the training. Much longer training is worse for measuring: the gradients of
    mastered tasks are numerical noise.
    """
    model = SyntheticTransformer(config, seed=seed)
    generator = rng.generator(seed, "synthetic", "training")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01, foreach=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, steps=config.steps))
    recent = torch.ones(len(LEARNED))
    for _ in range(config.steps):
        shares = _shares(recent, config.batch_size)
        batch = mixed_batch(shares, generator=generator)
        optimizer.zero_grad()
        losses, counts = example_losses(model, batch)
        (losses.sum() / counts.sum()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        by_task = (losses.detach() / counts).split(list(shares.values()))
        recent = 0.9 * recent + 0.1 * torch.stack([part.mean() for part in by_task])
    model.zero_grad()
    return model.eval()


def _shares(recent: Float[Tensor, " tasks"], rows: int) -> dict[str, int]:
    """Number of rows for each task: half equal, half in proportion to the recent loss."""
    equal = rows // (2 * len(LEARNED))
    extra = (recent / recent.sum() * (rows - equal * len(LEARNED))).int()
    return {name: equal + int(more) for name, more in zip(LEARNED, extra, strict=True)}


def _rate(step: int, steps: int) -> float:
    """Learning rate at ``step`` as a fraction of its peak."""
    warmup = steps // 15
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def trained_synthetic(config: SyntheticConfig, *, seed: int) -> SyntheticTransformer:
    """The trained network, from the cache if it was trained with these settings before."""
    key = "-".join(str(value) for value in asdict(config).values())
    path = cache_dir() / "synthetic" / f"v2-{key}-seed{seed}.safetensors"
    model = SyntheticTransformer(config, seed=seed)
    model.load_state_dict(
        kept_tensors(path, lambda: train_synthetic(config, seed=seed).state_dict())
    )
    return model.eval()
