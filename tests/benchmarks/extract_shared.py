"""Two encoders and three views in one run against six runs.

    python tests/benchmarks/extract_shared.py [--n 500] [--images FOLDER] [--quick]

One run decodes every picture once, resizes it once for encoders of one geometry, and loads each model once.
Each of the six runs is a process of its own, as a script would start it; so is the one.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from extract_inputs import default_images, manifest_of, random_checkpoint, timed, workspace

VIEWS = ("full", "center:0.75", "center:0.5")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--images", default=default_images())
    parser.add_argument("--encoder", action="append", help="default: efficientnet-lite0 and dinov2-s")
    parser.add_argument("--quick", action="store_true", help="64 pictures")
    options = parser.parse_args()
    n = 64 if options.quick else options.n
    encoders = options.encoder or ["efficientnet-lite0", "dinov2-s"]
    with workspace() as folder:
        manifest_of(folder, n, options.images).save(folder / "bench.toml")
        for name in encoders:
            if name != "efficientnet-lite0":
                random_checkpoint(name, folder / "weights" / name / "model.safetensors")

        def extract(bank: Path, names: list[str], views: tuple[str, ...]) -> None:
            command = [
                sys.executable,
                "-m",
                "patchbank",
                "extract",
                str(folder / "bench.toml"),
                "-b",
                str(bank),
            ]
            command += ["--device", "cpu", "--no-progress", "--weights-dir", str(folder / "weights")]
            command += [part for name in names for part in ("-e", name)]
            command += [part for view in views for part in ("-v", view)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

        one = timed(lambda: extract(folder / "one", encoders, VIEWS))
        six = timed(lambda: [extract(folder / "six", [name], (view,)) for name in encoders for view in VIEWS])
        for label, cost in (("one run", one), ("six runs", six)):
            print(f"{label:>10} {cost.wall:7.1f} s by the clock, {cost.cpu:7.1f} CPU s")
        print(f"     ratio {six.wall / one.wall:7.2f}                 {six.cpu / one.cpu:7.2f}")


if __name__ == "__main__":
    main()
