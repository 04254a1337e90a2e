"""What a command takes before and around its work: seconds in a new process, and what it imports.

    python tests/benchmarks/start_time.py [--folder DIR] [--repeats 3]

DIR holds what `patchbank quickstart` leaves; it is made where it is missing (half a minute). Everything is
cached before a command is timed; the shortest of the repeats counts. CPU seconds are of user and system, of
it and its workers.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "sklearn",
    "scipy.stats",
    "pandas",
    "pydantic",
    "zarr",
)
STUDY = """name = "study"
title = "One encoder"
train = "data/synthetic-mitoses.toml"
tests = ["data/synthetic-external.toml"]

[[system]]
name = "EfficientNet-Lite0"
encoder = "efficientnet-lite0"
"""
COMMANDS = (
    "--help",
    "probe run --help",
    "doctor",
    "datasets ls",
    "datasets show ami-br",
    "datasets check data/synthetic-mitoses.toml",
    "encoders ls",
    "encoders show efficientnet-lite0",
    "extract data/synthetic-mitoses.toml -b bank -e efficientnet-lite0",
    "cache ls --bank bank",
    "cache info efficientnet-lite0.full --bank bank",
    "cache verify --bank bank",
    "probe run data/synthetic-mitoses.toml -b bank -e efficientnet-lite0",
    "probe few-shot data/synthetic-mitoses.toml -b bank -e efficientnet-lite0",
    "probe robustness data/synthetic-mitoses.toml -b bank -e efficientnet-lite0",
    "probe report results --out report.html",
    "finetune recipe",
    "run study.toml",
    "predict results images --out predictions.csv",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, help="with the quickstart's files (default: a temporary one)")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "bank").exists():
            run(["quickstart", "--out", str(folder)], folder)
        prepare(folder)
        print(f"{'command':62} {'wall s':>7} {'CPU s':>7} {'import s':>8} {'modules':>8}  of them")
        for command in COMMANDS:
            words = command.split()
            run(words, folder)  # what it caches, and the files in memory
            laps = [run(words, folder) for _ in range(args.repeats)]
            modules, importing = imported(words, folder)
            heavy = ", ".join(name for name in HEAVY if name in modules)
            wall, cpu = (min(times) for times in zip(*laps, strict=True))
            shown = f"{wall:7.2f} {cpu:7.2f} {importing:8.2f} {len(modules):8}  {heavy}"
            print(f"patchbank {command:52} {shown}", flush=True)


def prepare(folder: Path) -> None:
    """The study's file, and a folder of 20 images."""
    (folder / "study.toml").write_text(STUDY, "utf-8")
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for file in sorted((folder / "data").rglob("*.png"))[:20]:
        (images / file.name).write_bytes(file.read_bytes())


def run(words: Sequence[str], folder: Path) -> tuple[float, float]:
    """Wall and CPU seconds of a command in a new process."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "patchbank", *words], cwd=folder, check=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wall, after = time.perf_counter() - start, os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, spent


def imported(words: Sequence[str], folder: Path) -> tuple[set[str], float]:
    """The modules that a command imports, and how many seconds that takes, the measuring included."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "patchbank", *words], cwd=folder, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    lines = re.findall(r"^import time: +(\d+) \|[ \d]+\| +(\S+)$", done.stderr, re.M)
    return {name for _, name in lines}, sum(int(own) for own, _ in lines) / 1e6


if __name__ == "__main__":
    main()
