"""What 1e8 patches x 10 encoders cost: GPU hours, disk, files, log, memory, probe.

    python tests/benchmarks/study_scale.py [--patches 1e8] [--tflops 989 --share 0.45] [--nodes 3] [--quick]

Each line begins with how its figures were found:

measured    in this run, at the size that the line names: a store of --patches narrow rows, in as many blocks
            as a real one, opened by a fresh process that asks which of --patches keys it lacks; a manifest of
            a tenth of them; blocks that are published with fsync; the probe at two sizes; extraction on a
            local Ray cluster of several nodes, one of which is taken away
counted     operations of a forward pass, of the cards' real architectures (torch's meta device, no memory)
estimated   in proportion to what is measured or counted, which the line names

--tflops and --share are of your accelerator (dense bf16, and the share of it that `extract_gpu.py` prints);
they are arguments, not measurements. At 1e8: 5 GB of memory, 4 GB of disk, several minutes. Seconds are of
the CPU, as this machine may be shared.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from extract_inputs import parser_for, workspace
from manifest_rows import HEADER, table_of
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


def resident(field: str = "VmRSS") -> float:
    """MiB of this process now; VmHWM: the most that it has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def disk(folder: Path) -> tuple[int, int]:
    """(bytes, files) under a folder."""
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return sum(sizes), len(sizes)


def measured_manifest(folder: Path, rows: int) -> Costs:
    """A manifest of many rows, loaded by a fresh process."""
    table = table_of(rows)
    started = time.process_time()
    Manifest(HEADER, table, folder).save(folder / "big.toml")
    saved = time.process_time() - started
    size = sum(file.stat().st_size for file in folder.glob("big.*"))
    return in_child("manifest", folder, rows) | {"save": saved, "disk": size / rows}


def manifest_child(folder: Path, rows: int) -> Costs:
    before, started = resident(), time.process_time()
    loaded = load_manifest(folder / "big.toml")
    assert len(loaded) == rows
    return {"load": time.process_time() - started, "memory": (resident() - before) * 2**20 / rows}


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


def fill(store: Store, keys: np.ndarray) -> None:
    vectors = np.zeros((BLOCK, DIM), np.float16)
    with store.writer() as writer:
        for start in range(0, len(keys), BLOCK):
            part = range(start, min(start + BLOCK, len(keys)))
            writer.append(keys[part.start : part.stop], vectors[: len(part)], part)  # type: ignore[arg-type]


def keys_of(rows: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (rows, 16), dtype=np.uint8)


def store_child(folder: Path, rows: int) -> Costs:
    """Opening a store and asking for `rows` keys, every tenth of which it lacks."""
    keys = keys_of(rows)
    keys[::10] ^= 255
    before, peak, started = resident(), resident("VmHWM"), time.process_time()
    store = Bank(folder).stores()[0]
    opened = time.process_time() - started
    found = len(store)
    indexed = time.process_time() - started - opened
    held = resident() - before
    started = time.process_time()
    missing = int((~store.contains(keys)).sum())
    asked = time.process_time() - started
    assert (found, missing) == (rows, len(range(0, rows, 10)))
    return {"open": opened, "index": indexed, "held": held, "ask": asked, "more": resident("VmHWM") - peak}


def in_child(what: str, folder: Path, rows: int) -> Costs:
    """What CHILDREN[what] returns in a process of its own."""
    command = [sys.executable, __file__, "--child", what, str(folder), str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured_store(folder: Path, rows: int) -> Costs:
    """As many rows and blocks as are asked for, written without fsync: no figure here is of the disk."""
    started = time.process_time()
    with patch("os.fsync"):
        fill(new_store(folder), keys_of(rows))
    written = time.process_time() - started
    log = sum(file.stat().st_size for file in (folder.rglob("parts/log/*")))
    size, files = disk(folder)
    return in_child("store", folder, rows) | {
        "write": written,
        "overhead": size / rows - 2 * DIM,
        "files": files,
        "log": log,
        "blocks": -(-rows // BLOCK),
    }


def measured_publishing(folder: Path, blocks: int) -> float:
    """Milliseconds of the clock until a block is on the disk."""
    store, keys = new_store(folder), keys_of(blocks * BLOCK)
    started = time.perf_counter()
    fill(store, keys)
    return 1000 * (time.perf_counter() - started) / blocks


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


CHILDREN = {"store": store_child, "manifest": manifest_child}


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--patches", type=float, default=1e8)
    parser.add_argument("--tflops", type=float, default=989.0, help="dense bf16 peak of the accelerator")
    parser.add_argument("--share", type=float, default=0.45, help="of the peak that a forward pass reaches")
    parser.add_argument("--nodes", type=int, default=3, help="of the local Ray cluster; 0: none")
    parser.add_argument(
        "--quick", action="store_true", help="1,000,000 rows instead of --patches, small probes"
    )
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "FOLDER", "ROWS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        what, folder, rows = args.child
        print(json.dumps(CHILDREN[what](Path(folder), int(rows))))
        return
    n = int(args.patches)
    rows = min(n, 1_000_000 if args.quick else n)
    with workspace() as folder:
        places = {name: folder / name for name in ("manifest", "store", "publish", "ray")}
        for place in places.values():
            place.mkdir()
        store = measured_store(places["store"], rows)
        tell_store(n, rows, store, measured_publishing(places["publish"], 20 if args.quick else 200))
        shutil.rmtree(places["store"])
        few = max(rows // 10, 300_000)
        tell_manifest(n, few, measured_manifest(places["manifest"], few))
        tell_probe(*((2_000, 8_000, 256) if args.quick else (25_000, 100_000, 1536)))
        if args.nodes:
            tell_ray(args.nodes, on_ray(places["ray"], args.nodes, 600 if args.quick else 6_000))
    tell_encoders(args, n, store["overhead"], store["files"] / store["blocks"])


def tell(how: str, text: str) -> None:
    print(f"{how:10} {text}", flush=True)


def tell_store(n: int, rows: int, store: Costs, publish: float) -> None:
    tell(
        "measured",
        f"store of {rows:,} rows x {DIM} in {store['blocks']:,} blocks: {store['files']:,} files, log "
        f"{store['log'] / 1e6:.1f} MB, {store['overhead']:.0f} bytes a row beside the vector, written in "
        f"{store['write']:.0f} s without fsync",
    )
    tell("measured", f"a block of {BLOCK} rows x {DIM} is on the disk after {publish:.1f} ms of the clock")
    tell(
        "measured",
        f"opened in {store['open']:.1f} s; index of its keys {store['index']:.1f} s and "
        f"{store['held'] / 1024:.2f} GiB",
    )
    tell(
        "measured",
        f"what is missing of {rows:,} keys: {store['ask']:.1f} s; at most "
        f"{store['more'] / 1024:.2f} GiB beside the keys asked for",
    )
    if n > rows:
        factor = n / rows
        tell(
            "estimated",
            f"of {n:.0e} rows, x {factor:g}: opened in {factor * store['open']:.1f} s, index "
            f"{factor * store['index']:.0f} s, missing {factor * store['ask']:.0f} s and "
            f"{factor * store['more'] / 1024:.1f} GiB, log {factor * store['log'] / 1e6:.1f} MB",
        )


def tell_manifest(n: int, rows: int, table: Costs) -> None:
    tell(
        "measured",
        f"manifest of {rows:,} rows: save {table['save']:.1f} s, load {table['load']:.1f} s, "
        f"{table['disk']:.0f} bytes a row on disk, {table['memory']:.0f} in memory",
    )
    tell(
        "estimated",
        f"manifest of {n:.0e} rows, in proportion: {table['disk'] * n / 1e9:.1f} GB, load "
        f"{table['load'] * n / rows:.0f} s and {table['memory'] * n / 2**30:.0f} GiB: split it",
    )


def tell_probe(small: int, large: int, dim: int) -> None:
    seconds = [measured_probe(size, dim) for size in (small, large)]
    tell(
        "measured",
        f"probe of 200 fits, d {dim}: {seconds[0]:.1f} s at n {small:,}, {seconds[1]:.1f} at {large:,}",
    )
    slope = (seconds[1] - seconds[0]) / (large - small)
    tell("estimated", f"at d {dim}: {slope * 1e6:.0f} s for each million training patches, in proportion")


def tell_ray(nodes: int, cluster: Costs) -> None:
    tell(
        "measured",
        f"{nodes} Ray nodes, one taken away: {cluster['rows']} rows stored, {cluster['forwards']} "
        f"passes, {cluster['lost']} actors lost, {cluster['seconds']:.0f} s",
    )


def tell_encoders(args: Any, n: int, overhead: float, files: float) -> None:
    speed = args.tflops * 1e12 * args.share
    tell("counted", "GFLOP of a patch, and columns")
    tell(
        "estimated", f"{n:.0e} patches at {args.tflops:.0f} TFLOP/s x {args.share:.0%}, bytes and files a row"
    )
    print(f"  {'encoder':14} {'dim':>5} {'GFLOP':>7} {'GPU h':>9} {'TB':>7} {'files':>9}")
    total = np.zeros(3)
    for name in ENCODERS:
        card, flops = load_card(name), operations(name)
        width = card.dim * (2 if card.tokens == "cls+mean" else 1)
        each = np.array([n * flops / speed / 3600, n * (2 * width + overhead) / 1e12, n / BLOCK * files])
        total += each
        print(f"  {name:14} {width:5} {flops / 1e9:7.0f} {each[0]:9,.0f} {each[1]:7.2f} {each[2]:9,.0f}")
    print(f"  {'all':14} {'':5} {'':7} {total[0]:9,.0f} {total[1]:7.2f} {total[2]:9,.0f}")


if __name__ == "__main__":
    main()
