"""Checks what frenet measures on every model family of transformers, and writes the page."""

import argparse
import contextlib
import copy
import itertools
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from frenet.geometry import rng
from frenet.measure.activations import add, last_activations
from frenet.measure.curvature import hessian_product
from frenet.measure.forward_passes import fitting_groups, run_blocks
from frenet.measure.gradients import example_gradients, gradient
from frenet.measure.loss_line import loss_line
from frenet.methods.candidates import Candidates, Noise
from frenet.methods.evaluation import Evaluator, row_scores
from frenet.methods.steered_generation import generate_steered
from frenet.network.blocks import residual_blocks
from frenet.network.hooks.batched_weights import can_group
from frenet.network.hooks.positions import Position
from frenet.network.hooks.sites import Site
from frenet.network.measuring import measuring
from frenet.network.padding import forward_arguments
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, collate, example_losses, token_loss

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"
VOCABULARY, LARGEST = 64, 3_000_000
# Largest relative error of a Hessian product by central differences.
PRODUCT = 2e-2
# The end-of-sequence token.
END = 1
# Contexts and targets; the first row is longer than every window below.
ROWS = [([11, 4, 7, 3, 9, 14], [2, 63]), ([2], [8, 4, 6, 13, 22]), ([5, 9, 3], [7])]
# Settings of a configuration, if it has them, by the value that makes a network tiny.
SMALL = {
    0: "bos_token_id decoder_start_token_id",
    1: "n_group topk_group n_shared_experts num_shared_experts first_k_dense_replace "
    "mamba_n_groups n_groups mamba_ngroups num_nextn_predict_layers eos_token_id type_vocab_size",
    2: "num_key_value_heads num_kv_heads num_experts_per_tok top_k moe_topk num_hidden_layers "
    "num_experts_per_token n_layer n_layers num_layers encoder_layers decoder_layers moe_k "
    "moe_top_k num_global_key_value_heads index_n_heads",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
    "decoder_attention_heads num_experts num_local_experts n_routed_experts sliding_window "
    "state_size mamba_d_state ssm_state_size mamba_dt_rank time_step_rank attention_chunk_size "
    "linear_num_value_heads linear_num_key_heads mamba_n_heads qk_rope_head_dim "
    "qk_nope_head_dim index_topk local_window_size mamba_num_heads linear_num_heads window_size "
    "attention_window_size",
    8: "head_dim v_head_dim qk_head_dim q_lora_rank kv_lora_rank linear_key_head_dim "
    "linear_value_head_dim mamba_d_head mamba_head_dim global_head_dim d_kv kv_channels "
    "rotary_dim chunk_size mamba_chunk_size index_head_dim o_lora_rank hidden_size_per_layer_input",
    16: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size "
    "moe_shared_expert_intermediate_size shared_intermediate_size expert_intermediate_size",
    32: "hidden_size d_model n_embd dim_model embedding_size emb_dim word_embed_proj_dim "
    "attention_hidden_size lru_width residual_size dim embed_dim hidden_dim",
    64: "intermediate_size ffn_dim d_ff n_inner ffn_hidden_size encoder_ffn_dim decoder_ffn_dim "
    "dim_ff ffn_size mlp_dim max_position_embeddings n_positions n_ctx max_seq_len vocab_size "
    "max_sequence_length max_source_positions max_target_positions intermediate_size_mlp "
    "dense_intermediate_size mamba_d_ssm vocab_size_per_layer_input",
}
TO = {name: value for value, names in SMALL.items() for name in names.split()}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LATENT = {"num_key_value_heads": 4}
HEADS = LATENT | {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "head_dim": 8}
QSA = {
    "hc_lowrank": 8,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
# Further settings that a family needs.
OWN: dict[str, dict[str, Any]] = {
    "axk1": HEADS,
    "axk2": LATENT,
    "deepseek_v2": LATENT | {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "deepseek_v3": HEADS,
    "deepseek_v32": LATENT,
    "glm_moe_dsa": LATENT,
    "longcat_flash": LATENT | {"head_dim": 4, "zero_expert_num": 2},
    "youtu": LATENT | {"head_dim": 4},
    "bailing_hybrid": HEADS | {"num_expert_group": 1, "linear_head_dim": 8, "layer_group_size": 2},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "dory": {
        "num_hidden_layers": 6,
        "layer_types": [
            "sliding_attention",
            "mlp",
            "full_attention",
            "mlp",
            "full_attention",
            "mlp",
        ],
        "n_input_layers": 2,
        "n_recurrent_layers": 2,
        "n_output_layers": 2,
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "gemma4": {"pad_token_id": 0},
    "gemma4_unified": {"pad_token_id": 0},
    "phi4_multimodal": {
        "audio_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "nemo_conv_channels": 8,
            "ext_pw_out_channel": 32,
            "num_blocks": 1,
        },
    },
    "dots3_note": LATENT | {"per_layer_config": None},
    "blt": {"encoder_hash_byte_group_vocab": 100, "hidden_size_global": 32},
    "emu3": {"pad_token_id": 0},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
        "laurel_rank": 8,
        "intermediate_size": 64,
    },
    "inkling2_text": {"unpadded_vocab_size": 64, "swa_head_dim": 8, "rel_extent": 16},
    "inkling2_loop_text": {"unpadded_vocab_size": 64, "swa_head_dim": 8, "rel_extent": 16},
    "qwen4_exp": QSA,
    "qwen4_exp_text": QSA,
    "roc_bert": {
        "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": 64,
        "shape_embed_dim": 8,
        "shape_vocab_size": 64,
    },
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "hybrid_layer_ids": [1, 3],
        "mamba_headdim": 8,
        "n_mamba_heads": 8,
    },
    "glm4_moe_lite": LATENT,
    "kimi_linear": LATENT,
    "minicpm3": LATENT,
    "sarvam_mla": LATENT,
    "dots3_note_text": LATENT | {"per_layer_config": None},
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1]},
    "granitemoehybrid": {"mamba_n_heads": 8, "layer_types": ["mamba", "attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "layer_types": None,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "xlstm": {"chunk_size": 64},
    "falcon_h1": {"mamba_n_heads": 8},
    "reformer": {"axial_pos_embds_dim": (8, 24), "axial_pos_shape": (8, 8), "is_decoder": True},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "zaya": {"num_experts_per_tok": 1},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "ministral": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "modernbert-decoder": {"pad_token_id": 0},
    "xmod": {"pad_token_id": 1, "default_language": "en_XX"},
    **{
        name: {"pad_token_id": 1}
        for name in (
            "camembert",
            "data2vec-text",
            "roberta",
            "roberta-prelayernorm",
            "xlm-roberta",
            "xlm-roberta-xl",
            "prophetnet",
            "xlm",
        )
    },
}


def small(kind: type[Any], given: dict[str, Any]) -> Any:
    """A tiny configuration: every kind of layer of the family's default, once or twice."""
    base = kind()
    defaults, settings = base.to_dict(), {}
    for key, value in defaults.items():
        if key in (getattr(kind, "sub_configs", None) or {}):
            if (part := getattr(base, key, None)) is not None:
                settings[key] = small(type(part), given | given.get(key, {})).to_dict()
        elif key in TO and type(value) is int:
            settings[key] = TO[key]
        elif key in ("initializer_range", "init_std"):
            settings[key] = 0.2
        elif key == "pad_token_id":
            settings[key] = None
        elif key == "layer_types" and value:
            kinds = list(dict.fromkeys(value))
            settings[key] = kinds if len(kinds) > 1 else kinds * 2
    if "layer_types" in settings:
        settings |= {
            key: len(settings["layer_types"]) for key in ("num_hidden_layers",) if key in defaults
        }
    return kind(**{**settings, **{k: v for k, v in given.items() if k in defaults or not defaults}})


def build(name: str, seed: int = 0) -> Any:
    """A tiny network of a family, with random weights.

    Raises:
        ValueError: the family cannot be built; the message says why.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        family = CONFIG_MAPPING[name]
        kind = MODEL_FOR_CAUSAL_LM_MAPPING[family]
        # In a family with other modalities the text-only class has its own configuration.
        parts = (getattr(family, "sub_configs", None) or {}).values()
        config_class = kind.config_class if kind.config_class in parts else family
        config = small(config_class, OWN.get(name, {}))
        if hasattr(config, "is_decoder"):
            config.is_decoder = True
        with torch.device("meta"):
            size = sum(p.numel() for p in kind._from_config(config).parameters())
        if size > LARGEST:
            raise ValueError(f"{size / 1e6:.0f} million parameters at its smallest")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = kind._from_config(config).eval()
            # Equal experts, or activations of exactly zero, would have no derivative.
            for parameter in model.parameters():
                parameter.data += 0.05 * torch.randn(parameter.shape)
        with torch.no_grad():
            alone(model, ROWS[0][0])
    except Exception as error:  # a family's code may raise anything on an unusual configuration
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())[:120]) from error
    return model


@dataclass(frozen=True)
class Rows:
    """The rows as a task."""

    name: str = "rows"

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss in nats per target token."""
        return token_loss(model, batch)

    def batches(self, split: str, batch_size: int, seed: int) -> Iterator[Batch]:
        """All rows, repeatedly."""
        while True:
            yield collate(ROWS)

    def score(self, model: nn.Module, split: str) -> dict[str, float]:
        """No scores."""
        return {}

    def shuffled(self, seed: int) -> "Rows":
        """No control."""
        return self


def alone(model: Any, ids: Sequence[int]) -> Tensor:
    """Logits of a row without padding or mask."""
    no_cache = {"use_cache": False} if "use_cache" in forward_arguments(model) else {}
    return model(input_ids=torch.tensor([list(ids)]), **no_cache).logits[0]


class Subject:
    """A network, with references from rows that run alone, without padding or mask."""

    def __init__(self, model: Any) -> None:
        self.model, self.space = model, ParamSpace.select(model)
        u = torch.randn(self.space.dim, generator=rng.generator(0, "families"))
        self.u = u / u.norm()
        self.copies = [copy.deepcopy(model).to(kind) for kind in (torch.float64, torch.float32)]
        self.gradients = self.slopes(model)
        self.batch = collate(ROWS)

    def losses(self, model: Any) -> list[Tensor]:
        """Summed loss of every row."""
        summed = []
        for context, target in ROWS:
            logits = alone(model, context + target)
            predicted = logits[len(context) - 1 : -1]
            summed.append(F.cross_entropy(predicted, torch.tensor(target), reduction="sum"))
        return summed

    def slopes(self, model: Any) -> Tensor:
        """Gradients of the rows' summed losses, (n, d), at the current weights."""
        parameters = self.space.parameters(model)
        rows = []
        with measuring(model, self.space), torch.enable_grad():
            for loss in self.losses(model):
                parts = torch.autograd.grad(loss, parameters, allow_unused=True)
                pairs = zip(parts, parameters, strict=True)
                filled = [torch.zeros_like(p) if g is None else g for g, p in pairs]
                rows.append(torch.cat([part.flatten() for part in filled]))
        return torch.stack(rows)

    def logits(self, context: Sequence[int], v: Tensor, start: int) -> Tensor:
        """Last logits of a text alone, with v added after the first block from a token on."""

        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            several = isinstance(output, tuple | list)
            stream = output[0] if several else output
            moved = torch.cat([stream[:, :start], stream[:, start:] + v], 1)
            return type(output)((moved, *output[1:])) if several else moved

        handle = residual_blocks(self.model)[1][0].register_forward_hook(hook)
        try:
            with torch.no_grad():
                return alone(self.model, context)[-1]
        finally:
            handle.remove()


TARGETS = torch.tensor([float(len(target)) for _, target in ROWS])
CONTEXTS = [context for context, _ in ROWS]


def off(found: Tensor, expected: Tensor) -> float:
    """Relative error."""
    return float((found - expected).norm() / expected.norm())


def loss_error(of: Subject) -> float:
    """Error of the losses of rows with padding on either side."""
    with torch.no_grad():
        expected = torch.stack(of.losses(of.model))
        sides = [collate(ROWS, padding_side=side) for side in ("left", "right")]
        return max(off(example_losses(of.model, batch)[0], expected) for batch in sides)


def gradient_error(of: Subject) -> float:
    """Error of the gradient of a padded batch."""
    ours = gradient(of.model, Rows(), of.batch, space=of.space)
    return off(ours, of.gradients.sum(0) / TARGETS.sum())


def slope_error(of: Subject) -> float:
    """Error of the forward-mode slopes of all rows along a random line."""
    with loss_line(of.model, Rows(), of.batch, of.u, space=of.space) as line:
        return off(line.slopes.float(), of.gradients @ of.u)


def product_error(of: Subject) -> float:
    """Error of a Hessian product, from central differences of gradients; the best of some steps.

    The gradients are those of a copy in float64, if its layers stay in float64. In float32 they
    jump when the choice of experts changes; two backward passes through single rows do not.
    """
    product = hessian_product(of.model, Rows(), of.batch, space=of.space)(of.u).double()
    errors = []
    for copied, h in itertools.product(of.copies, (1e-2, 1e-3, 1e-4, 1e-5)):
        model, kind = copy.deepcopy(copied), next(copied.parameters()).dtype
        start = [p.detach().clone() for p in of.space.parameters(model)]
        parts = list(of.space.unflatten(of.u).values())
        ends = []
        with contextlib.suppress(RuntimeError):  # layers that do not take float64
            for sign in (1, -1):
                for p, at, part in zip(of.space.parameters(model), start, parts, strict=True):
                    p.data = at + sign * h * part.to(kind)
                ends.append(of.slopes(model).double().sum(0) / TARGETS.sum())
            errors.append(off(product, (ends[0] - ends[1]) / (2 * h)))
    if not min(errors) <= PRODUCT:
        errors.append(off(product, twice_backwards(of)))
    return min(errors)


def twice_backwards(of: Subject) -> Tensor:
    """The Hessian product by two backward passes through the single rows."""
    parameters = of.space.parameters(of.model)
    parts = of.space.unflatten(of.u).values()
    with measuring(of.model, of.space), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        loss = torch.stack(of.losses(of.model)).sum() / TARGETS.sum()
        first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        slope = torch.stack(
            [(g * part).sum() for g, part in zip(first, parts, strict=True) if g is not None]
        ).sum()
        second = torch.autograd.grad(slope, parameters, allow_unused=True)
    pairs = zip(second, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if h is None else h).flatten() for h, p in pairs])


def examples_error(of: Subject) -> float:
    """Error of the gradients of single examples."""
    ours = example_gradients(of.model, Rows(), of.batch, space=of.space)
    return off(ours, of.gradients / TARGETS[:, None])


def steering_error(of: Subject) -> float:
    """Error of streams, and of logits after a vector is added, at the last and at all tokens."""
    streams = last_activations(of.model, CONTEXTS, [0])
    v = 0.3 * streams.norm(dim=-1).mean() * unit(streams.shape[-1])
    alone = torch.cat([last_activations(of.model, [context], [0]) for context in CONTEXTS])
    errors = [off(streams, alone)]
    positions: tuple[Position, ...] = ("last", "all")
    for position in positions:
        starts = [len(c) - 1 if position == "last" else 0 for c in CONTEXTS]
        expected = [of.logits(c, v, s) for c, s in zip(CONTEXTS, starts, strict=True)]
        logits = torch.empty(len(CONTEXTS), VOCABULARY)
        for group in fitting_groups(of.model, CONTEXTS, 1000):
            batch = collate([(CONTEXTS[i], []) for i in group])
            with add(of.model, {Site(0, position): v}), torch.no_grad():
                logits[group] = run_blocks(of.model, batch).logits[:, -1].float()
        errors.append(off(logits, torch.stack(expected)))
    return max(errors)


def generation_error(of: Subject) -> float:
    """1 if steered generation differs from a loop without a cache, else 0."""
    context = CONTEXTS[0]
    width = last_activations(of.model, [context], [0]).shape[-1]
    v = unit(width)
    model: Any = of.model
    model.generation_config.eos_token_id = END
    texts = generate_steered(of.model, context, torch.stack([v, v]), block=0, new_tokens=3)
    expected: list[int] = []
    while len(expected) < 3:
        token = int(of.logits(context + expected, v, len(context) - 1).argmax())
        if token == END:
            break
        expected.append(token)
    return float(texts != [expected, expected])


def candidates_error(of: Subject) -> float:
    """Error of the scores of candidates in one pass, compared with one after the other.

    They differ in the weights of linear layers and embeddings that can share a pass.
    """

    def shared(name: str, parameter: nn.Parameter) -> bool:
        one = ParamSpace((name,), (tuple(parameter.shape),))
        return name in of.space.names and can_group(of.model, one)

    noise, passes = Noise(0.02), 0
    space = ParamSpace.select(of.model, shared)
    evaluator = Evaluator(space, noise, "loss", of.batch).decide(of.model)

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    handle = of.model.register_forward_hook(count)
    scores = torch.tensor(evaluator(of.model, range(4)))
    handle.remove()
    expected = []
    with Candidates(of.model, space, noise) as candidates:
        for index in range(4):
            candidates.put(index)
            expected.append(row_scores(of.model, "loss", of.batch).means())
    error = off(scores, torch.cat(expected))
    if passes >= 4:
        warnings.warn("candidates one at a time are slower", RuntimeWarning, stacklevel=2)
    return error


def unit(width: int) -> Tensor:
    """A random unit vector."""
    v = torch.randn(width, generator=rng.generator(0, "families", "vector"))
    return v / v.norm()


class Column(NamedTuple):
    """One measurement: its name, its error, and the limit of rounding."""

    name: str
    error: Callable[[Subject], float]
    bound: float


COLUMNS = (
    Column("loss", loss_error, 1e-4),
    Column("gradient", gradient_error, 1e-3),
    Column("slope", slope_error, 1e-3),
    Column("Hessian product", product_error, PRODUCT),
    Column("examples", examples_error, 1e-3),
    Column("steering", steering_error, 1e-3),
    Column("generation", generation_error, 0.0),
    Column("candidates", candidates_error, 1e-3),
)


def judged(column: Column, of: Subject) -> str:
    """right, slow way, refused with its reason, or wrong with the error."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            error = column.error(of)
        except Exception as raised:  # any crash is wrong
            place = traceback.extract_tb(raised.__traceback__)[-1].filename
            words = " ".join(str(raised).split())[:160]
            meant = isinstance(raised, ValueError) and "frenet" in Path(place).parts
            return f"refused: {words}" if meant else f"wrong: {type(raised).__name__}: {words}"
    if not error <= column.bound:
        return f"wrong: relative error {error:.1g}"
    slow = any("slow" in str(warning.message) for warning in said)
    return "slow way" if slow else "right"


def measured(name: str) -> dict[str, str]:
    """The cells of a family.

    Raises:
        ValueError: the family cannot be built.
    """
    of = Subject(build(name))
    with torch.random.fork_rng(devices=[]):
        return {column.name: judged(column, of) for column in COLUMNS}


def names() -> list[str]:
    """All families with a causal language model, by the names of their configurations."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


INTRO = """# Model families

`make families` generates this page. The command builds a tiny model with random weights of every
family of transformers {version} with a causal language model, and gives each {rows} rows of
different lengths in one padded batch. Families that it could not build are listed at the end with
the reason. Every measurement is compared with the same rows one at a time, without padding and
without frenet:

- **loss**: of every row, padded on the left and on the right.
- **gradient**: of the mean loss, by backward passes of the single rows.
- **slope**: of every row's loss along a random line, in forward mode, against those backward
  passes.
- **Hessian product**: against central differences of the gradients, or, if those jump because
  the choice of experts changes, against two backward passes.
- **examples**: the gradient of every row.
- **steering**: a vector is read, and added, at the last token and at all tokens after the first
  block.
- **generation**: a vector is added while text is generated, against a loop without a cache.
- **candidates**: the scores of random candidates for the weights of linear layers that share a
  pass, against one candidate after the other.

A cell is **right** if the two agree up to rounding; **slow way** if they agree and frenet said
that it used a slower way, such as rows of one length together; **refused** if frenet gave an
error that names the reason; and **wrong** otherwise.

No list of names decides how a model runs. The first time that a model gets rows of different
lengths, frenet runs the beginnings of three of them alone and padded, and compares the logits. If
padding changes them, rows run with padding on the right, or in groups of one length.

At the start of a measurement the slope of the loss along its gradient is compared with differences
of losses at three step sizes. A disagreement above 5% is an error. If rounding hides the slope, as
in half precision, the notes of a run say that derivatives are not checked.

"""


def page(cells_of: dict[str, dict[str, str]], unbuilt: dict[str, str], version: str) -> str:
    """The page of the documentation."""
    text = INTRO.format(version=version, rows=len(ROWS))
    heads = [column.name for column in COLUMNS]
    cells = [cell for row in cells_of.values() for cell in row.values()]
    kinds = ("right", "slow way", "refused", "wrong")
    counts = [f"{sum(c.startswith(kind) for c in cells)} {kind}" for kind in kinds]
    text += f"The {len(cells)} cells of {len(cells_of)} families: {', '.join(counts)}.\n\n"
    text += f"| family | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}\n"
    reasons: dict[str, list[str]] = {}
    for name, row in cells_of.items():
        short = []
        for head in heads:
            kind, _, why = row[head].partition(": ")
            if why:
                reasons.setdefault(f"{kind}: {why}", []).append(f"{name} ({head})")
            short.append(kind)
        text += f"| {name} | {' | '.join(short)} |\n"
    if reasons:
        text += "\n## Reasons\n\n"
        text += "".join(f"- {escaped(why)}: {', '.join(of)}\n" for why, of in reasons.items())
    if unbuilt:
        text += "\n## Families that are not in the table\n\n"
        text += "They cannot be built so small, or do not run on text alone.\n\n"
        text += "".join(f"- {name}: {escaped(why)}\n" for name, why in unbuilt.items())
    return text


def escaped(text: str) -> str:
    """A message as Markdown shows it, on one line."""
    return "`" + text.replace("`", "'") + "`"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the families, and write the page; returns 1 if a cell is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="names; all by default")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write")
    options = parser.parse_args(arguments)
    import transformers

    transformers.logging.set_verbosity_error()
    cells_of, unbuilt = {}, {}
    for name in options.families or names():
        try:
            cells_of[name] = measured(name)
            print(name, cells_of[name], flush=True)
        except Exception as error:  # a configuration or a plain backward pass may raise anything
            unbuilt[name] = " ".join(str(error).split())[:200]
            print(name, "not built:", error, flush=True)
    options.out.write_text(page(cells_of, unbuilt, transformers.__version__), encoding="utf-8")
    return int(any(cell.startswith("wrong") for row in cells_of.values() for cell in row.values()))


if __name__ == "__main__":
    sys.exit(main())
