"""The clock of whole studies: a first run, a second one, one encoder more, a hundred strengths, the probes.

    python tests/benchmarks/study_clock.py [--patches 600] [--classes 4]
    python tests/benchmarks/study_clock.py --shared DIR [--bank BANK] [--folder DIR]

Each line is a `patchbank` command in a new process, Python's start included; CPU seconds are of user and
system, of it and its workers, busy is their share of what the cores could have given in this time; behind
them what the command itself says of its steps. Without --shared the study is small: generated patches,
encoders that only flatten pixels, and a second study of --classes classes with several kinds of probes.
With it (or PATCHBANK_SHARED: a folder with data/ and weights/) also AMi-Br and AtNorM-Br with the three
token policies of DINOv2 ViT-S/14 at 112 pixels, as a study and as one `probe run`; BANK keeps the
embeddings, which take minutes, for the next time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patchbank.datasets.manifest import Manifest, load_manifest
from patchbank.datasets.synthetic import generate_manifests
from patchbank.files import cores

WEIGHTS = "vit_small_patch14_dinov2.fp16.safetensors"
KINDS = ("logistic", "knn", "centroid", "ridge", "svm")
POLICIES = ("cls", "mean", "cls+mean")
HUNDRED = [10 ** (-6 + 7 * i / 99) for i in range(100)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="The clock of whole studies.",
        epilog=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--patches", type=int, default=600)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--kinds", nargs="+", default=KINDS, help="of probes (mlp takes minutes)")
    parser.add_argument("--shared", type=Path, default=os.environ.get("PATCHBANK_SHARED"))
    parser.add_argument("--bank", type=Path, help="of the real study; default: in the folder")
    parser.add_argument("--folder", type=Path, help="of all files; default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{'':40} {'wall s':>7} {'CPU s':>7}  busy  steps", flush=True)
        small(folder, args.patches)
        of_classes(folder, args.classes, args.kinds)
        if args.shared is None:
            print("The real study is left out: it needs --shared DIR, or PATCHBANK_SHARED.")
        else:
            real(folder, args.shared.absolute(), (args.bank or folder / "real-bank").absolute())


def small(folder: Path, patches: int) -> None:
    """The study of generated patches."""
    generate_manifests(folder / "data", n=patches)
    for size in (16, 12, 8):
        (folder / f"flat{size}.toml").write_text(
            f'id = "flat{size}"\nkind = "python"\nmodel = "torch.nn:Flatten"\nrevision = "1"\n'
            f'dim = {3 * size * size}\ntokens = "pooled"\nprecision = "fp32"\n[transform]\nsize = {size}\n',
            "utf-8",
        )
    sets = ["data/synthetic-mitoses.toml", "data/synthetic-external.toml"]
    two = [system(f"flat{size}", f"flat{size}.toml") for size in (16, 12)]
    clocks("small", folder, sets, two, [*two, system("flat8", "flat8.toml")], "--trust-code")


def of_classes(folder: Path, n_classes: int, kinds: Sequence[str]) -> None:
    """A study of more classes with kinds of probes, on the embeddings of the small one."""
    sets = []
    for name in ("synthetic-mitoses", "synthetic-external"):
        manifest = in_classes(load_manifest(folder / f"data/{name}.toml"), n_classes)
        sets.append(f"data/{name}-{n_classes}.toml")
        manifest.save(folder / sets[-1])
    systems = [system(kind, "flat16.toml", settings=f'{{ probe = "{kind}" }}') for kind in kinds]
    clocks(f"{n_classes} classes, {len(kinds)} kinds of probe", folder, sets, systems, None, "--trust-code")


def in_classes(manifest: Manifest, n_classes: int) -> Manifest:
    """The same patches under n labels, of the label and a number that rises in each slide."""
    table = manifest.table.copy()
    part = table.groupby("group").cumcount() % -(-n_classes // 2)
    code = 2 * part + (table["label"] == manifest.header.positive)
    table["label"] = [f"class {k}" for k in code.clip(upper=n_classes - 1)]
    table = table.drop(columns=[c for c in table if str(c).startswith("votes_")])
    classes = tuple(f"class {k}" for k in range(n_classes))
    header = manifest.header.model_copy(update={"classes": classes, "positive": ""})
    return Manifest(header, table, manifest.root)


def real(folder: Path, shared: Path, bank: Path) -> None:
    """AMi-Br and AtNorM-Br."""
    for name in ("ami-br", "atnorm-br"):
        run(["datasets", "build", name, "--root", str(shared / "data"), "--out", f"{name}.toml"], folder)
    encoder = "dinov2-s@112"
    about = {"views": '["center:0.5"]', "tokens": json.dumps(POLICIES)}
    first = [system("DINOv2", encoder, **about)]
    more = [*first, system("EfficientNet", "efficientnet-lite0", views='["center:0.5"]', tokens='["pooled"]')]
    options = ["--checkpoint", f"dinov2-s={shared / 'weights' / WEIGHTS}", "--bank", str(bank)]
    clocks("AMi-Br", folder, ["ami-br.toml", "atnorm-br.toml"], first, more, *options)
    sets = ["probe", "run", "ami-br.toml", "atnorm-br.toml", "--bank", str(bank), "-e", encoder]
    asked = [*sets, "-v", "center:0.5", *(word for policy in POLICIES for word in ("-t", policy))]
    weights = [word for one in ("balanced", "none", "votes") for word in ("--class-weight", one)]
    for name, options in (("probe run, three token policies", []), ("with three class weights", weights)):
        wall, cpu, out = run([*asked, *options, "--json"], folder)
        found = json.loads(out)
        fits = sum(model["fits"]["fits"] for model in found["models"])
        seconds = "  ".join(f"{step} {value:.1f}" for step, value in found["seconds"].items())
        line(name, wall, cpu, f"{fits:,} fits: {seconds}")
    report = ["probe", "report", "report-of-this", "-o", "report.html"]
    run([*asked, "-o", "report-of-this"], folder)
    line("probe report", *run(report, folder)[:2])


def system(name: str, encoder: str, **values: str) -> str:
    """A system of a study's file."""
    lines = [f'name = "{name}"', f'encoder = "{encoder}"', *(f"{k} = {v}" for k, v in values.items())]
    return "\n".join(["[[system]]", *lines])


def clocks(
    name: str, folder: Path, sets: Sequence[str], systems: list[str], more: list[str] | None, *options: str
) -> None:
    """A study's lines; more : its systems with an encoder more."""
    train, *tests = sets
    head = f'name = "study"\ntitle = "{name}"\ntrain = "{train}"\ntests = {json.dumps(tests)}'
    out = folder / f"out {name}"
    stages: list[tuple[str, list[str], str]] = [("first run", systems, ""), ("second run", systems, "")]
    if more is not None:
        stages += [("an encoder more", more, ""), ("100 strengths", more, f"[probe]\nC = {HUNDRED}")]
    for stage, of_stage, probe in stages:
        (folder / "study.toml").write_text("\n\n".join([head, probe, *of_stage]), "utf-8")
        words = ["run", "study.toml", "--out", str(out), "--json", *options]
        wall, cpu, printed = run(words, folder)
        steps = [step for step in json.loads(printed)["steps"] if step["state"] != "cached"]
        line(f"{name}: {stage}", wall, cpu, "  ".join(map(said, steps)) or "everything was cached")


def said(step: dict[str, Any]) -> str:
    """A step that was done, or why it was not."""
    if step["state"] != "done":
        sys.exit(f"{step['kind']} {step['title']}: {step['state']}: {step['why']}")
    title = "" if step["kind"] == "report" else f" {step['title']}"
    return f"{step['kind']}{title} {step['seconds']:.1f}"


def line(name: str, wall: float, cpu: float, steps: str = "") -> None:
    print(f"{name:40} {wall:7.2f} {cpu:7.2f} {cpu / (wall * cores()):5.0%}  {steps}", flush=True)


def run(words: Sequence[str], folder: Path) -> tuple[float, float, str]:
    """Wall and CPU seconds of a command in a new process, and what it printed."""
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "patchbank", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    wall, after = time.perf_counter() - start, os.times()
    if done.returncode:
        sys.exit(f"patchbank {' '.join(words)}: {done.stderr[-2000:]}")
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, spent, done.stdout


if __name__ == "__main__":
    main()
