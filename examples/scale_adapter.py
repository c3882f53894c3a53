"""How far can a LoRA adapter be scaled? Its linear range, and the loss beyond it.

    python examples/scale_adapter.py

Trains a small network (a minute at the first run), fine-tunes an adapter on a new task, and scales
the adapter from 0 to 3.
"""

import frenet
from frenet.geometry.rng import generator
from frenet.measure.damage import fixed_loss
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTask, trained_synthetic


def main() -> None:
    network = SyntheticConfig(width=32, steps=300)
    task = SyntheticTask("predecessor")
    tuned = frenet.attach_lora(
        trained_synthetic(network, seed=0), rank=4, targets=["q_proj", "v_proj"]
    )
    frenet.train_and_record(
        tuned, task, frenet.Training("adam:1e-2", steps=50), space=frenet.ParamSpace.select(tuned)
    )
    vector = frenet.from_adapter(tuned)

    base = trained_synthetic(network, seed=0)
    space = vector.space(base)
    batch = next(task.batches("test", 256, seed=0))
    with frenet.loss_line(base, task, batch, vector.flat(space), space=space) as line:
        length = vector.norm()
        linear_range = frenet.radius(
            line, start=length / 16, limit=16 * length, generator=generator(0, "bootstrap")
        )
    print(
        f"the loss is linear within 20% up to {linear_range.radius / length:.2f} of the adapter's "
        f"length [{linear_range.low / length:.2f}, {linear_range.high / length:.2f}]"
    )

    losses = {}
    for scale in (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0):
        with vector.applied(base, scale):
            losses[scale] = fixed_loss(base, task, size=256)
        linear = losses[0.0] + scale * length * linear_range.slope
        print(f"{scale:4.2f} of the adapter: loss {losses[scale]:.3f}, linear {linear:.3f}")

    assert losses[1.0] < losses[0.0], "the adapter has learned something"
    assert linear_range.slope < 0, "the loss falls from the start of the line"
    assert linear_range.low <= linear_range.radius <= linear_range.high
    assert fixed_loss(base, task, size=256) == losses[0.0], "the base is restored, bit for bit"


if __name__ == "__main__":
    main()
