"""What memory a peer will take, told beforehand from its settings: only own networks are built for it.

``dslth bench memory`` compares what it says with what the kernel counts.
"""

from math import prod

from dslth.config import ExperimentConfig, Inputs, ModelConfig, ModelName, Scores

__all__ = ["SERVER", "network", "of_peer", "of_step", "size"]

SERVER = 270 << 20
"""Bytes of the launcher, and of the pages that all peers share with the server that they are forked from."""
PEER = 30 << 20
"""Bytes of a peer without a network: what it does not share of Python, torch and ZeroMQ."""
WEIGHT = 56
"""Bytes for each weight of what a peer learns."""
WEIGHT_BY_NEIGHBOUR = {Scores.OWN: 5, Scores.COMMON: 1}
"""Bytes for each weight of what it knows of a neighbour's masks; alike first scores make one forecast for all."""
ACTIVATION = 14
"""Bytes for each number that the widest layer puts out for a minibatch: itself, its gradient, and copies of them."""

NUMBER = {"uint8": 1, "float32": 4, "int64": 8}
"""Bytes of each number of a sample."""


def of_peer(experiment: ExperimentConfig, inputs: Inputs, neighbours: int, samples: int) -> int:
    """Return the bytes that a peer holds between two turns; ``samples`` are all it has."""
    weights, _ = size(experiment, inputs)
    learned = weights * (WEIGHT + WEIGHT_BY_NEIGHBOUR[experiment.algorithm.scores] * neighbours)
    return PEER + learned + samples * prod(inputs.shape) * NUMBER[inputs.number]


def of_step(experiment: ExperimentConfig, inputs: Inputs, batch: int) -> int:
    """Return the bytes that a step on ``batch`` samples takes beyond that; they are given back when a turn ends."""
    return ACTIVATION * batch * size(experiment, inputs)[1]


def size(experiment: ExperimentConfig, inputs: Inputs) -> tuple[int, int]:
    """Count a network's weights, and the numbers that its widest layer puts out for one sample."""
    if not experiment.model.own and (len(inputs.shape) == 3 or experiment.model.name == ModelName.MLP):
        return network(experiment.model, inputs.shape, inputs.classes)
    from dslth.learning import networks  # torch is heavy: own code is told by trying it

    return networks.measure(experiment, inputs)


def network(model: ModelConfig, shape: tuple[int, ...], classes: int = 10) -> tuple[int, int]:
    """Count the weights of a network of the zoo, and the numbers that its widest layer puts out for one image."""
    if model.name == ModelName.MLP:
        return prod(shape) * 256 + 256 * 128 + 128 * classes, 256
    channels, side, _ = shape
    if model.name == ModelName.RESNET8:
        return 144 * channels + 73_728 + 64 * classes, 16 * side**2
    if side < 20:
        return 288 * channels + 18_432 + 64 * (side // 4) ** 2 * 128 + 128 * classes, 32 * side**2
    width, hidden = (64, 192) if side >= 32 else (32, 128)
    weights, widest = 0, width * (side - 2) ** 2
    for to, pad in ((width, 0), (2 * width, 0), (4 * width, 1)):
        weights += 25 * channels * to
        channels, side = to, (side - 5 + 2 * pad) // 2 + 1
    return weights + channels * side**2 * hidden + hidden * classes, widest
