"""The network of a run: one of the zoo, or a torch module of the user's own.

Of an own module the weights of linear, convolution and embedding layers and of attention's projections are masked, see
``supermask.masked``. All else stays as the module made it, from the run's seed, and never learns.
"""

import hashlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from dslth.config import ExperimentConfig, Inputs, ModelConfig, ModelName
from dslth.errors import ConfigError
from dslth.learning import code, footprint, models, supermask
from dslth.learning.supermask import FrozenNet
from dslth.seeds import Stream

__all__ = ["frozen", "measure", "network", "structure"]

MOST_WEIGHTS = 1 << 28
"""Of a network of the zoo: what a damaged or hostile ticket asks for must not fill the memory."""
STRANGE = (nn.RNNBase, nn.RNNCellBase, nn.EmbeddingBag)
"""Layers that do not work with weights that come from outside, or not with dense gradients."""


def frozen(experiment: ExperimentConfig, inputs: Inputs, device: str = "cpu") -> FrozenNet:
    """Make the frozen network of a run on a device; raises what ``network`` does."""
    module = network(experiment, inputs)
    settings = experiment.model
    return supermask.freeze(module, experiment.seed, settings.init, experiment.algorithm.density, device)


def network(experiment: ExperimentConfig, inputs: Inputs) -> nn.Module:
    """Make the network of a run for such inputs; the masked weights are not set yet.

    Raises ConfigError if it does not fit the inputs, or has layers that cannot be masked.
    """
    settings = experiment.model
    if not settings.own:
        _check_zoo(settings, inputs)
        return models.build(settings, inputs.shape, inputs.classes)
    module = _made(settings, inputs, Stream(experiment.seed, "model").integer())
    _check_layers(settings, module)
    _check_output(settings, module, inputs)
    return module


def structure(net: FrozenNet) -> str:
    """Return a digest of what a network's layers are: the names and shapes of all parameters and buffers.

    Two networks alike in that can exchange masks, whatever their code does with the layers.
    """
    state = [(name, tuple(tensor.shape)) for name, tensor in net.module.state_dict().items()]
    return hashlib.sha256(repr((net.names, state)).encode()).hexdigest()


def measure(experiment: ExperimentConfig, inputs: Inputs) -> tuple[int, int]:
    """Count a network's masked weights, and the numbers that its widest layer puts out for one sample."""
    net, widths = frozen(experiment, inputs), [1]

    def look(layer: nn.Module, given: Any, result: Any) -> None:
        if isinstance(result, Tensor):
            widths.append(result.numel())

    for layer in net.module.modules():
        layer.register_forward_hook(look)
    with torch.inference_mode():
        net.module(_example(inputs, 1))
    return sum(net.sizes), max(widths)


def _check_zoo(settings: ModelConfig, inputs: Inputs) -> None:
    square = len(inputs.shape) == 3 and inputs.shape[1] == inputs.shape[2] >= 4
    if inputs.number == "int64" or not (square or settings.name == ModelName.MLP):
        takes = "features" if settings.name == ModelName.MLP else "square images (channels, side, side)"
        raise ConfigError(
            f"experiment.model.name: {settings.name} takes {takes}, not {inputs}; give data.shape, or another network "
            "(mlp takes features of any shape; own ones are named as in ./nets.py:Net)"
        )
    weights, _ = footprint.network(settings, inputs.shape, inputs.classes)
    if weights > MOST_WEIGHTS:
        raise ConfigError(
            f"experiment.model.name: {settings.name} for {inputs} would have {weights:,} weights; the most "
            f"is {MOST_WEIGHTS:,}"
        )


# --- own code -------------------------------------------------------------------------------------------------------


def _made(settings: ModelConfig, inputs: Inputs, seed: int) -> nn.Module:
    """Call the factory: with the options, and with ``shape`` and ``classes`` if it has parameters of these names."""
    factory = code.factory(settings.name)
    try:
        takes = inspect.signature(factory).parameters
        known = {name: value for name, value in (("shape", inputs.shape), ("classes", inputs.classes)) if name in takes}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = factory(**(known | dict(settings.options)))
    except Exception as error:
        raise ConfigError(f"experiment.model: {settings.name} failed: {code.told(error)}") from error
    if not isinstance(made, nn.Module):
        raise ConfigError(f"experiment.model: {settings.name} made a {type(made).__name__}, not a torch.nn.Module")
    return made


def _check_layers(settings: ModelConfig, module: nn.Module) -> None:
    for name, layer in module.named_modules():
        problem = _problem(layer)
        if problem:
            raise ConfigError(f"experiment.model: {settings.name}: layer {name or '(the module itself)'}: {problem}")
    if not supermask.masked(module):
        raise ConfigError(f"experiment.model: {settings.name} has no linear, convolution or embedding layer to mask")


def _problem(layer: nn.Module) -> str:
    """Return why a layer cannot be part of a network whose weights are frozen and masked, if it cannot."""
    kind = type(layer).__name__
    if any(is_lazy(parameter) for parameter in layer.parameters(recurse=False)):
        return f"{kind} does not know its size yet; use the layer that is not lazy"
    if isinstance(layer, _NormBase) and layer.track_running_stats:
        return f"{kind} keeps running statistics of batches, which peers do not share; use GroupNorm or LayerNorm"
    if isinstance(layer, STRANGE):
        return f"{kind} is not supported; use convolutions, linear layers or attention"
    if isinstance(layer, nn.Embedding) and (layer.sparse or layer.max_norm is not None):
        return "an embedding with sparse gradients or max_norm is not supported"
    attention = isinstance(layer, nn.MultiheadAttention)
    if isinstance(layer, supermask.LAYERS) and not attention and "weight" not in layer._parameters:
        return f"the weight of this {kind} is computed (a parametrisation); use the plain layer"
    return ""


def _check_output(settings: ModelConfig, module: nn.Module, inputs: Inputs) -> None:
    """Try the network out on two samples."""
    training = module.training
    try:
        with torch.inference_mode():
            logits = module.eval()(_example(inputs, 2))
    except Exception as error:
        raise ConfigError(
            f"experiment.model: {settings.name} fails on samples of {inputs}: {code.told(error)}"
        ) from error
    finally:
        module.train(training)
    if not isinstance(logits, Tensor) or logits.shape != (2, inputs.classes) or logits.dtype != torch.float32:
        got = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"experiment.model: {settings.name} puts out {got} for two samples; expected logits, torch.float32 "
            f"{(2, inputs.classes)}"
        )


def _example(inputs: Inputs, samples: int) -> Tensor:
    tokens = inputs.number == "int64"
    return torch.zeros(samples, *inputs.shape, dtype=torch.int64 if tokens else torch.float32)
