"""Columns that several experiments share."""

from frenet.experiments.experiment import Column

SEED = Column("seed", "", "seed of network, data and all draws", "key")
SPACE = Column("space", "", "parameters that move: all weights, or the factors of LoRA", "key")
TASK = Column("task", "", "task", "key")
DAMAGED_TASK = Column("task", "", "damaged task", "key")
PROTOCOL = Column("protocol", "", "kind of damage", "key")
OPTIMIZER = Column("optimizer", "", "optimiser of the training and its rate", "key")
K = Column("k", "", "basis dimension", "key")
COORDINATES = Column(
    "coordinates", "", "of LoRA: its factors, or the weights that they make", "key"
)
CHANCE = Column("chance", "fraction", "k / d, what a random basis holds", "reference")
LOSS_0 = Column("loss_0", "nats/token", "loss before the damage", "reference")
LOSS_D = Column("loss_d", "nats/token", "loss after the damage", "reference")
