"""Models with LoRA adapters of every orientation and scale, and their products B A."""

import torch
from peft import LoraConfig, get_peft_model

from frenet.geometry.rng import generator
from frenet.network.adapters import quiet_peft
from frenet.network.checkpoints.weight_space import adapted_modules
from frenet.network.space import ParamSpace
from network.models import tiny_gpt2, tiny_llama, tiny_mistral, tiny_qwen2

KINDS = ("lora_A", "lora_embedding_A")
CASES = {
    "gpt2": (tiny_gpt2, ["c_attn", "c_proj"], {}),
    "llama": (tiny_llama, ["q_proj", "down_proj", "embed_tokens"], {"use_rslora": True}),
    "mistral": (tiny_mistral, ["k_proj", "up_proj"], {"init_lora_weights": "olora"}),
    "qwen2": (
        tiny_qwen2,
        ["q_proj", "o_proj"],
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"o_proj": 9}},
    ),
}


def adapted(case, *, trained, name="default", model=None, seed=1):
    """A model with a LoRA adapter: fresh, with one half zero, or as if trained before."""
    make, targets, settings = CASES[case]
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=targets, fan_in_fan_out=case == "gpt2", **settings
    )
    with quiet_peft(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model is None:
            model = get_peft_model(make(), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    draw = generator(seed, "trained")
    with torch.no_grad():
        for key, p in model.named_parameters() if trained else ():
            if f".{name}" in key and "lora_" in key:
                p.copy_(0.2 * torch.randn(p.shape, generator=draw))
    return model.eval()


def factors(model):
    return ParamSpace.select(model, "lora_")


def draw_step(space, size=0.2, seed=2):
    return size * torch.randn(space.dim, generator=generator(seed, "step"))


def dense(model):
    """s B A of every adapted module in float64, as PEFT orients it, by the name of its weight."""
    found = {}
    for name, module in model.named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        scaling = module.scaling["default"]
        if "default" in module.lora_A:
            A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
            product = B.detach().double() @ A.detach().double()
            product = product.T if module.fan_in_fan_out else product
        else:
            A, B = module.lora_embedding_A["default"], module.lora_embedding_B["default"]
            product = (B.detach().double() @ A.detach().double()).T
        found[f"{name}.base_layer.weight"] = scaling * product
    return found


def weights(model, space, theta):
    """s B A of every module at some factors, flat, in the dtype of the factors."""
    parts = space.unflatten(theta)
    values = {name: p.detach().to(theta) for name, p in model.named_parameters()} | parts
    modules = adapted_modules(model, space, kinds=KINDS)
    return torch.cat([m.scale * (values[m.B] @ values[m.A]).reshape(-1) for m in modules])


def first_order(model, space, start, step):
    parts, before = space.unflatten(step), space.unflatten(start)
    modules = adapted_modules(model, space, kinds=KINDS)
    return torch.cat(
        [
            m.scale * (parts[m.B] @ before[m.A] + before[m.B] @ parts[m.A]).reshape(-1)
            for m in modules
        ]
    )


def dense_changes(model, space, start, steps, kind):
    """(n, weights), float64."""
    steps, start = steps.double(), start.double()
    starts = start.expand(steps.shape)
    if kind == "path":
        starts = start + torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(0)[:-1]])
    if kind == "first order":
        return torch.stack(
            [first_order(model, space, a, b) for a, b in zip(starts, steps, strict=True)]
        )
    return torch.stack(
        [
            weights(model, space, a + b) - weights(model, space, a)
            for a, b in zip(starts, steps, strict=True)
        ]
    )


def gauged(model, space, vectors, seed=3):
    """(M^-1 A, B M) for a random M in every module, of a point or of steps."""
    parts = dict(space.unflatten(vectors.double()))
    for i, m in enumerate(adapted_modules(model, space, kinds=KINDS)):
        r = parts[m.A].shape[-2]
        draw = torch.randn(r, r, dtype=torch.float64, generator=generator(seed, "gauge", i))
        M = 2 * torch.eye(r, dtype=torch.float64) + draw
        parts[m.A] = torch.linalg.solve(M.expand(*parts[m.A].shape[:-2], r, r), parts[m.A])
        parts[m.B] = parts[m.B] @ M
    return torch.cat([parts[name].flatten(vectors.ndim - 1) for name in space.names], dim=-1)
