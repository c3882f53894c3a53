"""Small networks that the tests of this folder share."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from frenet.measure.trajectory import Training, train_and_record
from frenet.network.adapters import attach_lora
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTask, SyntheticTransformer
from frenet.network.tasks import Task
from measure.quadratic import RowsTask
from network.models import tiny_gpt2, tiny_llama, tiny_qwen2


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """These networks are so small that a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def lora(model: nn.Module, targets: list[str], *, zero: bool = False) -> nn.Module:
    """The model with a rank-2 adapter, both halves non-zero unless ``zero``."""
    adapted = attach_lora(model, rank=2, targets=targets)
    if not zero:
        generator = torch.Generator().manual_seed(1)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return adapted


def build(name: str) -> nn.Module:
    """A network by name; in evaluation mode."""
    if name == "synthetic":
        return SyntheticTransformer(SyntheticConfig(width=8, layers=1, heads=2)).eval()
    if name == "gpt2-lora":
        return lora(tiny_gpt2(), ["c_attn"]).eval()
    if name == "qwen2-lora":
        return lora(tiny_qwen2(), ["q_proj", "v_proj"]).eval()
    return {"gpt2": tiny_gpt2, "qwen2": tiny_qwen2, "llama": tiny_llama}[name]()


def task_for(name: str, padding_side: str = "left") -> Task:
    """Something for that network to do."""
    if name == "synthetic":
        return SyntheticTask("reverse")
    return RowsTask(padding_side=padding_side)


@pytest.fixture(scope="session")
def _learned() -> SyntheticTransformer:
    """A synthetic transformer that has learned to copy, in a second."""
    model = SyntheticTransformer(SyntheticConfig(width=32))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    training = Training("adam:1e-2", batch_size=32, steps=120)
    train_and_record(model, SyntheticTask("copy"), training, space=ParamSpace.select(model))
    torch.set_num_threads(threads)
    return model.eval()


@pytest.fixture
def learned(_learned: SyntheticTransformer) -> SyntheticTransformer:
    """A copy of the network that has learned to copy."""
    return copy.deepcopy(_learned)
