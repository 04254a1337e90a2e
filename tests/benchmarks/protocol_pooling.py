"""What out-of-fold scores are worth: simulated studies in which the truth is known.

    python tests/benchmarks/protocol_pooling.py [--studies 40]

Slides with effects of their own, 15 patches each, a fifth positive; five outer folds of whole slides. "truth"
is the AUROC of the folds' models on 200 new slides.

1. One feature set, by what chooses and between which class weights: AUROC of the out-of-fold scores as they
   are ("raw"), each fold's standardised by what its inner folds scored ("one scale", reported, see
   `protocol.ranking`), and within folds alone.
2. Several feature sets of one quality: the AUROC of the one that cross-validation over all folds chose (*)
   and of the nested choice ("chosen on folds"), both out of fold, less the truth of what was chosen.
"""

import argparse
from typing import Any

import numpy as np
from patchbank.probe.config import ProbeConfig
from patchbank.probe.protocol import ProtocolRun, make_plan, run_protocol
from patchbank.probe.selection import criterion
from patchbank.probe.statistics.metrics import auroc

C = tuple(10.0**k for k in range(-6, 2))


class Slides:
    """A population of slides. features : how many sets of `dim` columns; signal : distance of the classes."""

    def __init__(self, seed: int, *, features: int = 1, dim: int = 60, signal: float = 2.0) -> None:
        self.rng = np.random.default_rng(seed)
        effect = self.rng.standard_normal((features, dim))
        self.effect = signal * effect / np.linalg.norm(effect, axis=1, keepdims=True)

    def draw(self, slides: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """X float32 (features, n, dim), y (n,), slide (n,)."""
        rng, slide = self.rng, np.repeat(np.arange(slides), 15)
        chance = 1 / (1 + np.exp(-(np.log(0.25) + 0.5 * rng.standard_normal(slides))))
        y = (rng.random(len(slide)) < chance[slide]).astype(int)
        of_slide = 0.5 * rng.standard_normal((len(self.effect), slides, self.effect.shape[1]))
        X = rng.standard_normal((len(self.effect), len(slide), self.effect.shape[1])) + of_slide[:, slide]
        return (X + y[:, None] * self.effect[:, None]).astype(np.float32), y, slide


def study(seed: int, slides: int, config: ProbeConfig, **population: Any) -> tuple[Any, ...]:
    """One study: labels, folds, new labels, and the run of each feature set, scored on 200 new slides."""
    source = Slides(seed, **population)
    X, y, slide = source.draw(slides)
    new, labels, _ = source.draw(200)
    folds = 1 + slide % 5
    plan = make_plan(y, slide.astype(str).astype(object), folds, config=config)
    runs = [run_protocol(a, y, plan, {"new": b}, config=config) for a, b in zip(X, new, strict=True)]
    return y, folds, labels, runs


def worth(run: ProtocolRun, labels: np.ndarray, fold: int | None = None) -> float:
    values = np.asarray(auroc(labels, run.fold_models["new"]))
    return float(values.mean() if fold is None else values[fold])


def pooling(studies: int) -> None:
    heads = ("signal", "raw", "one scale", "within", "truth")
    print(f"{'select':18} {'class weights':14}", *(f"{head:>9}" for head in heads))
    for select, weights in (
        ("auroc", ("balanced",)),
        ("log_loss", ("balanced",)),
        ("balanced_accuracy", ("balanced", "none")),
    ):
        for signal in (0.0, 1.0, 2.0):
            config = ProbeConfig(features=("any",), C=C, select=select, class_weight=weights, inner_folds=4)
            found = []
            for seed in range(studies):
                y, folds, labels, (run,) = study(seed, 20, config, signal=signal)
                within = criterion("auroc", y, run.oof[:, None], folds)[0]
                found.append((auroc(y, run.oof), auroc(y, run.oof_ranking), within, worth(run, labels)))
            means = (signal, *np.mean(found, axis=0))
            print(f"{select:18} {'+'.join(weights):14}", *(f"{value:9.3f}" for value in means))


def choosing(studies: int) -> None:
    print(
        f"\n{'feature sets':>12} {'slides':>6} {'signal':>6} {'* less truth':>12} {'nested less truth':>17}"
    )
    config = ProbeConfig(features=("any",), C=C[::2], select="auroc", inner_folds=4)
    for features, slides, signal in ((10, 20, 0.0), (40, 20, 0.0), (40, 20, 1.0), (40, 40, 1.0)):
        found = []
        for seed in range(studies):
            y, folds, labels, runs = study(seed, slides, config, features=features, signal=signal, dim=20)
            star = runs[int(np.argmax([run.path.max() for run in runs]))]
            pick = [runs[int(np.argmax([run.fold_paths[k].max() for run in runs]))] for k in range(5)]
            nested = np.choose(folds - 1, [run.oof_ranking for run in pick])
            truth = np.mean([worth(run, labels, k) for k, run in enumerate(pick)])
            found.append((auroc(y, star.oof_ranking) - worth(star, labels), auroc(y, nested) - truth))
        of_star, of_nested = np.mean(found, axis=0)
        print(f"{features:12} {slides:6} {signal:6.1f} {of_star:12.3f} {of_nested:17.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=40, help="simulated studies of each design")
    arguments = parser.parse_args()
    pooling(arguments.studies)
    choosing(max(2, arguments.studies // 4))


if __name__ == "__main__":
    main()
