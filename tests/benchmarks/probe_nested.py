"""Is the choice as good where the inner folds are the other outer folds, and what does it cost?

    python tests/benchmarks/probe_nested.py [--npz FILE] [--studies N] [--folds K]

The same studies with 5 inner folds of their own and with shared ones: simulated slides of which 200 more are
the test set, or the rows of an npz (X, y, groups), of whose groups two thirds are drawn for training, anew
for each study. 40 strengths C, balanced weights, chosen by balanced log-loss.

Printed is the mean over the studies with each, and the paired difference with its standard error: of AUROC
and balanced log-loss out of fold and of the folds' models on the test rows; of what out-of-fold AUROC is
above the models' on the test rows; of log10 C and its deviation between the folds of a study. Then how many
folds chose the same C, fits, and CPU seconds.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from patchbank.datasets.folds import make_folds
from patchbank.probe.config import ProbeConfig
from patchbank.probe.protocol import make_plan, run_protocol
from patchbank.probe.selection import criterion
from patchbank.probe.statistics.metrics import auroc

WAYS: tuple[int | str, ...] = (5, "shared")
POPULATIONS = ((20, 1.0), (20, 2.0), (60, 1.0), (60, 2.0))  # slides, distance of the classes
DIM = 60


@dataclass(frozen=True)
class Study:
    """Training rows with their groups, and test rows."""

    X: np.ndarray
    y: np.ndarray
    groups: np.ndarray
    Z: np.ndarray
    z: np.ndarray


def simulated(slides: int, signal: float, studies: int) -> Iterator[Study]:
    """Slides of 15 rows with effects and a prevalence of their own, a fifth of the rows positive."""
    for seed in range(studies):
        rng = np.random.default_rng(seed)
        effect = rng.standard_normal(DIM) * (1 + np.arange(DIM)) ** -0.5
        effect *= signal / np.linalg.norm(effect)

        def draw(count: int, rng: Any = rng, effect: Any = effect) -> tuple[np.ndarray, np.ndarray, Any]:
            slide = np.repeat(np.arange(count), 15)
            chance = 1 / (1 + np.exp(-(np.log(0.25) + 0.5 * rng.standard_normal(count))))
            y = (rng.random(len(slide)) < chance[slide]).astype(int)
            X = rng.standard_normal((len(slide), DIM)) + 0.5 * rng.standard_normal((count, DIM))[slide]
            return (X + np.outer(y, effect)).astype(np.float32), y, slide.astype(str).astype(object)

        (X, y, groups), (Z, z, _) = draw(slides), draw(200)
        yield Study(X, y, groups, Z, z)


def drawn(file: Path, studies: int) -> Iterator[Study]:
    """Two thirds of the groups of an npz, and the others as the test set."""
    with np.load(file, allow_pickle=False) as stored:
        X, y, groups = stored["X"], stored["y"].astype(int), stored["groups"].astype(str).astype(object)
    names = np.unique(groups)
    for seed in range(studies):
        order = np.random.default_rng(seed).permutation(names)
        training = np.isin(groups, order[: 2 * len(names) // 3])
        yield Study(X[training], y[training], groups[training], X[~training], y[~training])


def compare(studies: Iterator[Study], n_folds: int) -> None:
    found: dict[int | str, list[dict[str, float]]] = {way: [] for way in WAYS}
    same, chosen, cpu, fits = 0, 0, dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0)
    for study in studies:
        folds = make_folds(study.y.astype(str), study.groups, n_splits=n_folds).assign(study.groups)
        choices = []
        for way in WAYS:
            config = ProbeConfig(features=("any",), inner_folds=way)
            plan = make_plan(study.y, study.groups, folds, config=config)
            lap = time.process_time()
            run = run_protocol(study.X, study.y, plan, {"test": study.Z}, config=config)
            cpu[way] += time.process_time() - lap
            fits[way] += run.fits["fits"]
            choices.append(np.log10([choice.value for choice in run.fold_choices]))
            out_of_fold, new = (
                auroc(study.y, run.oof_ranking),
                np.mean(auroc(study.z, run.fold_models["test"])),
            )
            loss = -criterion("log_loss", study.y, run.oof[:, None], folds)[0]
            of_test = -criterion("log_loss", study.z, run.fold_models["test"], np.ones(len(study.z))).mean()
            found[way].append(
                {
                    "AUROC out of fold": float(out_of_fold),
                    "AUROC on test rows": float(new),
                    "out of fold less test": float(out_of_fold - new),
                    "log-loss out of fold": float(loss),
                    "log-loss on test rows": float(of_test),
                    "log10 C": float(choices[-1].mean()),
                    "its deviation": float(choices[-1].std()),
                }
            )
        same, chosen = same + int((choices[0] == choices[1]).sum()), chosen + n_folds
    print(f"{'':22} {'own':>9} {'shared':>9} {'difference':>11} {'SE':>8}")
    for name in found[5][0]:
        own, shared = (np.array([one[name] for one in found[way]]) for way in WAYS)
        error = (shared - own).std(ddof=1) / len(own) ** 0.5
        print(f"{name:22} {own.mean():9.4f} {shared.mean():9.4f} {(shared - own).mean():+11.4f} {error:8.4f}")
    print(f"the same C in {same} of {chosen} folds")
    for way in WAYS:
        print(f"inner folds {way}: {fits[way]} fits, {cpu[way]:.1f} CPU s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--npz", type=Path)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--folds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.npz:
        print(f"{arguments.npz.name}, {arguments.studies} draws, {arguments.folds} folds")
        compare(drawn(arguments.npz, arguments.studies), arguments.folds)
        return
    for slides, signal in POPULATIONS:
        print(f"\n{slides} slides, signal {signal}, {arguments.studies} studies, {arguments.folds} folds")
        compare(simulated(slides, signal, arguments.studies), arguments.folds)


if __name__ == "__main__":
    main()
