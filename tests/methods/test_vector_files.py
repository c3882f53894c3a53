"""Directions from disk find the weights of the model that they are for, also inside a wrapper."""

import pytest
import torch

from frenet.methods.candidates import Noise
from frenet.methods.search import Selection, random_search
from frenet.methods.search_result_files import load_winner, save_winner
from frenet.methods.task_vectors import save_task_vector
from frenet.methods.vector_files import plain_base, vectors_from_disk
from frenet.network.adapters import attach_lora
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTransformer
from measure.quadratic import RowsTask
from methods.test_task_vectors import adapted, logits, saved
from network.models import difference, tiny_gpt2, tiny_llama


def moved(model, seed=1):
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return model


@pytest.mark.parametrize("wrapped", [False, True])
def test_all_kinds_give_the_tuned_model(tmp_path, wrapped):
    """Checkpoint, task vector, adapter: base plus the vector is what they came from."""
    tuned = moved(tiny_llama())
    tuned.save_pretrained(tmp_path / "tuned")
    file = save_task_vector(difference(tiny_llama(), tuned), tmp_path / "v.safetensors")
    model = adapted("llama")
    ends = {str(tmp_path / "tuned"): tuned, str(file): tuned, str(saved(model, tmp_path)): model}
    base = attach_lora(tiny_llama(), rank=2, targets=["q_proj"]) if wrapped else tiny_llama()
    for vector, source in zip(vectors_from_disk(base, list(ends)), ends, strict=True):
        with vector.applied(base):
            torch.testing.assert_close(logits(base), logits(ends[source]), atol=1e-5, rtol=1e-4)
        flat = vector.flat(vector.space(base))
        assert float(flat.norm()) == pytest.approx(vector.norm(), rel=1e-5)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_the_plain_base_shares_weights_and_leaves_what_is_trained_alone(make):
    """Frozen weights under an adapter stay frozen, and a trained plain model stays trained."""
    model = attach_lora(make(), rank=2)
    trained = [p.requires_grad for p in model.parameters()]
    plain = plain_base(model)
    assert [p.requires_grad for p in model.parameters()] == trained
    assert ParamSpace.select(model).names == tuple(
        n for n, _ in model.named_parameters() if "lora_" in n
    )
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, make().get_parameter(name))
    moved(plain)
    for name, parameter in model.get_base_model().named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, plain.get_parameter(name.replace(".base_layer", "")))
    frozen = make().requires_grad_(False)
    next(iter(plain_base(frozen).parameters())).requires_grad_(True)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_tied_weights_are_one(tmp_path):
    tuned = moved(tiny_gpt2())
    tuned.save_pretrained(tmp_path / "tuned")
    base = tiny_gpt2()
    (vector,) = vectors_from_disk(base, [str(tmp_path / "tuned")])
    assert vector.space(base).dim == ParamSpace.select(base).dim
    with vector.applied(base):
        torch.testing.assert_close(logits(base), logits(tuned), atol=1e-5, rtol=1e-4)


def test_what_does_not_fit_is_named(tmp_path):
    tiny_llama(vocabulary=80).save_pretrained(tmp_path / "wide")
    tiny_llama().save_pretrained(tmp_path / "same")
    with pytest.raises(ValueError, match=r"embed_tokens.weight has shape \(64, 16\) in the model"):
        list(vectors_from_disk(tiny_llama(), [str(tmp_path / "wide")]))
    with pytest.raises(ValueError, match=r"wte.weight has shape .* is missing in the file"):
        list(vectors_from_disk(tiny_gpt2(), [str(tmp_path / "same")]))
    with pytest.raises(ValueError, match="equals the model: no direction"):
        list(vectors_from_disk(tiny_llama(), [str(tmp_path / "same")]))
    with pytest.raises(FileNotFoundError, match="no adapter, checkpoint or task vector"):
        list(vectors_from_disk(tiny_llama(), [str(tmp_path / "none")]))
    with pytest.raises(ValueError, match="only transformers models"):
        plain_base(SyntheticTransformer(SyntheticConfig(width=16)))


class Halves(RowsTask):
    """Other rows to select by than to report on."""

    def batches(self, split, batch_size, seed):
        first = 3 if split == "select" else 30
        rows = tuple(([5, i], [i % 7 + 1]) for i in range(first, first + 20))
        return RowsTask(rows=rows).batches(split, batch_size, seed)


def test_the_winner_of_a_search_is_its_displacement(tmp_path):
    """Its folder holds the weights that were searched, and no others."""
    base, task = tiny_llama(), Halves()
    space = ParamSpace.select(base, "q_proj")
    noise = Noise(0.05, seed=0)
    chosen = Selection(select_size=4, test_size=4)
    found = random_search(base, task, space, noise=noise, num_candidates=4, selection=chosen)
    folder = save_winner(base, space, found, tmp_path / "winner")
    (vector,) = vectors_from_disk(base, [str(folder)])
    torch.testing.assert_close(
        vector.flat(space), load_winner(base, space, folder), atol=1e-6, rtol=1e-4
    )
