"""Targets, weights, losses, MixUp, learning rates by layer, averaged weights: against arithmetic by hand."""

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from patchbank.errors import InvalidRequest
from patchbank.extract.registry import load_card
from patchbank.finetune.augment import draw
from patchbank.finetune.checkpoint import best_file, load_tensors
from patchbank.finetune.labels import Labels
from patchbank.finetune.model import classifier
from patchbank.finetune.objective import (
    Average,
    loss_of,
    mixed,
    parameter_groups,
    rate_scales,
    row_weights,
    targets_of,
)
from patchbank.finetune.recipe import Recipe, load_recipe, recipe_of_card
from patchbank.finetune.scores import validation_metrics
from patchbank.finetune.train import _Run, epoch_rows, fit, lr_factor, predict_logits
from scipy.special import expit, logit
from sklearn.metrics import mean_squared_error
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


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


@pytest.mark.parametrize("kind", ["two", "three", "numbers"])
def test_mixup_weighs_each_half_of_a_row_by_its_own_weight(kind: str) -> None:
    """weight x loss of a mixed row is the sum of its two rows' losses, each with its weight and share."""
    rng = np.random.default_rng(4)
    labels = {"two": Labels(), "three": CLASSES, "numbers": Labels(classes=(), targets=("a", "b"))}[kind]
    n, shape = 6, {"two": (6,), "three": (6, 3), "numbers": (6, 2)}[kind]
    votes = rng.dirichlet([1, 1, 1], n) if kind == "three" else rng.random(n)
    targets = torch.tensor(rng.normal(size=shape) if kind == "numbers" else votes, dtype=torch.float32)
    weights = torch.tensor(rng.uniform(0.2, 5, n), dtype=torch.float32)
    images, recipe = torch.arange(6.0).reshape(6, 1, 1, 1), Recipe(mixup=0.8)
    found_images, found_targets, found_weights = mixed(images, targets, weights, recipe, 0, 0)
    draws = draw("mixup", recipe.seed, 0, 0)
    share, other = float(draws.beta(0.8, 0.8)), draws.permutation(n)
    assert 0.05 < share < 0.95, "else this tests little"
    torch.testing.assert_close(
        found_images.flatten(), share * torch.arange(6.0) + (1 - share) * torch.arange(6.0)[other]
    )
    outputs = torch.tensor(rng.normal(size=shape), dtype=torch.float32, requires_grad=True)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss.sum(), outputs)[0]

    of_mixed = gradient(found_weights * loss_of(outputs, found_targets, recipe, labels))
    by_hand = gradient(share * weights * loss_of(outputs, targets, recipe, labels))
    by_hand += gradient((1 - share) * weights[other] * loss_of(outputs, targets[other], recipe, labels))
    torch.testing.assert_close(of_mixed, by_hand)


BY_LAYERS = {"dinov2-s": 3, "phikon": 3, "dinov3-s": 3, "convnextv2-b": 4, "tf-efficientnetv2-m": 7}
BY_LAYERS |= {"resnet50": 4, "swin-b": 24}


def on_meta(name: str, recipe: Recipe, blocks: int) -> nn.Module:
    """A card's network without memory, with so many blocks where it is a plain transformer."""
    card = load_card(name)
    if card.grid:
        depth = "num_hidden_layers" if card.kind == "transformers" else "depth"
        card = card.replace(arguments={**card.arguments, depth: blocks})
    with torch.device("meta"):
        return classifier(card, recipe, weights=None)[0]


@pytest.mark.parametrize("name", BY_LAYERS)
def test_lower_layers_learn_more_slowly(name: str) -> None:
    """Against the number in the parameter's own name, which the code does not read."""
    blocks = BY_LAYERS[name]
    network = on_meta(name, Recipe(method="full"), blocks)
    scales = rate_scales(network, Recipe(method="full", layer_decay=0.5))
    assert set(scales) == {n for n, _ in network.named_parameters() if not n.startswith("head.")}
    assert set(rate_scales(network, Recipe(method="full")).values()) == {1.0}
    first = 1 if name == "resnet50" else 0
    for parameter, scale in scales.items():
        found = re.search(r"\.(?:stages|blocks|layers?)\.?(\d+)\.", parameter)
        if name == "swin-b":
            found = re.search(r"\.layers\.(\d+)\.blocks\.(\d+)\.", parameter)
            number = found and (0, 2, 4, 22)[int(found[1])] + int(found[2])
        else:
            number = found and int(found[1]) - first
        if number is not None:
            assert scale == 0.5 ** (blocks - 1 - number), parameter
        elif "downsample" not in parameter:
            stem = re.search(r"embed|cls_token|reg_token|stem|\.conv1\.|\.bn1\.", parameter)
            assert scale == (0.5**blocks if stem else 1.0), parameter
    assert {0.5**k for k in range(blocks + 1)} >= set(scales.values())


def test_layers_that_cannot_be_counted_are_refused() -> None:
    plain = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(InvalidRequest, match=r"neither attention blocks nor stages; set layer_decay = 1"):
        rate_scales(plain, Recipe(layer_decay=0.9))
    assert rate_scales(plain, Recipe()) == {"0.weight": 1.0, "0.bias": 1.0, "1.weight": 1.0, "1.bias": 1.0}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "full"},
        {"layer_decay": 0.5, "decay_on": "all"},
        {"method": "full", "layer_decay": 0.5, "head_lr": 1e-2},
    ],
    ids=str,
)
def test_each_trained_parameter_is_in_one_group_at_its_rate(
    tiny: SimpleNamespace, tmp_path: Path, changes: dict[str, Any]
) -> None:
    recipe = tiny.recipe(lr=1e-3, weight_decay=0.03, epochs=3, warmup=1.0, **changes)
    network, train = tiny.network(recipe), tiny.patches(24, seed=1)
    run = _Run(network, recipe, tmp_path, {}, device="cpu", workers=0, progress=False)
    names = {id(p): n for n, p in network.named_parameters()}
    grouped = [names[id(p)] for group in run.optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(n for n, p in network.named_parameters() if p.requires_grad)
    scales = rate_scales(network, recipe)
    run.train(train)  # three steps of 8, all in the warm-up
    factor = lr_factor(recipe, 2, 3)
    assert 0 < factor < 1
    for group in run.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            weight = not name.endswith(("bias", "cls_token", "pos_embed", "gamma")) and "norm" not in name
            assert group["weight_decay"] == (0.03 if weight or recipe.decay_on == "all" else 0), name
            rate = (recipe.head_lr or recipe.lr) if name.startswith("head.") else recipe.lr * scales[name]
            assert group["lr"] == pytest.approx(rate * factor), name


@pytest.mark.parametrize(
    ("name", "changes", "kept"),
    [
        ("dinov2-s", {}, r"cls_token|pos_embed|bias|norm\d?\.weight|ls\d\.gamma"),
        ("dinov3-s", {}, r"cls_token|reg_token|bias|norm\d?\.weight|gamma_\d"),
        ("convnextv2-b", {}, r"bias|norm\.weight|grn\.weight|stem\.1\.weight|downsample\.0\.weight"),
        ("resnet50", {}, r"bias|bn\d\.weight|downsample\.1\.weight"),
        ("swin-b", {}, r"bias|norm\d?\.weight|relative_position_bias_table"),
        ("phikon", {}, r"cls_token|position_embeddings|bias|layernorm(?:_before|_after)?\.weight"),
        ("dinov2-s", {"method": "lora", "rank": 1}, r"head\.bias"),
        ("dinov2-s", {"method": "lora", "dora": True}, r"lora_magnitude_vector\.default\.weight|head\.bias"),
    ],
)
def test_weight_decay_falls_on_matrices_and_kernels(name: str, changes: dict[str, Any], kept: str) -> None:
    """Against lists of names, which the code does not read."""
    recipe = Recipe(**{"method": "full", "weight_decay": 0.1, **changes})
    network = on_meta(name, recipe, 2)
    decay = {id(p): g["weight_decay"] for g in parameter_groups(network, recipe) for p in g["params"]}
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    assert len(decay) == len(trained)
    without = {n for n, p in trained.items() if decay[id(p)] == 0}
    assert without == {n for n in trained if re.search(rf"(?:^|[._])(?:{kept})$", n)}
    assert {decay[id(p)] for n, p in trained.items() if n not in without} == {0.1}
    every = parameter_groups(network, recipe.replace(decay_on="all"))
    assert {group["weight_decay"] for group in every} == {0.1}


def test_a_decay_on_fewer_tensors_is_another_recipe() -> None:
    before = recipe_of_card({"recipe": {"rank": 8}}, where="a card of before")
    assert before.decay_on == "all"
    assert before.digest == hashlib.blake2b(b"{}", digest_size=8).hexdigest(), "as it was"
    assert Recipe().decay_on == "weights"
    assert Recipe().digest != before.digest
    assert recipe_of_card({"recipe": Recipe().to_dict()}, where="a card") == Recipe()
    assert {load_recipe(name).decay_on for name in ("lora", "full", "midog25")} == {"weights"}
    assert load_recipe("paper", encoder="uni").decay_on == "all"


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


def test_statistics_of_batch_norm_are_averaged_with_the_weights() -> None:
    """torch's own AveragedModel with buffers is the other implementation, at a constant decay."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    average = Average(network, 0.5)
    other = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    other.update_parameters(network)  # which copies the first time
    for step in range(100, 110):  # long after the start, where both decay by .5
        network(torch.randn(8, 3, 6, 6) * step).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(network, step)
        other.update_parameters(network)
    average.swap(network)
    for name, tensor in other.module.state_dict().items():
        if name != "1.num_batches_tracked":
            torch.testing.assert_close(network.state_dict()[name], tensor)
    assert not torch.equal(network[1].get_buffer("running_mean"), torch.zeros(4))
    assert network[1].get_buffer("num_batches_tracked").item() == 10


def test_averaged_weights_are_the_ones_that_are_scored_and_kept(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    recipe = tiny.recipe(epochs=2, patience=2, ema=0.9, choose_on="none", dropout=0.0)
    steps: list[dict[str, torch.Tensor]] = []
    network = tiny.network(recipe)

    def note(*_: object) -> None:
        steps.append({n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad})

    before = {n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad}
    hook = register_optimizer_step_post_hook(note)
    try:
        held = tiny.patches(12, seed=2, name="held")
        at = fit(network, recipe, tiny.patches(24, seed=1), held, folder=tmp_path, run_key={}, progress=False)
    finally:
        hook.remove()
    assert len(steps) == 6
    averaged = before
    for t, weights in enumerate(steps, start=1):
        decay = min(0.9, (1 + t) / (10 + t))
        averaged = {n: decay * averaged[n] + (1 - decay) * weights[n] for n in averaged}
    kept = load_tensors(best_file(tmp_path, 2))
    own = dict(network.named_parameters())
    for name, tensor in averaged.items():
        torch.testing.assert_close(kept[name], tensor)
        torch.testing.assert_close(own[name].data, tensor)
        assert not torch.equal(tensor, steps[-1][name]), "the last step's weights are not kept"
    metrics = validation_metrics(held.labels, predict_logits(network, held))
    assert at.history[-1]["auroc"] == pytest.approx(metrics["auroc"])
    assert at.history[-1]["log_loss"] == pytest.approx(metrics["log_loss"])


def test_eight_symmetries_are_the_mean_of_the_logits(tiny: SimpleNamespace) -> None:
    """Of images that are turned and mirrored here, by the network alone; not the mean of probabilities."""
    network, patches = tiny.network(tiny.recipe()), tiny.patches(5, seed=3)
    for parameter in network.head.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    network.eval()
    logits = np.empty((5, 8))
    for i in range(5):
        image = patches.read(i)
        turned = [np.rot90(image, k) for k in range(4)] + [np.rot90(image[:, ::-1], k) for k in range(4)]
        with torch.no_grad():
            logits[i] = network(torch.stack([network.prepare(np.ascontiguousarray(t)) for t in turned]))
    found = predict_logits(network, patches, symmetries=8, batch_size=2)
    np.testing.assert_allclose(found, logits.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(predict_logits(network, patches), logits[:, 0], atol=1e-5)
    assert logits.std(axis=1).min() > 1e-3, "they differ"
    of_probabilities = logit(expit(logits).mean(axis=1))
    assert np.abs(of_probabilities - found).max() > 1e-6


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


CLASSES, GRADES = (Labels(classes=("a", "b", "c"), ordered=ordered) for ordered in (False, True))
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.3, 0.1]])
HARD = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])
SOFT = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])


@pytest.mark.parametrize("targets", [HARD, SOFT], ids=["hard", "soft"])
def test_cross_entropy_of_three_classes_is_torchs(targets: torch.Tensor) -> None:
    wanted = cross_entropy(LOGITS, targets, reduction="none")
    torch.testing.assert_close(loss_of(LOGITS, targets, Recipe(), CLASSES), wanted)
    no_focus = Recipe(loss="focal", focal_gamma=0.0)
    torch.testing.assert_close(loss_of(LOGITS, targets, no_focus, CLASSES), wanted)


def test_label_smoothing_of_three_classes_is_torchs() -> None:
    y = np.array([0, 2])
    targets = torch.from_numpy(targets_of(y, None, Recipe(smoothing=0.1), CLASSES))
    torch.testing.assert_close(targets.sum(1), torch.ones(2))
    wanted = cross_entropy(LOGITS, torch.from_numpy(y), reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(loss_of(LOGITS, targets, Recipe(), CLASSES), wanted)


def test_focal_loss_of_three_classes_is_that_of_its_definition() -> None:
    found = loss_of(LOGITS, HARD, Recipe(loss="focal", focal_gamma=2.0), CLASSES)
    right = torch.softmax(LOGITS, dim=1)[[0, 1], [0, 2]]
    torch.testing.assert_close(found, -((1 - right) ** 2) * right.log())
    met = loss_of(SOFT.log().clamp_min(-40), SOFT, Recipe(loss="focal"), CLASSES)
    torch.testing.assert_close(met, torch.zeros(2), atol=1e-6, rtol=0)


def test_the_ranked_probability_score_counts_grades() -> None:
    p = torch.softmax(LOGITS, dim=1).numpy()
    wanted = [((np.cumsum(a) - np.cumsum(b)) ** 2).sum() for a, b in zip(p, HARD.numpy(), strict=True)]
    found = loss_of(LOGITS, HARD, Recipe(loss="ranked"), GRADES)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float32))
    sure = torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]])  # two grades off, one, none
    costs = loss_of(sure, HARD[[1, 1, 1]], Recipe(loss="ranked"), GRADES)
    assert costs[0] > 1.9 > 1.1 > costs[1] > 0.9 > 0.01 > costs[2]


def test_the_loss_of_numbers_is_sklearns_on_standardised_ones() -> None:
    rng = np.random.default_rng(0)
    y, outputs = rng.normal(size=(20, 3)) * [1, 10, 100], rng.normal(size=(20, 3)).astype(np.float32)
    labels = Labels(classes=(), targets=("a", "b", "c")).fitted(y)
    targets = targets_of(y, None, Recipe(), labels)
    np.testing.assert_allclose(targets, StandardScaler().fit_transform(y), rtol=1e-5)
    found = loss_of(torch.from_numpy(outputs), torch.from_numpy(targets), Recipe(), labels)
    assert found.mean().item() == pytest.approx(mean_squared_error(targets, outputs), rel=1e-6)
    assert row_weights(y, None, Recipe(), labels).tolist() == [1.0] * 20
    domains = ["x"] * 15 + ["y"] * 5
    weights = row_weights(y, domains, Recipe(balance_domains=True), labels)
    np.testing.assert_allclose(weights[[0, 19]], [20 / 30, 20 / 10])


def test_votes_of_three_classes_are_soft_labels() -> None:
    y, votes = np.array([0, 1]), np.array([[0.6, 0.4, 0.0], [np.nan] * 3])
    found = targets_of(y, votes, Recipe(labels="votes"), CLASSES)
    np.testing.assert_allclose(found, [[0.6, 0.4, 0.0], [0, 1, 0]])


@pytest.mark.parametrize("n_classes", [2, 3])
def test_class_weights_are_scikit_learns(n_classes: int) -> None:
    y = np.random.default_rng(1).choice(n_classes, 90, p=[0.6, 0.4] if n_classes == 2 else [0.6, 0.3, 0.1])
    labels = Labels(classes=tuple("abc"[:n_classes]))
    found = row_weights(y, None, Recipe(balance="weights"), labels)
    np.testing.assert_allclose(found, compute_sample_weight("balanced", y), rtol=1e-6)
    assert found.mean() == pytest.approx(1)
    drawn = epoch_rows(labels.code(y), Recipe(epoch_size=6000), 0)
    counts = np.bincount(y[drawn], minlength=n_classes) / 6000
    np.testing.assert_allclose(counts, 1 / n_classes, atol=0.03)


def test_mixup_mixes_soft_labels_of_three_classes() -> None:
    images, weights = torch.arange(8.0).reshape(4, 1, 1, 2), torch.ones(4)
    targets = torch.eye(3)[[0, 1, 2, 0]]
    _, mixed_targets, _ = mixed(images, targets, weights, Recipe(mixup=0.5), 0, 0)
    torch.testing.assert_close(mixed_targets.sum(1), torch.ones(4))
    assert ((mixed_targets > 0).sum(1) == 2).any()


@pytest.mark.parametrize(
    ("changes", "losses", "logits"),
    [
        ({}, [0.70760001, 0.56234121], [0.56852605, 0.12620319, 0.08399988, 0.63347659]),
        (
            {"method": "full", "lr": 1e-3},
            [0.69082544, 0.59861447],
            [0.39856746, 0.12135501, 0.1346427, 0.45059693],
        ),
        (
            {"loss": "focal", "smoothing": 0.1, "mixup": 0.2, "ema": 0.9, "accumulate": 2},
            [0.11853237, 0.13377499],
            [0.51607323, 0.37740242, 0.37285005, 0.53460649],
        ),
        (
            {"balance": "weights", "balance_domains": True, "smoothing": 0.1, "ema": 0.9},
            [0.936887, 0.65652874],
            [-0.39987645, -0.49342695, -0.50741392, -0.37634072],
        ),
    ],
    ids=["lora", "full", "mixed", "weighted"],
)  # fmt: skip
def test_two_classes_are_trained_as_before_there_were_more(
    tiny: SimpleNamespace, tmp_path: Path, changes: dict[str, Any], losses: list[float], logits: list[float]
) -> None:
    """Recorded with the version that had two classes only."""
    recipe = tiny.recipe(epochs=2, patience=2, augment=({"step": "d4"},), **changes)
    network, train = tiny.network(recipe), tiny.patches(40, seed=1)
    train = type(train)(train.ids, train.labels, train.read, None, ["x", "y"] * 20)
    held = tiny.patches(20, seed=2, name="val")
    at = fit(network, recipe, train, held, folder=tmp_path, run_key={"a": 1}, progress=False)
    assert [e["loss"] for e in at.history] == pytest.approx(losses, rel=1e-3)
    found = predict_logits(network, tiny.patches(6, seed=3, name="new"), symmetries=8)
    assert found[:4] == pytest.approx(logits, abs=2e-3)
