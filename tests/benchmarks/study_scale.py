"""What 1e8 patches x 10 encoders cost: GPU hours, disk, files, log, memory, probe.

    python tests/benchmarks/study_scale.py [--patches 1e8] [--tflops 989 --share 0.45] [--nodes 3] [--quick]

Measured in this run: a manifest and a store of 1,000,000 rows, a store with as many blocks as 1e8 rows have,
the probe at two sizes, and extraction on a local Ray cluster of several nodes, one of which is taken away.
Counted: the operations of a forward pass, of the cards' real architectures (no memory: torch's meta device).
Estimated: everything at --patches, in proportion. --tflops and --share are of your accelerator (dense bf16,
and the share of it that `extract_gpu.py` prints); they are arguments, not measurements.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from extract_inputs import HEADER, parser_for, table_of, workspace
from patchbank.cache.bank import Bank
from patchbank.cache.identity import Identity
from patchbank.cache.store import Store
from patchbank.datasets.manifest import Manifest, load_manifest
from patchbank.extract.models.build import build_network
from patchbank.extract.registry import load_card
from patchbank.probe.solver.logistic import fit_logistic

ENCODERS = ("uni", "uni2-h", "virchow", "virchow2", "prov-gigapath", "h-optimus-0", "h-optimus-1", "h0-mini",
            "phikon", "dinov2-l")  # fmt: skip
BLOCK = 8192  # rows of a block
Costs = dict[str, float]
DIM = 8  # of the simulated store: what is measured is what a row costs beside its vector


def resident() -> float:
    """MiB of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def disk(folder: Path) -> tuple[int, int]:
    """(bytes, files) under a folder."""
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return sum(sizes), len(sizes)


def measured_manifest(folder: Path, rows: int) -> Costs:
    random = np.random.default_rng(0)
    table = table_of([random.bytes(16).hex() for _ in range(rows)])
    started = time.perf_counter()
    Manifest(HEADER, table, folder).save(folder / "big.toml")
    saved, before = time.perf_counter() - started, resident()
    started = time.perf_counter()
    loaded = load_manifest(folder / "big.toml")
    seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in folder.glob("big.*"))
    assert len(loaded) == rows
    return {
        "save": saved,
        "load": seconds,
        "memory": (resident() - before) * 2**20 / rows,
        "disk": size / rows,
    }


def new_store(folder: Path) -> Store:
    identity = Identity(
        encoder={"id": "noise"},
        preprocess={},
        view="full",
        tokens="cls",
        precision="fp32",
        dtype="float16",
        dim=DIM,
    )
    return Bank(folder).open_store(identity, create=True)


def fill(store: Store, keys: np.ndarray, block: int) -> None:
    vectors = np.zeros((len(keys), DIM), np.float16)
    with store.writer(block_rows=block) as writer:
        for start in range(0, len(keys), 1024):
            part = slice(start, min(start + 1024, len(keys)))
            writer.append(keys[part], vectors[part], range(part.start, part.stop))  # type: ignore[arg-type]


def child(folder: str, rows: int) -> None:
    """Opening a store and asking for `rows` keys, in a process of its own."""
    keys = np.random.default_rng(1).integers(0, 256, (rows, 16), dtype=np.uint8)
    before, started = resident(), time.perf_counter()
    store = Bank(folder).stores()[0]
    found = len(store)
    opened = time.perf_counter() - started
    started = time.perf_counter()
    missing = int((~store.contains(keys)).sum())
    asked = time.perf_counter() - started
    print(
        json.dumps(
            {"open": opened, "ask": asked, "rows": found, "missing": missing, "memory": resident() - before}
        )
    )


def in_child(folder: Path, rows: int) -> Costs:
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(folder), str(rows)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measured_store(folder: Path, rows: int) -> Costs:
    """Many rows in blocks of the usual size: what a row costs."""
    keys = np.random.default_rng(1).integers(0, 256, (rows, 16), dtype=np.uint8)
    fill(new_store(folder), keys, BLOCK)
    size, files = disk(folder)
    return in_child(folder, rows) | {
        "overhead": size / rows - 2 * DIM,
        "files": files,
        "blocks": -(-rows // BLOCK),
    }


def measured_log(folder: Path, blocks: int) -> Costs:
    """As many blocks as 1e8 rows have, of a few rows each: what a block costs."""
    keys = np.random.default_rng(1).integers(0, 256, (blocks * 4, 16), dtype=np.uint8)
    started = time.perf_counter()
    fill(new_store(folder), keys, 4)
    written = time.perf_counter() - started
    log = sum(
        f.stat().st_size for f in folder.rglob("*") if f.is_file() and "log" in str(f.relative_to(folder))
    )
    _, files = disk(folder)
    return in_child(folder, len(keys)) | {
        "log": log / blocks,
        "files": files / blocks,
        "write": written / blocks,
    }


def measured_probe(n: int, dim: int) -> float:
    """CPU seconds of 5 folds x 40 strengths."""
    random = np.random.default_rng(0)
    X = random.standard_normal((n, dim)).astype(np.float32)
    y = (X[:, 0] + random.standard_normal(n) > 0.8).astype(int)
    weights = (random.integers(0, 5, n) != np.arange(5)[:, None]).astype(float)
    started = time.process_time()
    fit_logistic(X, y, C=np.logspace(-6, 1, 40), weights=weights)
    return time.process_time() - started


def operations(name: str) -> float:
    """Floating-point operations of one patch's forward pass (a multiply-add is two)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    card = load_card(name)
    with torch.device("meta"):
        network = build_network(card, None)
        batch = torch.zeros(1, 3, card.transform.size, card.transform.size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.features(batch, pooled=card.grid == 0)
    return float(counter.get_total_flops())


def on_ray(folder: Path, nodes: int, rows: int) -> Costs:
    """Extraction on a cluster of several nodes of this machine; one is taken away in the middle."""
    import threading

    import ray
    from extract_inputs import manifest_of
    from patchbank.extract.run import run_extract
    from ray.cluster_utils import Cluster

    manifest = manifest_of(folder, rows, None)
    (folder / "slow.toml").write_text(
        'id = "flat"\nkind = "python"\nmodel = "torch.nn:Flatten"\nrevision = "1"\ndim = 3072\n'
        'tokens = "pooled"\nprecision = "fp32"\n[transform]\nsize = 32\n'
    )
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    others = [cluster.add_node(num_cpus=1) for _ in range(nodes - 1)]
    ray.init(address=cluster.address, log_to_driver=False)
    stopped = threading.Event()

    def take_away() -> None:
        while not any((folder / "bank").rglob("*.json")) and not stopped.is_set():
            time.sleep(0.05)
        time.sleep(2)
        cluster.remove_node(others[-1], allow_graceful=False)

    thief = threading.Thread(target=take_away)
    thief.start()
    try:
        report = run_extract(
            manifest,
            encoder=folder / "slow.toml",
            bank=folder / "bank",
            engine="ray",
            batch_size=16,
            progress=False,
        )
    finally:
        stopped.set()
        thief.join()
        ray.shutdown()
        cluster.shutdown()
    store = Bank(folder / "bank").find("flat")
    return {
        "rows": len(store),
        "lost": report.actors_lost,
        "forwards": report.forwards,
        "seconds": report.seconds["total"],
    }


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--patches", type=float, default=1e8)
    parser.add_argument("--tflops", type=float, default=989.0, help="dense bf16 peak of the accelerator")
    parser.add_argument("--share", type=float, default=0.45, help="of the peak that a forward pass reaches")
    parser.add_argument("--nodes", type=int, default=3, help="of the local Ray cluster; 0: none")
    parser.add_argument("--quick", action="store_true", help="100,000 rows, few blocks")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "ROWS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], int(args.child[1]))
        return
    n = args.patches
    rows, blocks = (100_000, 200) if args.quick else (1_000_000, -(-int(n) // BLOCK))
    with workspace() as folder:
        places = [folder / name for name in ("manifest", "store", "log", "ray")]
        for place in places:
            place.mkdir()
        table, store = measured_manifest(places[0], rows), measured_store(places[1], rows)
        log = measured_log(places[2], blocks)
        small, large = (2_000, 8_000) if args.quick else (20_000, 80_000)
        probe = [measured_probe(size, 256) for size in (small, large)]
        cluster = on_ray(places[3], args.nodes, 600 if args.quick else 6_000) if args.nodes else None
    tell_measured(args, rows, table, store, blocks, log, (small, large), probe, cluster)
    print_extrapolated(args, rows, table, store, blocks, log, (probe[1] - probe[0]) / (large - small) / 256)


def tell_measured(
    args: Any,
    rows: int,
    table: Costs,
    store: Costs,
    blocks: int,
    log: Costs,
    sizes: tuple[int, int],
    probe: list[float],
    cluster: Costs | None,
) -> None:
    print("Measured")
    print(
        f"  manifest of {rows:,} rows: save {table['save']:.1f} s, load {table['load']:.1f} s, "
        f"{table['disk']:.0f} bytes a row on disk, {table['memory']:.0f} in memory"
    )
    print(
        f"  store of {rows:,} rows in {store['blocks']} blocks: open {store['open']:.2f} s; what is missing "
        f"of as many keys {store['ask']:.2f} s; {store['memory'] * 2**20 / rows:.0f} bytes of memory a row, "
        f"{store['overhead']:.0f} of disk beside the vector; {store['files']} files"
    )
    print(
        f"  store of {blocks:,} blocks: open {log['open']:.2f} s, log {log['log']:.0f} bytes a block, "
        f"{log['files']:.1f} files a block, {1e3 * log['write']:.1f} ms to publish one"
    )
    print(
        f"  probe of 200 fits, d 256: {probe[0]:.2f} CPU s at n {sizes[0]:,}, {probe[1]:.2f} at {sizes[1]:,}"
    )
    if cluster:
        print(
            f"  {args.nodes} Ray nodes, one taken away: {cluster['rows']} rows stored, {cluster['forwards']} "
            f"passes, {cluster['lost']} actors lost, {cluster['seconds']:.0f} s"
        )


def print_extrapolated(
    args: Any, rows: int, table: Costs, store: Costs, blocks: int, log: Costs, probe: float
) -> None:
    n = args.patches
    speed = args.tflops * 1e12 * args.share
    print(f"Estimated: {len(ENCODERS)} x {n:.0e} patches at {args.tflops:.0f} TFLOP/s x {args.share:.0%}")
    print(f"  {'encoder':14} {'dim':>5} {'GFLOP':>7} {'GPU h':>9} {'TB':>7} {'files':>9}")
    total = np.zeros(3)
    for name in ENCODERS:
        card, flops = load_card(name), operations(name)
        width = card.dim * (2 if card.tokens == "cls+mean" else 1)
        disk_size = n * (2 * width + store["overhead"]) / 1e12
        one = np.array([n * flops / speed / 3600, disk_size, n / BLOCK * log["files"]])
        total += one
        print(f"  {name:14} {width:5} {flops / 1e9:7.0f} {one[0]:9,.0f} {one[1]:7.2f} {one[2]:9,.0f}")
    print(f"  {'all':14} {'':5} {'':7} {total[0]:9,.0f} {total[1]:7.2f} {total[2]:9,.0f}")
    factor = n / rows
    print(
        f"  one store: log {n / BLOCK * log['log'] / 1e6:.1f} MB, "
        f"open {log['open'] * n / BLOCK / blocks:.1f} s, "
        f"what is missing {store['ask'] * factor:.0f} s and {store['memory'] * factor / 1024:.1f} GiB"
    )
    print(
        f"  manifest: {table['disk'] * n / 1e9:.1f} GB, load {table['load'] * factor:.0f} s and "
        f"{table['memory'] * n / 2**30:.0f} GiB: split it"
    )
    print(f"  probe of 200 fits at d 1536: {probe * 1e6 * 1536:.0f} CPU s for each million training patches")


if __name__ == "__main__":
    main()
