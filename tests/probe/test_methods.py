"""probe/METHODS.md names every metric, and the numbers in it are those of the code."""

import re
from pathlib import Path

from patchbank.probe import leaks
from patchbank.probe.config import C_GRID, SELECTION
from patchbank.probe.protocol import MOST_FOLDS
from patchbank.probe.regression import ALPHAS, HEST_COMPONENTS
from patchbank.probe.statistics import comparisons, continuous, intervals, metrics, multiclass

TEXT = (Path(__file__).resolve().parents[2] / "probe" / "METHODS.md").read_text("utf-8")
WORDS = " ".join(TEXT.split())


def test_every_metric_is_defined() -> None:
    section = TEXT.partition("## Metrics")[2].partition("\n## ")[0].casefold()
    for metric in (*metrics.METRICS.values(), *multiclass.METRICS.values()):
        name = metric.title.casefold().removeprefix("balanced ").partition(" (")[0]
        assert name in section, metric.name


def test_every_metric_of_numbers_is_defined() -> None:
    section = TEXT.partition("## Numbers")[2].partition("\n## ")[0]
    for metric in continuous.METRICS.values():
        assert f"| {metric.title} |" in section
    text = " ".join(section.split())
    assert (
        f"{len(ALPHAS)} penalties from {ALPHAS[0]:.0e} to {ALPHAS[-1]:.0e}".replace("e+0", "e").replace(
            "e-0", "e-"
        )
        in text
    )
    assert f"{HEST_COMPONENTS} components" in text


def test_the_numbers_are_those_of_the_code() -> None:
    assert f"K = {MOST_FOLDS} outer folds" in WORDS
    assert f"{len(C_GRID)} values of C from {C_GRID[0]:.0e} to {C_GRID[-1]:.0f}".replace("e-0", "e-") in WORDS
    assert f"{metrics.BINS} bins" in WORDS
    assert f"fewer than {comparisons.FEW_CLUSTERS} groups" in WORDS
    assert f"more than {100 * intervals.UNDEFINED_DRAWS:.0f} % of the draws" in WORDS
    assert f"closer than {leaks.NEAR} of the median distance" in WORDS
    for name in SELECTION:
        assert name.replace("_", " ").replace("log loss", "log-loss").replace("auroc", "AUROC") in WORDS


def test_what_it_points_to_exists() -> None:
    root = Path(__file__).resolve().parents[2]
    files = set(re.findall(r"`((?:probe|finetune|datasets)/[\w/]+\.py)`", TEXT))
    benchmarks = set(re.findall(r"`(?:python tests/benchmarks/)?(\w+\.py)`", TEXT))
    assert len(files) > 5
    assert len(benchmarks) > 2
    assert [name for name in files if not (root / name).exists()] == []
    assert [name for name in benchmarks if not (root / "tests" / "benchmarks" / name).exists()] == []
