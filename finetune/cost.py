"""What a training costs: steps that were timed, and the hours that follow from them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import PatchbankError

if TYPE_CHECKING:
    from .model import Classifier
    from .recipe import Recipe


@dataclass(frozen=True)
class Cost:
    """Patches a second in training and in scoring, measured on `device`; `epochs` to assume.

    epoch_size : patches drawn in an epoch, 0: all training rows
    symmetries : passes of a patch when the trained model scores, see the recipe
    measured : what was timed; note : why nothing could be
    """

    train_rate: float
    score_rate: float
    epochs: int
    device: str
    epoch_size: int = 0
    measured: str = ""
    note: str = ""
    symmetries: int = 1

    def __str__(self) -> str:
        if self.note:
            return self.note
        rates = f"{self.train_rate:.1f} patches/s in training, {self.score_rate:.1f} in scoring"
        return f"{rates}, {self.epochs} epochs" + (f"; {self.measured}" if self.measured else "")

    def hours(self, rows: int, scored: int, folds: int) -> float:
        """Of all folds and epochs: each fold trains on the other folds' rows and scores its own every epoch;
        the trained model scores these and the `scored` ones of the evaluation sets.
        """
        own = rows / folds
        training = self.epochs * (self.epoch_size or rows - own) / self.train_rate
        scoring = (self.epochs * own + self.symmetries * (own + scored)) / self.score_rate
        return folds * (training + scoring) / 3600


def measure_cost(encoder: str, *, recipe: str, device: str = "auto", steps: int = 3, **changes: Any) -> Cost:
    """Time a few steps of the recipe's batch size on the encoder's architecture with random weights.

    changes : values of the recipe
    """
    import torch

    from ..extract.devices import resolve_devices
    from .model import base_card, classifier
    from .recipe import load_recipe

    nan = float("nan")
    try:
        chosen = load_recipe(recipe, encoder=encoder, **changes)
        place = str(resolve_devices(device)[0])
        card = base_card(encoder, chosen)
        network, _ = classifier(card, chosen, weights=None)
    except PatchbankError as error:
        return Cost(nan, nan, 0, "", note=f"could not be measured: {error}")
    n, side, threads = chosen.batch_size, card.transform.size, torch.get_num_threads()
    try:
        training, scoring = _seconds_of_steps(network, chosen, place, steps)
    except torch.OutOfMemoryError:
        note = f"could not be measured: {n} patches of {side} px do not fit into the memory of {place}"
        return Cost(nan, nan, 0, "", note=f"{note}; set batch_size and accumulate")
    on_cpu = f"{place}, {threads} thread{'s' if threads > 1 else ''}"
    name = torch.cuda.get_device_name() if place.startswith("cuda") else on_cpu
    measured = (
        f"{steps} training and {steps} scoring steps of {n} patches ({side} px, {chosen.precision}), timed "
        f"on {name} with random weights"
    )
    symmetries = chosen.symmetries
    return Cost(
        n / training, n / scoring, chosen.epochs, name, chosen.epoch_size, measured, symmetries=symmetries
    )


def _seconds_of_steps(
    network: "Classifier", recipe: "Recipe", device: str, steps: int
) -> tuple[float, float]:
    """Seconds of a training step without the optimizer's part, and of a scoring step of as many patches."""
    import torch

    from ..extract.allocator import keep_pages
    from .train import autocast, training_mode

    if device == "cpu":
        keep_pages()
    network.to(device)
    side = network.transform.size
    batch = torch.zeros(recipe.batch_size, 3, side, side, device=device)

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    def seconds(run: Callable[[], None]) -> float:
        run()  # the first pass allocates and compiles
        wait()
        started = time.perf_counter()
        for _ in range(steps):
            run()
        wait()
        return (time.perf_counter() - started) / steps

    def train() -> None:
        with autocast(device, recipe.precision):
            outputs = network(batch)
        outputs.float().sum().backward()

    def score() -> None:
        with torch.no_grad(), autocast(device, recipe.precision):
            network(batch)

    training_mode(network, recipe)
    training = seconds(train)
    network.eval()
    return training, seconds(score)
