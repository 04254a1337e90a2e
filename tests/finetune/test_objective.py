"""Targets, weights, losses, MixUp, learning rates by layer, averaged weights: against arithmetic by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from patchbank.errors import InvalidRequest
from patchbank.extract.registry import load_card
from patchbank.finetune.model import classifier
from patchbank.finetune.objective import Average, loss_of, mixed, rate_scales, row_weights, targets_of
from patchbank.finetune.recipe import Recipe
from patchbank.finetune.train import fit
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits


def test_votes_are_soft_labels_where_there_are_any() -> None:
    labels, votes = np.array([1.0, 0.0, 1.0]), np.array([2 / 3, 0.2, np.nan])
    np.testing.assert_allclose(targets_of(labels, votes, Recipe()), labels)
    np.testing.assert_allclose(targets_of(labels, votes, Recipe(labels="votes")), [2 / 3, 0.2, 1])
    np.testing.assert_allclose(targets_of(labels, None, Recipe(smoothing=0.2)), [0.9, 0.1, 0.9])
    for none in (None, np.full(3, np.nan)):
        with pytest.raises(InvalidRequest, match="no training row has votes"):
            targets_of(labels, none, Recipe(labels="votes"))


def test_domains_of_a_class_count_the_same() -> None:
    labels = np.array([1, 1, 1, 0, 0, 0, 0])
    domains = ["a", "a", "b", "a", "b", "b", "b"]
    assert row_weights(labels, None, Recipe()).tolist() == [1] * 7
    np.testing.assert_allclose(row_weights(labels, None, Recipe(balance="weights"))[[0, 3]], [7 / 6, 7 / 8])
    weights = row_weights(labels, domains, Recipe(balance_domains=True))
    np.testing.assert_allclose(weights[:3], [3 / 4, 3 / 4, 3 / 2])
    np.testing.assert_allclose(weights[3:], [2, 2 / 3, 2 / 3, 2 / 3])
    assert weights.mean() == pytest.approx(1)
    for unknown in (None, ["a", *domains[1:-1], ""]):
        with pytest.raises(InvalidRequest, match="rows without a domain"):
            row_weights(labels, unknown, Recipe(balance_domains=True))


def test_the_focal_loss_is_that_of_its_definition() -> None:
    logits, targets = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 1.0, 0.0])
    p = torch.sigmoid(logits)
    right = torch.where(targets == 1, p, 1 - p)
    focal = loss_of(logits, targets, Recipe(loss="focal", focal_gamma=2.0))
    torch.testing.assert_close(focal, -((1 - right) ** 2) * right.log())
    plain = binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(loss_of(logits, targets, Recipe()), plain)
    torch.testing.assert_close(loss_of(logits, targets, Recipe(loss="focal", focal_gamma=0.0)), plain)
    met = loss_of(torch.zeros(1), torch.tensor([0.5]), Recipe(loss="focal"))
    assert met.item() == 0, "a soft label that is met costs nothing"


def test_mixup_mixes_images_targets_and_weights_alike_and_the_same_again() -> None:
    images, targets = torch.arange(24.0).reshape(4, 1, 2, 3), torch.tensor([0.0, 1, 0, 1])
    weights = torch.tensor([1.0, 2, 3, 4])
    recipe = Recipe(mixup=0.4)
    found = mixed(images, targets, weights, recipe, 2, 5)
    again = mixed(images, targets, weights, recipe, 2, 5)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert not torch.equal(found[0], mixed(images, targets, weights, recipe, 2, 6)[0])
    number = images[:, 0, 0, 0] / 6  # each image is known by its first pixel
    other = (found[0][:, 0, 0, 0] / 6 - number).abs()
    assert other.max() > 0
    torch.testing.assert_close(found[2] - 1, found[0][:, 0, 0, 0] / 6)  # weights are the numbers plus 1
    assert mixed(images, targets, weights, Recipe(), 2, 5)[0] is images


@pytest.mark.parametrize("name", ["dinov2-s", "convnextv2-b", "phikon"])
def test_lower_layers_learn_more_slowly(name: str) -> None:
    card = load_card(name)
    if card.grid:
        depth = {"num_hidden_layers": 3} if card.kind == "transformers" else {"depth": 3}
        card = card.replace(arguments={**card.arguments, **depth})
    with torch.device("meta"):
        network, _ = classifier(card, Recipe(method="full"), weights=None)
    scales = rate_scales(network, Recipe(method="full", layer_decay=0.5))
    values = list(scales.values())
    assert values == sorted(values)
    assert values[-1] == 1
    assert set(scales) == {n for n, _ in network.named_parameters() if not n.startswith("head.")}
    if card.grid:
        assert min(values) == 0.5**3
        assert {v for n, v in scales.items() if "embed" in n} == {0.5**3}
    assert set(rate_scales(network, Recipe(method="full")).values()) == {1.0}


def test_averages_of_weights_start_short_and_swap_back() -> None:
    network = nn.Linear(2, 1, bias=False)
    nn.init.constant_(network.weight, 0.0)
    average = Average(network, 0.9)
    seen = 0.0
    for step in range(1, 40):
        nn.init.constant_(network.weight, float(step))
        average.update(network, step)
        decay = min(0.9, (1 + step) / (10 + step))
        seen = decay * seen + (1 - decay) * step
    torch.testing.assert_close(average.tensors["weight"], torch.full((1, 2), seen))
    average.swap(network)
    torch.testing.assert_close(network.weight.data, torch.full((1, 2), seen))
    average.swap(network)
    torch.testing.assert_close(network.weight.data, torch.full((1, 2), 39.0))


def test_a_run_with_everything_resumes_to_the_same_weights(tiny: SimpleNamespace, tmp_path: Path) -> None:
    """Focal loss, votes, domains, MixUp, layer decay, averages; stopped after each epoch, and in one go."""
    train, held = tiny.patches(48, seed=1), tiny.patches(24, seed=2, name="held")
    votes = np.where(train.labels == 1, 0.8, 0.1)
    train = type(train)(train.ids, train.labels, train.read, votes, ["x", "y"] * 24)
    recipe = tiny.recipe(
        epochs=3, patience=3, loss="focal", labels="votes", balance_domains=True, smoothing=0.05, mixup=0.3,
        layer_decay=0.7, ema=0.9, augment=({"step": "d4"},),
    )  # fmt: skip
    networks = []
    network, at = tiny.network(recipe), None
    for name, steps in (("whole", [None]), ("parts", [1, 1, 1])):
        for most in steps:
            network = tiny.network(recipe)
            at = fit(
                network, recipe, train, held, folder=tmp_path / name, run_key={"a": 1}, max_epochs=most,
                progress=False,
            )  # fmt: skip
        networks.append(network)
        assert at is not None
        assert at.epoch == 3
    one, other = (dict(network.named_parameters()) for network in networks)
    assert all(torch.equal(one[n], other[n]) for n in one)
