"""The blocks of a model are those that a text runs through, and a tower is what none reaches."""

import copy

import pytest
import torch
from models import tiny_llama, tiny_mixtral
from torch import nn
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MllamaConfig,
    MllamaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from frenet.measure.activations import add, last_activations, record
from frenet.network.blocks import reads_ahead, residual_blocks, text_reach
from frenet.network.hooks.sites import Site
from frenet.network.limits import context_length
from frenet.network.space import ParamSpace

TEXT = {
    "vocab_size": 99, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.2,
    "max_position_embeddings": 77,
}  # fmt: skip
EYES = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
ROWS = [[5, 9, 3], [7, 2, 8, 4], [11]]


def gemma3():
    vision = {**EYES, "num_hidden_layers": 5}
    text = {**TEXT, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
    return Gemma3ForConditionalGeneration(Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=98,
        boi_token_index=97, eoi_token_index=96,
    ))  # fmt: skip


def llava():
    vision = CLIPVisionConfig(**EYES, num_hidden_layers=5)
    return LlavaForConditionalGeneration(
        LlavaConfig(text_config=LlamaConfig(**TEXT), vision_config=vision, image_token_index=98)
    )


def mllama():
    """The second of its blocks runs only with an image."""
    text = {**TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1], "pad_token_id": 0}
    text.pop("head_dim")
    vision = {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_global_layers": 1,
        "attention_heads": 2, "vision_output_dim": 128, "image_size": 28, "patch_size": 14,
        "intermediate_layers_indices": [1], "supported_aspect_ratios": [[1, 1]],
        "max_num_tiles": 1,
    }  # fmt: skip
    return MllamaForConditionalGeneration(
        MllamaConfig(text_config=text, vision_config=vision, image_token_index=98)
    )


def qwen2_vl():
    """Its positions have three axes."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text = {**TEXT, "rope_parameters": rope, "bos_token_id": 1, "eos_token_id": 2}
    vision = {
        "embed_dim": 64, "hidden_size": 16, "depth": 5, "num_heads": 2, "patch_size": 14,
        "mlp_ratio": 2,
    }  # fmt: skip
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=98, video_token_id=97,
        vision_start_token_id=96, vision_end_token_id=95,
    ))  # fmt: skip


def paligemma(**more):
    """Its class reads the beginning of a text in both directions where a picture is there."""
    text = {**TEXT, "model_type": "gemma", "use_bidirectional_attention": False, **more}
    vision = {**EYES, "num_hidden_layers": 5, "model_type": "siglip_vision_model"}
    return PaliGemmaForConditionalGeneration(PaliGemmaConfig(
        text_config=text, vision_config=vision, projection_dim=16, image_token_index=98,
    ))  # fmt: skip


def idefics3():
    """That of SmolVLM, whose class is its own and the same."""
    text = {**TEXT, "model_type": "llama", "pad_token_id": 0}
    vision = {**EYES, "num_hidden_layers": 5}
    return Idefics3ForConditionalGeneration(Idefics3Config(
        text_config=text, vision_config=vision, image_token_id=98, scale_factor=1, pad_token_id=0,
    ))  # fmt: skip


FAMILIES = {
    "gemma3": gemma3, "llava": llava, "mllama": mllama, "qwen2_vl": qwen2_vl,
    "paligemma": paligemma, "idefics3": idefics3,
}  # fmt: skip


def built(family):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FAMILIES[family]().eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_coordinates_are_those_that_a_text_has_a_gradient_in(family):
    """By a backward pass; the tower holds more than the rest, and a pattern still selects it."""
    model = built(family)
    before = [(p.requires_grad, m.training) for m in model.modules() for p in m.parameters(False)]
    space = ParamSpace.select(model)
    after = [(p.requires_grad, m.training) for m in model.modules() for p in m.parameters(False)]
    assert before == after
    model(input_ids=torch.tensor([[5, 9, 3, 7, 8]])).logits.logsumexp(-1).sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert set(space.names) == reached
    assert space.dim < sum(p.numel() for p in model.parameters()) / 2
    tower = text_reach(model).towers[0]
    assert ParamSpace.select(model, tower).dim > 0
    assert all(not name.startswith(f"{tower}.") for name in space.names)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_streams_are_those_of_the_blocks_that_a_text_runs_through(family, named):
    model = built(family)
    place = "model.text_model.layers" if family == "idefics3" else "model.language_model.layers"
    path = place if named else None
    assert residual_blocks(model, path)[1] is model.get_submodule(place)
    assert context_length(model) == 77
    found = last_activations(model, ROWS, [0], path=path)[:, 0]
    for row, stream in zip(ROWS, found, strict=True):
        with torch.no_grad():
            own = model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(stream, own[1][0, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_is_steered_by_its_own_mask(family):
    """What runs the blocks gets another mask than the model, of which no padding can be read."""
    model, site = built(family), Site(0, "last")
    ids, mask = torch.tensor([[5, 9, 3, 0], [7, 2, 8, 4]]), torch.tensor([[1, 1, 1, 0], [1] * 4])
    v = torch.ones(16)
    with torch.no_grad(), add(model, {site: v}), record(model, [site]) as seen:
        model(input_ids=ids, attention_mask=mask)
    plain = last_activations(model, [[5, 9, 3], [7, 2, 8, 4]], [0])[:, 0]
    torch.testing.assert_close(seen[site], plain + v, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_model_that_reads_ahead_is_told_from_one_that_does_not(ahead):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = paligemma(use_bidirectional_attention=ahead).eval()
    ids = torch.tensor([[5, 9, 3, 7], [5, 9, 3, 8]])
    with torch.no_grad():
        first, second = model(input_ids=ids).logits[:, :3]
    assert torch.allclose(first, second, atol=1e-5) is not ahead
    assert reads_ahead(model) is ahead


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_of_decoders_reads_ahead(family):
    assert not reads_ahead(built(family))


def test_a_block_that_does_not_run_is_named():
    model = built("mllama")
    with pytest.raises(ValueError, match="block 1 did not run"):
        last_activations(model, ROWS, [0, 1, 2])
    for context in (record(model, [Site(1)]), add(model, {Site(1): torch.ones(16)})):
        message = "block 1 did not run in a forward pass of Mllama"
        with pytest.raises(ValueError, match=message), context:
            model(input_ids=torch.tensor([[5, 9, 3]]))


class Two(nn.Module):
    """A list of many parameters beside the blocks; ``head`` reads a weight past its module."""

    def __init__(self, reads):
        super().__init__()
        self.embed, self.reads, self.ran = nn.Embedding(20, 4), reads, 0
        self.large = nn.ModuleList([nn.Linear(4, 40), nn.Linear(40, 4)])
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, input_ids):
        self.ran += 1
        h = self.embed(input_ids)
        for layer in self.layers:
            h = layer(h)
        return h @ self.large[0].weight.T if self.reads else h


@pytest.mark.parametrize("reads", [False, True])
def test_a_weight_that_is_read_past_its_module_stays_a_coordinate(reads):
    """Though nothing of it runs; the text runs once, and a copied model has its own."""
    model = Two(reads)
    names = ParamSpace.select(model).names
    assert ("large.0.weight" in names) is reads
    assert "large.1.weight" not in names
    ran = model.ran
    assert ParamSpace.select(model).names == names
    assert model.ran == ran
    assert residual_blocks(model)[1] is model.layers
    other = copy.deepcopy(model)
    assert residual_blocks(other)[1] is other.layers
    assert residual_blocks(model, "large")[1] is model.large
    large = record(model, [Site(0)], path="large")
    with pytest.raises(ValueError, match="block 0 did not run"), large:
        model(input_ids=torch.tensor([[1, 2]]))


def test_one_list_of_blocks_needs_no_text(monkeypatch):
    """Experts stand in lists of their own inside the blocks, and stay coordinates."""
    for model in (tiny_llama(), tiny_mixtral()):
        monkeypatch.setattr(model, "forward", None)
        assert text_reach(model) == ("model.layers", ())
        assert ParamSpace.select(model).dim == sum(p.numel() for p in model.parameters())


def test_a_model_that_no_text_runs_through_has_the_list_of_most_parameters():
    model = Two(reads=False)
    model.forward = lambda input_ids, pixels: None
    assert text_reach(model) == ("large", ())
    assert len(ParamSpace.select(model).names) == 9
