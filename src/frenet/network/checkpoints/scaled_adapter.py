"""A stored adapter at several scales, as PEFT applies it: also if it is no sum of products."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from frenet.network.checkpoints.adapter_apply import apply_adapter, changeable, twin
from frenet.network.checkpoints.adapter_delta import base_weights
from frenet.network.checkpoints.adapter_files import configuration
from frenet.network.checkpoints.adapter_load import base_notes, products_of
from frenet.network.checkpoints.folders import held


def is_dora(source: str | Path) -> bool:
    """Whether a source is the folder of a DoRA adapter, whose line in the weights is not straight.

    Its weights are m (W + c s B A) / ||W + c s B A||, by rows, with magnitudes m.
    """
    folder = Path(source).expanduser()
    return (
        folder.is_dir() and held(folder).is_adapter and bool(configuration(folder).get("use_dora"))
    )


class ScaledAdapter:
    """A copy of a model with an adapter, whose scale can be changed.

    Attributes:
        model: PEFT's wrapper; only the weights that the adapter may change are copies.
        notes: what to know about the adapter and its base.
    """

    def __init__(self, base: nn.Module, folder: Path) -> None:
        self.model, notes = apply_adapter(twin(base, changeable(folder)), folder)
        self.model.eval()
        products = products_of(self.model, f"the adapter {folder}")
        if source := getattr(base, "name_or_path", ""):
            notes += base_notes(folder, source, base_weights(base), products)
        self.notes = tuple(notes)
        # Attention modules have a number of that name.
        layers: list[Any] = [
            m for m in self.model.modules() if isinstance(getattr(m, "scaling", None), dict)
        ]
        self._layers = [(layer, dict(layer.scaling)) for layer in layers]

    @contextmanager
    def at(self, scale: float) -> Iterator[nn.Module]:
        """The model with the adapter at a multiple of its scale; 0: without the adapter."""
        for layer, scaling in self._layers:
            layer.scaling.update({name: scale * value for name, value in scaling.items()})
        try:
            if scale:
                yield self.model
            else:
                with self.model.disable_adapter():
                    yield self.model
        finally:
            for layer, scaling in self._layers:
                layer.scaling.update(scaling)
