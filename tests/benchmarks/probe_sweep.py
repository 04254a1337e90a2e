"""The whole of `patchbank probe run` for seven encoders of the sizes of the paper's, on random features.

    python tests/benchmarks/probe_sweep.py [--quick] [--inner-folds N|shared ...] [--jobs N]
        [--backend loky|threading|ray]

n 2894 train rows in 146 slides and three test sets (826, 746, 2107), 5 outer folds, each with 5 inner folds
of its own and then with the other folds as shared ones, 40 C, 2 class weights; everything is included:
reading the bank, the leak audit, the fits, intervals, comparisons, domains, saving. The features are noise
with a decaying spectrum around a weak signal, so that the folds have something to choose.
Prints for both the number of fits, wall and CPU seconds (without those of Ray's workers), seconds by stage;
and peak memory.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib.externals.loky import get_reusable_executor
from patchbank.cache.bank import Bank
from patchbank.cache.identity import Identity
from patchbank.datasets.manifest import Header, Manifest
from patchbank.probe.results.files import ProbeResult
from patchbank.probe.run import run_probe

ENCODERS = {
    "uni": 1024,
    "uni2-h": 1536,
    "virchow": 2560,
    "virchow2": 2560,
    "gigapath": 1536,
    "h-optimus-0": 1536,
    "h-optimus-1": 1536,
}
SETS = {
    "train": (2894, 146, 6, 0.224),
    "test": (826, 56, 6, 0.223),
    "br": (746, 0, 1, 0.172),
    "md": (2107, 60, 6, 0.104),
}


def manifest(name: str, parts: list[str], rng: np.random.Generator) -> Manifest:
    tables = []
    for part in parts:
        n, slides, domains, share = SETS[part]
        slide = np.sort(rng.integers(0, slides, n)) if slides else None
        tables.append(
            pd.DataFrame(
                {
                    "patch_id": [f"{name}/{part}-{i}" for i in range(n)],
                    "path": [f"{part}-{i}.png" for i in range(n)],
                    "label": np.where(rng.random(n) < share, "Atypical", "Normal"),
                    "group": [f"{part}{s}" for s in slide] if slide is not None else "",
                    "domain": [f"domain {s % domains}" for s in slide] if slide is not None else "",
                    "split": part if len(parts) > 1 else "",
                    "content_hash": [rng.bytes(16).hex() for _ in range(n)],
                }
            )
        )
    header = Header(
        name=name,
        version="1",
        classes=("Normal", "Atypical"),
        positive="Atypical",
        licence="-",
        source="random",
    )
    return Manifest(header, pd.concat(tables, ignore_index=True), Path())


def fill(bank: Path, encoder: str, dim: int, manifests: list[Manifest]) -> None:
    identity = Identity(
        encoder={"id": encoder},
        preprocess={},
        view="full",
        tokens="cls",
        precision="fp32",
        dtype="float16",
        dim=dim,
    )
    rng = np.random.default_rng(dim + len(encoder))
    mix = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
    spectrum = (1 + np.arange(dim)) ** -0.5
    direction = rng.standard_normal(dim) / np.sqrt(dim)
    with Bank(bank).open_store(identity, create=True).writer() as writer:
        for one in manifests:
            positive = (one.table["label"] == "Atypical").to_numpy()
            latent = (rng.standard_normal((len(one), dim)) + np.outer(positive - 0.5, direction)) * spectrum
            keys = np.frombuffer(bytes.fromhex("".join(one.table["content_hash"])), np.uint8).reshape(-1, 16)
            writer.append(keys, (latent.astype(np.float32) @ mix) * 10, one.table["patch_id"].tolist())


def print_run(result: ProbeResult, inner_folds: int | str, *, wall: float, cpu: float) -> None:
    document = result.document
    models = document["models"]
    fits, shared = (sum(m["fits"][key] for m in models) for key in ("fits", "shared"))
    domain_fits = sum(d["fits"]["fits"] for d in document["domains"].values())
    print(
        f"\ninner folds {inner_folds}: {fits} fits, {shared} for two choices each; {domain_fits} of domains"
    )
    print(f"{wall:.1f} s wall, {cpu:.1f} CPU s; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    print("stages: " + ", ".join(f"{k} {v:.1f} s" for k, v in document["seconds"].items()))
    heads = f"{'fit s':>7} {'rest s':>7} {'CPU s':>7} {'worst gap':>10}"
    print(f"{'encoder':12} {'dim':>5} {'fits':>6} {heads}  status")
    for m in models:
        s, about = m["seconds"], m["fits"]
        rest, gap = s["all"] - s["fit"] + s["load"], about["worst_gap_bound"]
        name = f"{m['features'].split('/')[0]:12} {m['dim']:5} {about['fits']:6}"
        print(f"{name} {s['fit']:7.1f} {rest:7.2f} {s['cpu']:7.1f} {gap:10.1e}  {about['status']}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="two encoders, 8 C")
    parser.add_argument(
        "--inner-folds", nargs="+", default=["5", "shared"], help="one run with each of these"
    )
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--backend", default="loky")
    arguments = parser.parse_args()
    encoders = dict(list(ENCODERS.items())[:2]) if arguments.quick else ENCODERS
    grid: dict[str, Any] = {"class_weight": ("balanced", "none")}
    grid |= {"C": (10.0 ** np.linspace(-6, 1, 8)).tolist()} if arguments.quick else {}
    rng = np.random.default_rng(0)
    train = manifest("ami", ["train", "test"], rng)
    tests = [manifest("br", ["br"], rng), manifest("md", ["md"], rng)]
    with tempfile.TemporaryDirectory() as folder:
        bank = Path(folder) / "bank"
        for name, dim in encoders.items():
            fill(bank, name, dim, [train, *tests])
        for given in arguments.inner_folds:
            inner_folds = int(given) if given.isdigit() else given
            before, started = os.times(), time.perf_counter()
            result = run_probe(
                train=train,
                tests=tests,
                bank=bank,
                encoders=list(encoders),
                out=Path(folder) / f"out-{given}",
                jobs=arguments.jobs,
                backend=arguments.backend,
                progress=sys.stderr.isatty(),
                inner_folds=inner_folds,
                **grid,
            )
            wall = time.perf_counter() - started
            if arguments.backend == "loky":  # the workers' seconds are counted when they have ended
                get_reusable_executor().shutdown(wait=True)
            cpu = sum(os.times()[:4]) - sum(before[:4])
            print_run(result, inner_folds, wall=wall, cpu=cpu)
    peak = max(resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"\n{len(encoders)} encoders; peak {peak / 2**20:.2f} GiB in one process")


if __name__ == "__main__":
    main()
