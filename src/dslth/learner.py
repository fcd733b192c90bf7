"""One peer's learning: its data, scores and masks; the algorithm between two exchanges, with bit masks in and out."""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from math import ceil
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dslth import algorithm
from dslth.coding.forecast import Forecast
from dslth.config import DeviceConfig, ExperimentConfig, Inputs, Scores
from dslth.errors import ConfigError
from dslth.exchange.streams import MaskCoding
from dslth.learning import data, networks, partition, supermask
from dslth.masks import BitMask
from dslth.runs import tickets
from dslth.runs.events import Accuracies
from dslth.seeds import Stream

Indices = NDArray[np.int64]

__all__ = ["Common", "Division", "Learner", "Samples", "normalised", "processor", "threads"]

EVALUATION_SHARE = 0.1
"""Share of a round's compute that evaluation takes at most, unless a file says how often to evaluate."""
EVALUATION_BATCH = 32
"""Images that are classified at a time: more take more memory and no less time."""


def processor(device: str = "cpu") -> str:
    """Return what torch computes with, as in ``AVX2`` or ``CUDA 9.0``; with another one, sums differ in last bits."""
    if device == "cpu":
        return str(torch.backends.cpu.get_cpu_capability())
    return "CUDA {}.{}".format(*torch.cuda.get_device_capability(device))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with ``count`` threads when this thread calls it, and afterwards with as many as before.

    torch keeps that number per calling thread. But the first query or computation of a thread overwrites it with the
    number that any thread has set last; so the number is queried before it is set.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _available(device: str) -> str:
    """Return the name of a device that torch can compute on; raises ConfigError if it cannot."""
    count = 0 if device == "cpu" else torch.cuda.device_count()
    if device != "cpu" and int(device.partition(":")[2] or 0) >= count:
        raise ConfigError(f"device {device}: torch finds {count or 'no'} CUDA devices here; choose another, or cpu")
    return device


class Division:
    """The data set of a run, and who gets which samples of it; with validation its test set is not there.

    Where each peer has data of its own, it is the division of those of ``peer``.
    """

    def __init__(self, n_peers: int, experiment: ExperimentConfig, peer: int = 0) -> None:
        self.dataset = data.load(experiment.data.of(peer))
        self._one = experiment.data.each_its_own
        self.shares = partition.divide(experiment, n_peers, self.dataset)
        if experiment.data.validation:
            images, known = self.dataset.train_images, self.dataset.train_labels
            self.dataset = replace(self.dataset, test_images=images, test_labels=known)

    def share(self, peer: int) -> tuple[Indices, Indices, Indices]:
        """Return the numbers of a peer's training samples and own test samples, and of the common test samples."""
        number = 0 if self._one else peer
        return self.shares.train[number], self.shares.test[number], self.shares.common


class Samples:
    """A peer's own data: its training samples, and its two test sets. They are the same for every method."""

    def __init__(
        self,
        peer: int,
        n_peers: int,
        experiment: ExperimentConfig,
        device: DeviceConfig,
        division: Division | None = None,
    ) -> None:
        self.peer, self.seed = peer, experiment.seed
        division = division or Division(n_peers, experiment, peer)
        dataset, (mine, own, common) = division.dataset, division.share(peer)
        self.inputs, self.digest = dataset.inputs, dataset.digest
        self.evaluate_every = _evaluate_every(experiment, len(dataset.test_labels))
        self._images, self._labels = dataset.train_images[mine], torch.from_numpy(dataset.train_labels[mine])
        chosen = np.union1d(own, common)  # an image of both test sets is looked at once
        self._test_images, self._test_labels = (
            dataset.test_images[chosen],
            torch.from_numpy(dataset.test_labels[chosen]),
        )
        self._tests = [torch.from_numpy(np.searchsorted(chosen, test)) for test in (own, common)]
        self._batch = min(device.batch or experiment.algorithm.batch, len(mine))

    def __len__(self) -> int:
        """Count the samples that the peer learns from."""
        return len(self._labels)

    def batch(self, round_: int, step: int) -> tuple[Tensor, Tensor]:
        """Draw the minibatch of a local step: images (n, c, h, w) and labels (n,)."""
        chosen = Stream(self.seed, "batch", self.peer, round_, step).choice(len(self._labels), self._batch)
        return normalised(torch.from_numpy(self._images[chosen])), self._labels[torch.from_numpy(chosen)]

    @torch.inference_mode()
    def accuracies(self, net: Callable[[Tensor], Tensor]) -> Accuracies:
        """Classify both test sets with a function from images to logits."""
        starts = range(0, len(self._test_labels), EVALUATION_BATCH)
        images = torch.from_numpy(self._test_images)
        batches = (normalised(images[start : start + EVALUATION_BATCH]) for start in starts)
        right = torch.cat([net(images).argmax(1) for images in batches]) == self._test_labels
        own, common = self._tests
        shares = [int(right[test].sum()) / len(test) for test in (own, common) if len(test)]
        return Accuracies(shares[0], shares[1] if len(shares) > 1 else None)


class Common:
    """What the learners of a run's peers have in common; those of one thread may share one."""

    def __init__(self, n_peers: int, experiment: ExperimentConfig) -> None:
        self.forecasts: dict[tuple[int | str, tuple[int, ...]], Forecast] = {}
        self._peers, self._experiment = n_peers, experiment
        self._division: Division | None = None
        self._nets: dict[str, supermask.FrozenNet] = {}

    def division(self, peer: int) -> Division:
        """Return who gets what of the data that a peer learns from."""
        if self._division is None or self._experiment.data.each_its_own:
            self._division = Division(self._peers, self._experiment, peer)
        return self._division

    def net(self, device: str, inputs: Inputs) -> supermask.FrozenNet:
        """Return the frozen network on a device."""
        if device not in self._nets:
            self._nets[device] = networks.frozen(self._experiment, inputs, device)
        return self._nets[device]


class Learner:
    """What a peer knows and learns. All randomness comes from (seed, peer, round, step)."""

    def __init__(
        self,
        peer: int,
        n_peers: int,
        experiment: ExperimentConfig,
        device: DeviceConfig,
        common: Common | None = None,
    ) -> None:
        self.peer, self.seed = peer, experiment.seed
        self._experiment, self._algorithm = experiment, (settings := experiment.algorithm)
        self._threads, self._device = device.threads, _available(device.device)
        with threads(self._threads):
            common = common or Common(n_peers, experiment)
            self._samples = Samples(peer, n_peers, experiment, device, common.division(peer))
            self.net, self._forecasts = common.net(self._device, self._samples.inputs), common.forecasts
            self._scores = self._placed(supermask.initial_scores(self.net, self.seed, self._owner(peer)))
            # before the first exchange every neighbour's mask is one common Bernoulli(k) mask
            first = supermask.bernoulli_masks(self.net, self.seed, settings.density) if settings.exchange else None
            self._means = self._placed(first or [torch.zeros_like(w) for w in self.net.weights])
            self._own = [torch.zeros_like(w, dtype=torch.bool) for w in self.net.weights]
            self._directions = [torch.zeros_like(w) for w in self.net.weights] if settings.heavy_ball else []
        shapes = [tuple(w.shape) for w in self.net.weights]
        self._setting = algorithm.Setting(
            densities=supermask.densities(settings.density if device.density is None else device.density, shapes),
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            fine_tune_lr=settings.fine_tune_lr,
            lasso=settings.lasso,
            min_filter_weights=settings.min_filter_weights,
            mean=settings.mean,
            inertia=settings.inertia,
            momentum=settings.momentum,
            heavy_ball=settings.heavy_ball,
            relative=settings.relative,
            lift=settings.lift,
            flip=settings.flip,
        )
        self._now = self._setting  # of the round that is played
        self._gradient: list[Tensor] = []
        self._used: list[Tensor] | None = None

    def _placed(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return tensors on the peer's device; there they are the same ones if they are there already."""
        return [tensor.to(self._device) for tensor in tensors]

    def _owner(self, peer: int) -> int | Literal["common"]:
        return peer if self._algorithm.scores == Scores.OWN else "common"

    @cached_property
    def _first_masks(self) -> list[NDArray[np.bool_]]:
        """The mask that stands for every neighbour before the first exchange."""
        with threads(self._threads):
            masks = supermask.bernoulli_masks(self.net, self.seed, self._algorithm.density)
        return [mask.numpy().astype(np.bool_) for mask in masks]

    def forecast(self, peer: int, ones: Sequence[int]) -> Forecast:
        """Work out from the seed what any peer's mask is before it learns anything; ``ones`` are those of its hello."""
        key = self._owner(peer), tuple(ones)
        if key not in self._forecasts:
            magnitudes = supermask.first_magnitudes(self.seed, key[0], self._first_masks, self._algorithm.lift)
            self._forecasts[key] = Forecast(magnitudes, ones)
        return self._forecasts[key]

    @property
    def coding(self) -> MaskCoding:
        """How masks go on the wire."""
        fewer = self._algorithm.min_filter_weights > 0
        return MaskCoding(self.sizes, self._experiment.codec, self.forecast, fewer=fewer, flip=self._algorithm.flip)

    @property
    def settings(self) -> dict[str, str]:
        """What peers must share to understand each other, besides the run's settings: what own data and layers are."""
        data, shared = self._experiment.data, {}
        if data.each_its_own:
            shared["inputs"] = str(self._samples.inputs)
        elif data.own:
            shared["data"] = self._samples.digest
        if self._experiment.model.own:
            shared["layers"] = networks.structure(self.net)
        return shared

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of weights of each masked layer."""
        return self.net.sizes

    @property
    def training_samples(self) -> int:
        """Number of samples that this peer learns from."""
        return len(self._samples)

    @property
    def evaluate_every(self) -> int:
        """Number of rounds from one evaluation to the next."""
        return self._samples.evaluate_every

    @property
    def ones(self) -> tuple[int, ...]:
        """Number of ones that this peer's mask has in each layer (at most, with structured removal)."""
        return tuple(n - supermask.dropped(n, k) for n, k in zip(self.sizes, self._setting.densities, strict=True))

    def local_update(self, round_: int) -> tuple[BitMask, float]:
        """Take the round's local steps (design, steps 1 to 6); return the mask to send and the mean loss."""
        losses: list[float] = []
        total: list[Tensor] = []
        steps = self._algorithm.local_steps
        done = min(1.0, round_ / self._experiment.rounds)
        self._now = algorithm.scheduled(self._setting, self._algorithm.schedule, done)
        with threads(self._threads):
            for step in range(steps):
                images, labels = self._placed(self._samples.batch(round_, step))
                gradient = algorithm.gradient(
                    self.net, self._masks(), self._scores, self._lifts(), images, labels, self._setting
                )
                directions = algorithm.directions(self._directions, gradient.g, self._setting)
                self._scores, self._used = algorithm.local_step(self._scores, directions, self._now), None
                self._directions = directions if self._setting.heavy_ball else []
                losses.append(gradient.loss)
                total = [t.add_(g) for t, g in zip(total, gradient.g, strict=True)] if total else gradient.g
            self._gradient = [t.div_(steps) for t in total] if steps > 1 else total
            masks = self._masks()
            self._own, self._used = masks, None
            noise = np.random.default_rng(secrets.randbits(128))  # the neighbours know the run's seed
            return _packed(algorithm.respond(masks, self._setting, noise)), float(np.mean(losses))

    def _lifts(self) -> list[Tensor]:
        """Return what lifts the scores: the neighbours' mean ``a``, with inertia also the peer's own last mask."""
        return algorithm.lifts(self._means, self._own, self._setting)

    def _masks(self) -> list[Tensor]:
        """Return the masks of the current scores and neighbours' masks (steps 2, 6 and 8), extracted once for all."""
        if self._used is None:
            self._used = algorithm.extract_masks(self._scores, self._lifts(), self._setting)
        return self._used

    def fine_tune(self, masks: Mapping[int, BitMask]) -> None:
        """Use the neighbours' new masks (step 7); missing neighbours are left out of the mean."""
        if not self._algorithm.exchange:
            return
        with threads(self._threads):
            mean = algorithm.combine([self._unpacked(masks[peer]) for peer in sorted(masks)], self._own, self._setting)
            self._means = algorithm.smoothed(self._means, mean, self._setting)
            self._scores = algorithm.fine_tune(self._scores, self._gradient, self._means, self._now)
            self._used = None

    def _unpacked(self, mask: BitMask) -> list[Tensor]:
        layers = zip(mask.arrays(), self.net.weights, strict=True)
        return self._placed(torch.from_numpy(layer).reshape(w.shape) for layer, w in layers)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return what was learned between two rounds: scores, neighbours' mean and own last mask of each layer.

        With a heavy ball, the last step's direction too.
        """
        kinds = {"scores": self._scores, "means": self._means, "own": self._own, "directions": self._directions}
        return {f"{kind}.{n}": layer.cpu().numpy() for kind, layers in kinds.items() for n, layer in enumerate(layers)}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state; raises KeyError or ValueError if it is not one of this network."""

        def layers(kind: str) -> list[Tensor]:
            shapes = enumerate(w.shape for w in self.net.weights)
            return self._placed(torch.from_numpy(state[f"{kind}.{n}"].reshape(shape)) for n, shape in shapes)

        self._scores, self._means = layers("scores"), layers("means")
        self._directions = layers("directions") if self._setting.heavy_ball else []
        self._own, self._used = [m.bool() for m in layers("own")], None

    def mask(self) -> BitMask:
        """Return the mask that is in use (step 8)."""
        with threads(self._threads):
            return _packed(self._masks())

    def result(self) -> tuple[BitMask, tickets.Ticket]:
        """Return the mask that is in use, and its ticket."""
        mask, shapes = self.mask(), tuple(tuple(w.shape) for w in self.net.weights)
        inputs = self._samples.inputs if self._experiment.data.own else None
        return mask, tickets.Ticket(self.peer, self._experiment, shapes, mask, inputs)

    def evaluation(self) -> Callable[[], Accuracies]:
        """Return what classifies both test sets with the mask that is in use now (step 8)."""
        with threads(self._threads):
            masks = self._masks()

        def evaluate() -> Accuracies:
            with threads(self._threads):
                masked = algorithm.masked_weights(self.net, masks)
                return self._samples.accuracies(lambda images: self.net(masked, images.to(self._device)).cpu())

        return evaluate


def _evaluate_every(experiment: ExperimentConfig, test_images: int) -> int:
    """Return the number of rounds from one evaluation to the next: what the file says, or what keeps to the share.

    The same on every peer and machine: images are counted, not seconds. To learn from an image (forward and back)
    takes at least twice as long as to classify it.
    """
    if experiment.evaluate_every != "auto":
        return experiment.evaluate_every
    classified = min(2 * experiment.data.test_samples, test_images)
    learned = experiment.algorithm.local_steps * experiment.algorithm.batch
    return ceil(classified / (EVALUATION_SHARE * 2 * learned))


def _packed(masks: Sequence[Tensor]) -> BitMask:
    return BitMask.from_arrays(m.cpu().numpy() for m in masks)


def normalised(images: Tensor) -> Tensor:
    """Turn bytes (uint8) into floats in [-1, 1]; features and tokens stay as they are."""
    return images.float().div_(127.5).sub_(1) if images.dtype == torch.uint8 else images
