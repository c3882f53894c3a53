"""How far, and for how long, can a direction in a neural network be trusted?

    model + tasks --> gradients, curvature --> vectors in R^d --> Basis --> measured value
          |                                                         ^
          +--> training loop --> Trajectory ------------------------+
                   experiment: config -> rows -> run folder -> report.html

The folders are layers; each imports only from those before it:

    geometry      tensors in, tensors out: bases, spectra, nulls; knows no model
    network       what is measured: parameter spaces, tasks, models, adapters
    measure       numbers read off a network at a point or along a path
    methods       what one does with a direction
    experiments   one folder, one question: configuration, rows, claim, figures
    runs          run folders and the engine that fills them
    report        run folders into one HTML file, or into several pages
    integrations  inside other people's training
    cli           the command line
"""

import importlib
from typing import TYPE_CHECKING, Any

from frenet._version import __version__

if TYPE_CHECKING:
    from frenet.experiments import EXPERIMENTS
    from frenet.experiments.direction_scale.api import lifetime, probe
    from frenet.experiments.pair_command.api import pair
    from frenet.experiments.steer_command.api import steering_advice
    from frenet.geometry.basis import Basis, krylov_basis, prefix_basis, random_basis, svd_basis
    from frenet.integrations.own_loop import watch
    from frenet.integrations.trainer import FrenetCallback, read_trajectory
    from frenet.measure.activation_shift import activation_shift
    from frenet.measure.activations import add, last_activations, record
    from frenet.measure.curvature import hessian_product, hutchinson, top_eigenpairs
    from frenet.measure.gradients import example_gradients, gradient, gradient_matrix
    from frenet.measure.lie_bracket import Minibatch, lie_bracket
    from frenet.measure.loss_line import loss_line
    from frenet.measure.trajectory import Training, Trajectory, train_and_record
    from frenet.measure.update_order import gradient_step, order_difference
    from frenet.methods.candidates import Noise
    from frenet.methods.effect_line import effect_line
    from frenet.methods.linear_range import radius
    from frenet.methods.local_model import survey
    from frenet.methods.lora_from_delta import save_as_adapter
    from frenet.methods.merge import save_merged
    from frenet.methods.moving_basis import MovingBasis, moving_prefix
    from frenet.methods.plan import plan, plan_search
    from frenet.methods.search import random_search
    from frenet.methods.search_result_files import load_winner, save_winner
    from frenet.methods.selection import Selection
    from frenet.methods.steering import caa, gradient_shift
    from frenet.methods.steering_vector import (
        SteeringVector,
        load_vector,
        save_control_vector,
        save_vector,
    )
    from frenet.methods.subspace import train_in_basis
    from frenet.methods.subspace_optimizer import SubspaceOptimizer
    from frenet.methods.task_vectors import (
        TaskVector,
        from_adapter,
        from_checkpoints,
        from_training,
        load_task_vector,
        save_task_vector,
    )
    from frenet.network.adapters import attach_lora
    from frenet.network.checkpoints.load import load
    from frenet.network.data.contrasts import contrast, contrasts
    from frenet.network.data.text import text_tasks
    from frenet.network.hooks.sites import Site
    from frenet.network.space import ParamSpace
    from frenet.report import write_report
    from frenet.report.opened import read_run, run
    from frenet.runs import run_experiment

# Names are imported at first use, so that the command line's help does not wait for torch.
_HOME = {
    # networks and tasks
    "load": "network.checkpoints.load",
    "attach_lora": "network.adapters",
    "text_tasks": "network.data.text",
    "contrast": "network.data.contrasts",
    "contrasts": "network.data.contrasts",
    "ParamSpace": "network.space",
    # measuring
    "gradient": "measure.gradients",
    "gradient_matrix": "measure.gradients",
    "example_gradients": "measure.gradients",
    "hessian_product": "measure.curvature",
    "hutchinson": "measure.curvature",
    "top_eigenpairs": "measure.curvature",
    "Training": "measure.trajectory",
    "Trajectory": "measure.trajectory",
    "train_and_record": "measure.trajectory",
    # the order of two updates
    "Minibatch": "measure.lie_bracket",
    "lie_bracket": "measure.lie_bracket",
    "gradient_step": "measure.update_order",
    "order_difference": "measure.update_order",
    # bases
    "Basis": "geometry.basis",
    "svd_basis": "geometry.basis",
    "prefix_basis": "geometry.basis",
    "krylov_basis": "geometry.basis",
    "random_basis": "geometry.basis",
    "train_in_basis": "methods.subspace",
    "SubspaceOptimizer": "methods.subspace_optimizer",
    "MovingBasis": "methods.moving_basis",
    "moving_prefix": "methods.moving_basis",
    # task vectors, and how far a direction goes
    "TaskVector": "methods.task_vectors",
    "from_checkpoints": "methods.task_vectors",
    "from_adapter": "methods.task_vectors",
    "from_training": "methods.task_vectors",
    "load_task_vector": "methods.task_vectors",
    "save_task_vector": "methods.task_vectors",
    "save_as_adapter": "methods.lora_from_delta",
    "save_merged": "methods.merge",
    "loss_line": "measure.loss_line",
    "effect_line": "methods.effect_line",
    "radius": "methods.linear_range",
    "lifetime": "experiments.direction_scale.api",
    "probe": "experiments.direction_scale.api",
    "pair": "experiments.pair_command.api",
    # random search
    "Noise": "methods.candidates",
    "Selection": "methods.selection",
    "random_search": "methods.search",
    "survey": "methods.local_model",
    "plan": "methods.plan",
    "plan_search": "methods.plan",
    "save_winner": "methods.search_result_files",
    "load_winner": "methods.search_result_files",
    # activations and steering
    "Site": "network.hooks.sites",
    "record": "measure.activations",
    "add": "measure.activations",
    "last_activations": "measure.activations",
    "activation_shift": "measure.activation_shift",
    "caa": "methods.steering",
    "gradient_shift": "methods.steering",
    "SteeringVector": "methods.steering_vector",
    "load_vector": "methods.steering_vector",
    "save_vector": "methods.steering_vector",
    "save_control_vector": "methods.steering_vector",
    "steering_advice": "experiments.steer_command.api",
    # inside a training
    "FrenetCallback": "integrations.trainer",
    "read_trajectory": "integrations.trainer",
    "watch": "integrations.own_loop",
    # experiments
    "EXPERIMENTS": "experiments",
    "run_experiment": "runs",
    "run": "report.opened",
    "read_run": "report.opened",
    "write_report": "report",
}

__all__ = [
    "EXPERIMENTS",
    "Basis",
    "FrenetCallback",
    "Minibatch",
    "MovingBasis",
    "Noise",
    "ParamSpace",
    "Selection",
    "Site",
    "SteeringVector",
    "SubspaceOptimizer",
    "TaskVector",
    "Training",
    "Trajectory",
    "__version__",
    "activation_shift",
    "add",
    "attach_lora",
    "caa",
    "contrast",
    "contrasts",
    "effect_line",
    "example_gradients",
    "from_adapter",
    "from_checkpoints",
    "from_training",
    "gradient",
    "gradient_matrix",
    "gradient_shift",
    "gradient_step",
    "hessian_product",
    "hutchinson",
    "krylov_basis",
    "last_activations",
    "lie_bracket",
    "lifetime",
    "load",
    "load_task_vector",
    "load_vector",
    "load_winner",
    "loss_line",
    "moving_prefix",
    "order_difference",
    "pair",
    "plan",
    "plan_search",
    "prefix_basis",
    "probe",
    "radius",
    "random_basis",
    "random_search",
    "read_run",
    "read_trajectory",
    "record",
    "run",
    "run_experiment",
    "save_as_adapter",
    "save_control_vector",
    "save_merged",
    "save_task_vector",
    "save_vector",
    "save_winner",
    "steering_advice",
    "survey",
    "svd_basis",
    "text_tasks",
    "top_eigenpairs",
    "train_and_record",
    "train_in_basis",
    "watch",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name in _HOME:
        return getattr(importlib.import_module(f"frenet.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
