"""The second run over 100,000 patches that are all cached: a new process, no model, no decoding.

python tests/benchmarks/extract_cached.py [--n 100000] [--quick]
"""

import argparse
import subprocess
import sys

import numpy as np
from extract_inputs import HEADER, manifest_of, table_of, timed, workspace
from patchbank.cache.bank import Bank
from patchbank.datasets.manifest import Manifest
from patchbank.extract.run import run_extract

ENCODER = "efficientnet-lite0"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true", help="10,000 rows")
    options = parser.parse_args()
    n = 10_000 if options.quick else options.n
    with workspace() as folder:
        real = manifest_of(folder, 1, None)
        bank = folder / "bank"
        report = run_extract(real, encoder=ENCODER, bank=bank, device="cpu", progress=False)
        dice = np.random.default_rng(0)
        keys = dice.integers(0, 256, (n, 16), dtype=np.uint8)
        # none of these files is there: a run that decoded one would fail
        large = Manifest(HEADER, table_of([key.tobytes().hex() for key in keys]), real.root)
        large.save(folder / "large.toml")
        with Bank(bank).find(ENCODER).writer() as writer:
            for start in range(0, n, 8192):
                part = keys[start : start + 8192]
                vectors = dice.normal(size=(len(part), report.stores[0].dim)).astype(np.float16)
                writer.append(part, vectors, list(large.table["patch_id"][start : start + 8192]))
        command = [sys.executable, "-m", "patchbank", "extract", str(folder / "large.toml")]
        command += ["-e", ENCODER, "-b", str(bank), "--device", "cpu"]
        cost = timed(lambda: subprocess.run(command, check=True))
        print(f"{n} rows: {cost.wall:.2f} s by the clock, {cost.cpu:.2f} CPU s, the start of Python included")


if __name__ == "__main__":
    main()
