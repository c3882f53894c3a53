"""Two adapters in one: measures what each loses before they are merged.

    python examples/merge_adapters.py

Trains two adapters on one small network, adds them as task vectors (the sum of the products B A,
not the product of the sums), and writes the sum as one adapter with its error stated.
"""

import tempfile

import frenet
from frenet.measure.damage import fixed_loss
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTask, trained_synthetic

NETWORK = SyntheticConfig(width=32, steps=300)
TASKS = ("predecessor", "sort")


def adapter(name: str) -> frenet.TaskVector:
    """The change of the weights in 50 steps of LoRA on one task."""
    model = frenet.attach_lora(
        trained_synthetic(NETWORK, seed=0), rank=4, targets=["q_proj", "v_proj"]
    )
    space = frenet.ParamSpace.select(model)
    training = frenet.Training("adam:1e-2", steps=50)
    frenet.train_and_record(model, SyntheticTask(name), training, space=space)
    return frenet.from_adapter(model)


def main() -> None:
    base = trained_synthetic(NETWORK, seed=0)
    first, second = (adapter(name) for name in TASKS)
    print(f"cosine of the two: {first.cosine(second):.3f}")

    def losses(vector: frenet.TaskVector | None) -> list[float]:
        tasks = [SyntheticTask(name) for name in TASKS]
        if vector is None:
            return [fixed_loss(base, task, size=256) for task in tasks]
        with vector.applied(base):
            return [fixed_loss(base, task, size=256) for task in tasks]

    before, both = losses(None), losses(first + second)
    alone = [losses(first)[0], losses(second)[1]]
    for i, name in enumerate(TASKS):
        share = (before[i] - both[i]) / (before[i] - alone[i])
        verdict = f"{share:.0%} of its gain is kept" if share > 0 else "worse than without any"
        print(
            f"{name}: loss {before[i]:.3f} without, {alone[i]:.3f} with its own adapter, "
            f"{both[i]:.3f} with both: {verdict}"
        )

    with tempfile.TemporaryDirectory() as folder:
        fit = frenet.save_as_adapter(first + second, folder, base=base, tolerance=1e-3)
        merged = frenet.from_adapter(folder, base=base)
        print(f"one adapter of rank {max(fit.ranks.values())}, relative error {fit.error:.1e}")
        again = losses(merged)

    assert alone[0] < before[0]
    assert max(fit.ranks.values()) <= 8, "two of rank 4 make at most 8"
    assert fit.error <= 1e-3
    assert all(abs(a - b) < 0.01 for a, b in zip(again, both, strict=True))


if __name__ == "__main__":
    main()
