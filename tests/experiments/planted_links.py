"""A network in which the link between a step of the weights and a contrast is planted."""

import torch
from torch import nn

from frenet.experiments.setup.contrasts import Steered, divided
from frenet.geometry.rng import generator
from frenet.network.data.contrast import Contrast, Item
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import Output

YES, NO, WIDTH, TOKENS = 0, 1, 24, 400


class Planted(nn.Module):
    """h = e(token) + c q; the answers are read along the unit vector u, and c is all that learns.

    A step towards yes moves h along q = link u + sqrt(1 - link^2) w, whatever the prompt, with w
    orthogonal to u. Embeddings of the second half of the tokens are moved by ``known`` u.
    """

    def __init__(self, seed: int, *, link: float, known: float) -> None:
        super().__init__()
        draw = generator(seed, "planted")
        u, w = torch.linalg.qr(torch.randn(WIDTH, 2, generator=draw))[0].T
        rows = torch.randn(TOKENS, WIDTH, generator=draw)
        rows[TOKENS // 2 :] += known * u
        self.embed = nn.Embedding.from_pretrained(rows)
        self.c = nn.Parameter(torch.zeros(1))
        self.layers = nn.ModuleList([Moved(link * u + (1 - link**2) ** 0.5 * w, self.c)])
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.weight[YES], self.head.weight[NO] = 0.5 * u, -0.5 * u

    def forward(self, input_ids, logits_to_keep: int = 0):
        return Output(self.head(self.layers[0](self.embed(input_ids)))[:, -logits_to_keep:])


class Moved(nn.Module):
    """x + c q."""

    def __init__(self, q: torch.Tensor, c: nn.Parameter) -> None:
        super().__init__()
        self.register_buffer("q", q)
        self.c = c

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.c * self.q


def planted(
    seed: int, *, link: float = 1.0, known: float = 2.0, swapped: bool = False,
    unit: str = "prompt", rows: int = 96,
) -> Steered:  # fmt: skip
    """Prompts of two tokens; the label is the half of the last one.

    Another contrast has labels that the network knows nothing of.
    """
    draw = generator(seed, "prompts")
    order = torch.randperm(TOKENS - 2, generator=draw).tolist()
    own, other = (
        tuple(
            Item("t", [5, token], ([5, token, YES], [5, token, NO]), label(i, token) != swapped, i)
            for i, token in enumerate(t + 2 for t in order)
        )
        for label in (lambda _, token: token >= TOKENS // 2, lambda i, _: i % 2 == 0)
    )
    contrasts = [
        Contrast(name, "statements", ("yes", "no"), items)
        for name, items in (("planted", own), ("other", other))
    ]
    model = Planted(seed, link=link, known=known)
    return Steered(
        model.eval(), ParamSpace.select(model, "^c$"), (0,),
        divided(contrasts[0], rows=rows, seed=seed), None, (), None, (contrasts[1],), unit,
    )  # fmt: skip
