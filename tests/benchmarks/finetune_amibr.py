"""LoRA on DINOv2 ViT-S/14 against a probe of the same encoder, on AMi-Br: validation fold and test slides.

    python tests/benchmarks/finetune_amibr.py --data FOLDER --weights FILE --out OUT [--fold 1] [--device cpu]

FOLDER holds the data set as `patchbank datasets build ami-br --root` takes it. Everything goes on where it
was interrupted. The recipe is small enough for a CPU: adapters in the last 4 of 12 blocks, the central half
of the patch at 112 px (64 patch tokens, a quarter of 224 px), bf16, 6 epochs of 1024 balanced draws; the
probes see the same view at 112 px and at 224 px. With a GPU try --recipe lora and all folds (--fold 0).

Printed: every epoch of every fold, patches a second, peak memory, and the paired comparison with each probe.
The validation fold chose the epoch, so its figure is a little too good; the test slides chose nothing.
"""

import argparse
from pathlib import Path

from patchbank.datasets.builders import build_manifest
from patchbank.datasets.manifest import load_manifest
from patchbank.extract.registry import load_card
from patchbank.extract.run import run_extract
from patchbank.finetune.checkpoint import read_card
from patchbank.finetune.compare import compare_results
from patchbank.finetune.recipe import load_recipe
from patchbank.finetune.run import run_finetune
from patchbank.probe.run import run_probe

SMALL = {
    "name": "lora-small",
    "view": "center:0.5",
    "input_size": 112,
    "last_blocks": 4,
    "lr": 1e-3,
    "warmup": 0.5,
    "epochs": 6,
    "epoch_size": 1024,
    "patience": 6,
    "batch_size": 16,
    "precision": "bf16",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fold", type=int, default=1, help="0: all folds")
    parser.add_argument("--recipe", default="", help="a recipe's name or file (default: the small one)")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[112, 224], help="inputs of the probes, pixels"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args()

    file = given.out / "ami-br.toml"
    if not file.exists():
        build_manifest("ami-br", given.data).save(file)
    manifest = load_manifest(file)
    recipe = load_recipe(given.recipe) if given.recipe else load_recipe("lora", **SMALL)
    result = run_finetune(
        train=manifest,
        encoder="dinov2-s",
        checkpoint=given.weights,
        recipe=recipe,
        out=given.out,
        device=given.device,
        threads=given.threads,
        workers=given.workers,
        only_folds=[given.fold] if given.fold else None,
    )
    folder = given.out / f"dinov2-s+{recipe.name}"
    for k in result.document["folds"]["trained"]:
        training = read_card(folder / f"fold-{k}")["training"]
        for epoch in training["history"]:
            print(f"fold {k}", {name: round(value, 4) for name, value in epoch.items()})
        print(
            f"fold {k}: {training['steps']} steps, {training['patches']} patches, "
            f"{training['seconds']:.0f} s, {training['patches_per_second']} patches/s, "
            f"{training['peak_memory_bytes'] / 2**30:.2f} GiB"
        )

    card = load_card("dinov2-s")
    cards = [
        card.replace(
            id=f"dinov2-s-{size}",
            grid=(size // 14) ** 2,
            arguments={**card.arguments, "img_size": size},
            transform=card.transform.replace(size=size, resize=size),
        )
        for size in given.sizes
    ]
    bank = given.out / "bank"
    for one in cards:
        run_extract(
            [manifest],
            encoder=one,
            checkpoint=given.weights,
            bank=bank,
            view="center:0.5",
            tokens="cls",
            device=given.device,
        )
    run_probe(
        train=manifest,
        encoders=[one.id for one in cards],
        bank=bank,
        views=["center:0.5"],
        out=given.out / "probe",
        domains="none",
    )
    for one in cards:
        for record in compare_results(
            folder, given.out / "probe", features=f"{one.id}/center:0.5/cls", fold=given.fold or None
        ):
            print(
                f"{record['dataset']:14} n {record['n']:5} {record['metric']:18} "
                f"LoRA {record['value_ours']:.3f}  {record['theirs']} {record['value_theirs']:.3f}  "
                f"{record['difference']:+.3f} [{record['low']:+.3f}, {record['high']:+.3f}] "
                f"p {record['p']:.2g}"
            )


if __name__ == "__main__":
    main()
