"""What a training step minimises: targets, weights of rows, the loss, mixed batches, averaged weights."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

from ..errors import InvalidRequest
from .augment import draw
from .labels import TWO_CLASSES, Labels
from .lora import attention_blocks
from .recipe import Recipe

# trained tensors that are no weights of a layer: tokens, positions, learned queries
_NO_WEIGHT = re.compile(
    r"(?:pos_?embed\w*|position_embeddings?(?:\.weight)?|positional_embedding|relative_position_bias_table"
    r"|\w*_tokens?|class_embedding|latent|query)$"
)
# of networks without attention: timm's ConvNeXt, EfficientNet and the like; ResNets
_STAGE = re.compile(r"(?:^|\.)(?:(?:stages|blocks|layers)\.\d+|layer\d+)$")


def targets_of(
    y: np.ndarray, votes: np.ndarray | None, recipe: Recipe, labels: Labels = TWO_CLASSES
) -> np.ndarray:
    """What the network is to say, float32: (n,) in [0, 1] for two classes, (n, K) for K, whose rows sum to 1,
    or (n, T) standardised numbers.

    y : see `Labels`; votes : share of the experts' votes for class 1, (n,), or for each of K classes, (n, K);
        NaN where there are none
    With `labels = "votes"` the shares where they are known, else the label; then moved by `smoothing` to 1/2
    (1/K).
    Raises InvalidRequest where no row has votes.
    """
    if labels.targets:
        return labels.standardised(y).astype(np.float32)
    targets = (
        y.astype(np.float32) if labels.binary else np.eye(labels.outputs, dtype=np.float32)[y.astype(int)]
    )
    if recipe.labels == "votes":
        if votes is None or np.isnan(votes).all():
            raise InvalidRequest('labels = "votes": no training row has votes; use labels = "majority"')
        targets = np.where(np.isnan(votes), targets, votes).astype(np.float32)
    return targets * (1 - recipe.smoothing) + recipe.smoothing / max(2, labels.outputs)


def row_weights(
    y: np.ndarray, domains: Sequence[str] | None, recipe: Recipe, labels: Labels = TWO_CLASSES
) -> np.ndarray:
    """Weights of rows in the loss, float32 (n,), mean 1.

    `balance = "weights"`: n / (K x count of the row's class), scikit-learn's "balanced".
    `balance_domains`: n / (domains x count of the row's domain), n and counts of the row's class (of numbers
    of all rows)
    Raises InvalidRequest where domains are asked for and not known.
    """
    codes = labels.code(y)
    weights = np.ones(len(y), np.float64)
    of_classes = [codes == k for k in np.unique(codes)]
    if recipe.balance == "weights":
        for of_class in of_classes:
            weights[of_class] = len(y) / (len(of_classes) * of_class.sum())
    if recipe.balance_domains:
        if domains is None or not all(domains):
            raise InvalidRequest("balance_domains: rows without a domain; set balance_domains = false")
        names = np.asarray(domains, dtype=object).astype(str)
        for of_class in of_classes:  # within a class, so that the classes' share stays
            _, code, count = np.unique(names[of_class], return_inverse=True, return_counts=True)
            weights[of_class] *= of_class.sum() / (len(count) * count[code])
    return weights.astype(np.float32)


def loss_of(outputs: Tensor, targets: Tensor, recipe: Recipe, labels: Labels = TWO_CLASSES) -> Tensor:
    """Loss of each row, float32 (b,); outputs, targets : (b,), or (b, K) of K > 2 classes or numbers.

    Cross-entropy, for soft labels too.
    Focal: |target - p|^gamma times the cross-entropy, class by class, which for hard labels is Lin et al.
    (ICCV 2017) without alpha, for soft ones the quality focal loss of Li et al. (NeurIPS 2020).
    Ranked: the ranked probability score (Epstein 1969), the sum of squared differences between cumulative
    probabilities, so that a call two grades off costs more than one.
    Squared error: the mean over the (standardised) numbers.
    """
    if labels.targets:
        return ((outputs - targets) ** 2).mean(1)
    if labels.binary:
        entropy = binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        if recipe.loss == "focal":
            return (targets - torch.sigmoid(outputs)).abs() ** recipe.focal_gamma * entropy
        return entropy
    log_p = log_softmax(outputs, dim=1)
    if recipe.loss == "ranked":
        return ((log_p.exp().cumsum(1) - targets.cumsum(1)) ** 2).sum(1)
    each = -targets * log_p
    if recipe.loss == "focal":
        each = (targets - log_p.exp()).abs() ** recipe.focal_gamma * each
    return each.sum(1)


def mixed(
    images: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe, epoch: int, batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """MixUp (Zhang et al., ICLR 2018): each row and another of the batch, lambda ~ Beta(mixup, mixup).

    A target counts by its share of the weight, not of the image alone: weight x loss is then the sum of
    lambda w_a loss(y_a) and (1 - lambda) w_b loss(y_b), as far as the loss is linear in the target, and
    classes or domains that weigh more do so in a mixed row too.
    Drawn from seed, epoch and number of the batch, so that a resumed epoch mixes the same.
    """
    if not recipe.mixup:
        return images, targets, weights
    rng = draw("mixup", recipe.seed, epoch, batch)
    share = float(rng.beta(recipe.mixup, recipe.mixup))
    other = torch.as_tensor(rng.permutation(len(images)), device=images.device)
    first, second = share * weights, (1 - share) * weights[other]
    of_first = first / (first + second)
    if targets.ndim == 2:
        of_first = of_first[:, None]
    targets = of_first * targets + (1 - of_first) * targets[other]
    return share * images + (1 - share) * images[other], targets, first + second


def rate_scales(network: nn.Module, recipe: Recipe) -> dict[str, float]:
    """Share of the learning rate of each trained parameter of the backbone: `layer_decay` ^ blocks above it.

    Blocks are the attention blocks, of a network without them its stages; what stands before the first block
    is one further down, what stands after the last has 1.
    Raises InvalidRequest where the network has neither.
    """
    names = [
        name for name, p in network.named_parameters() if p.requires_grad and not name.startswith("head.")
    ]
    if recipe.layer_decay == 1:
        return dict.fromkeys(names, 1.0)
    blocks = attention_blocks(network) or _stages(network)
    if not blocks:
        raise InvalidRequest(
            f"layer_decay {recipe.layer_decay:g}: this network has neither attention blocks nor stages; set "
            "layer_decay = 1"
        )
    number = {block: i for i, block in enumerate(blocks)}
    scales, seen = {}, -1
    for name in names:  # in the order of the forward pass, as the modules are registered
        inside = [number[block] for block in blocks if name.startswith(f"{block}.")]
        seen = max([seen, *inside])
        after_all = seen == len(blocks) - 1 and not inside
        scales[name] = 1.0 if after_all else recipe.layer_decay ** (len(blocks) - 1 - seen)
    return scales


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The trained parameters as an optimizer takes them: each in one group, with its `full_lr` (the share of
    `rate_scales` of lr, of the head head_lr) and its `weight_decay`, see `decays`.
    """
    scales = rate_scales(network, recipe)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            of_head = name.startswith("head.")
            rate = (recipe.head_lr or recipe.lr) if of_head else recipe.lr * scales[name]
            groups.setdefault((rate, decays(name, parameter, recipe)), []).append(parameter)
    return [
        {"params": of, "full_lr": rate, "weight_decay": recipe.weight_decay if decayed else 0.0}
        for (rate, decayed), of in groups.items()
    ]


def decays(name: str, parameter: Tensor, recipe: Recipe) -> bool:
    """Whether weight decay falls on a trained tensor: with `decay_on = "weights"` on matrices and kernels,
    those of LoRA too, not on vectors (biases, norms, layer scales), tokens and position embeddings.
    """
    vector = parameter.ndim < 2 or (parameter.ndim > 2 and parameter.squeeze().ndim < 2)  # (1, C, 1, 1)
    return recipe.decay_on == "all" or not (vector or _NO_WEIGHT.search(name))


def _stages(network: nn.Module) -> list[str]:
    """Names of the outermost stages of a convolutional network ("backbone.model.stages.0", ...)."""
    found: list[str] = []
    for name, _ in network.named_modules():
        if _STAGE.search(name) and not any(name.startswith(f"{stage}.") for stage in found):
            found.append(name)
    return found


def changing_tensors(network: nn.Module) -> dict[str, Tensor]:
    """What changes while training: trained parameters, and buffers where all weights train."""
    trained: dict[str, Tensor] = {n: p for n, p in network.named_parameters() if p.requires_grad}
    everything = len(trained) == sum(1 for _ in network.parameters())
    return {**trained, **dict(network.named_buffers())} if everything else trained


class Average:
    """Exponential moving average of what changes while training: parameters, and with them the statistics of
    batch norm, which belong to the weights that made them.

    Its decay in step t is min(decay, (1 + t) / (10 + t)), so that the first weights do not last. Whole
    numbers (counters) are taken as they are.
    tensors : by name, on the network's devices
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {n: t.detach().clone() for n, t in changing_tensors(network).items()}

    def update(self, network: nn.Module, step: int) -> None:
        """After optimizer step number `step`, from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, tensor in changing_tensors(network).items():
                if tensor.is_floating_point():
                    self.tensors[name].lerp_(tensor, 1 - decay)
                else:
                    self.tensors[name].copy_(tensor)

    def swap(self, network: nn.Module) -> None:
        """The network gets the averages, and these the network's weights; twice is as before."""
        with torch.no_grad():
            for name, tensor in changing_tensors(network).items():
                kept = tensor.detach().clone()
                tensor.copy_(self.tensors[name])
                self.tensors[name] = kept

    def state(self) -> dict[str, Tensor]:
        """For the state file."""
        return {f"average.{name}": tensor for name, tensor in self.tensors.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """From a state file's tensors."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[f"average.{name}"])
