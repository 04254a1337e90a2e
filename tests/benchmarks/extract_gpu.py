"""On a GPU: ViT-H/14, ViT-L/16 and ViT-g/14 shapes, end to end from files, against the bare model.

    python tests/benchmarks/extract_gpu.py [--n 20000] [--images FOLDER] [--jpeg] [--compile] [--quick]

Random weights of the real architectures (cards virchow2, uni, h-optimus-1), bf16. Prints for each:
  bare        the model on uint8 tensors that lie on the GPU: images/s, model FLOP utilisation, peak memory
  graph       the same, captured as a CUDA graph and replayed
  patchbank   from PNG or JPEG files to a published store (model loaded before), and its share of bare
  paper       one picture at a time: read, transform, upload, forward, download
Aims: patchbank >= 90 % of bare; utilisation >= 45 % on ViT-H. --peak is the GPU's dense bf16 peak in TFLOP/s
(H100 SXM: 989, A100: 312). Without a GPU, `--device cpu --quick` runs the same code on two blocks, without
the graph.

--decode measures the decoding of JPEG files alone: by threads, as the engine has them, and by torchvision on
the device (nvJPEG on a GPU), and how many values differ: embeddings are keyed by the pixels of Pillow.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from extract_inputs import default_images, manifest_of, workspace
from patchbank.datasets.images import read_image
from patchbank.errors import InvalidRequest
from patchbank.extract.batch_size import batch_size_for
from patchbank.extract.devices import resolve_devices
from patchbank.extract.encoders import Encoder, build_encoder
from patchbank.extract.registry import load_card
from patchbank.extract.run import run_extract
from patchbank.extract.views import View
from patchbank.extract.work import Lane
from patchbank.files import cores
from safetensors.torch import save_file

CARDS = ("virchow2", "uni", "h-optimus-1")


def flops(encoder: Encoder) -> float:
    """Multiplications and additions of one picture: 2 a parameter of the blocks and token, and attention."""
    model = encoder.network.model
    tokens = encoder.card.prefix + encoder.card.grid
    blocks = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)  # pyright: ignore
    attention = 4 * tokens * tokens * encoder.card.dim * len(model.blocks)  # pyright: ignore
    return 2.0 * tokens * blocks + attention


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bare(encoder: Encoder, batch: int, seconds: float) -> float:
    """Images/s of the model on a resident batch."""
    side = encoder.card.transform.size
    pixels = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8).to(encoder.device)
    return rate(lambda: encoder.embed(pixels), encoder.device, batch, seconds)


def graph(encoder: Encoder, batch: int, seconds: float) -> float:
    """Images/s of the forward pass as a CUDA graph: no launch of kernels from Python."""
    side = encoder.card.transform.size
    pixels = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8).to(encoder.device)
    aside = torch.cuda.Stream(encoder.device)
    aside.wait_stream(torch.cuda.current_stream(encoder.device))
    with torch.cuda.stream(aside):  # kernels are chosen and workspaces allocated before the capture
        for _ in range(3):
            encoder.embed(pixels)
    torch.cuda.current_stream(encoder.device).wait_stream(aside)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        encoder.embed(pixels)
    return rate(captured.replay, encoder.device, batch, seconds)


def rate(forward: Callable[[], object], device: torch.device, batch: int, seconds: float) -> float:
    """Images/s of a forward pass, repeated for so long."""
    for _ in range(3):
        forward()
    synchronize(device)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(4):
            forward()
        synchronize(device)
        done += 4 * batch
    return done / (time.perf_counter() - started)


def decode(paths: list[str], device: torch.device, workers: int, batch: int = 64) -> None:
    """Print images/s of both ways to decode JPEG files."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    started = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        by_pillow = list(pool.map(read_image, paths))
    seconds = time.perf_counter() - started
    print(f"  Pillow, {workers} threads   {len(paths) / seconds:9.1f} images/s")
    decode_jpeg(read_file(paths[0]), ImageReadMode.RGB, device)  # starts the library
    synchronize(device)
    started, found = time.perf_counter(), []
    for start in range(0, len(paths), batch):
        files = [read_file(path) for path in paths[start : start + batch]]
        if device.type == "cuda":
            found += decode_jpeg(files, ImageReadMode.RGB, device)  # pyright: ignore[reportArgumentType]
        else:
            found += [decode_jpeg(file, ImageReadMode.RGB) for file in files]
    synchronize(device)
    seconds = time.perf_counter() - started
    apart = [
        np.abs(image.permute(1, 2, 0).cpu().numpy().astype(int) - pixels)
        for image, pixels in zip(found, by_pillow, strict=True)
    ]
    differ = np.mean([(one > 0).mean() for one in apart])
    most = max(one.max() for one in apart)
    print(
        f"  torchvision, {device.type}   {len(paths) / seconds:9.1f} images/s; "
        f"{differ:.1%} of the values differ, by at most {most} of 255"
    )


def paper(encoder: Encoder, paths: list[str]) -> float:
    """Images/s one at a time."""
    started = time.perf_counter()
    for path in paths:
        encoder.embed(encoder.transform(read_image(path))[None])[encoder.card.tokens].cpu()
    return len(paths) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--images", default=default_images())
    parser.add_argument("--jpeg", action="store_true", help="JPEG files of quality 90 instead of PNG files")
    parser.add_argument("--cards", nargs="*", default=CARDS)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--peak", type=float, help="dense bf16 TFLOP/s of the GPU")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--decode", action="store_true", help="only the decoding of JPEG files")
    parser.add_argument("--resize", choices=("pil", "device"), default="pil")
    parser.add_argument(
        "--quick", action="store_true", help="128 pictures; on a CPU two blocks of the network"
    )
    options = parser.parse_args()
    n = 128 if options.quick else options.n
    try:
        device = resolve_devices(options.device)[0]
    except InvalidRequest as error:
        raise SystemExit(f"{error}: nothing was measured; --device cpu --quick tries the code") from None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    jpeg = options.jpeg or options.decode
    source, kind = options.images or "noise", "JPEG files" if jpeg else "PNG files"
    print(f"{name}, torch {torch.__version__}, {options.precision}, {n} {kind} from {source}")
    with workspace() as folder:
        manifest = manifest_of(folder, n, options.images, suffix="jpg" if jpeg else "png")
        if options.decode:
            decode([manifest.path(i) for i in range(n)], device, options.workers or cores())
            return
        paths = [manifest.path(i) for i in range(min(n, 256))]
        for card_id in options.cards:
            card = load_card(card_id)
            if options.quick and device.type == "cpu":
                card = card.replace(arguments={**card.arguments, "depth": 2})
            checkpoint = _save(card, folder / f"{card_id}.safetensors")
            common = {"device": options.device, "precision": options.precision, "compile": options.compile}
            encoder = build_encoder(card, checkpoint=checkpoint, **common)
            lane = Lane(0, View(), card.transform, [])
            batch = options.batch or batch_size_for([[encoder]], [lane], default_cpu=16)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            alone = bare(encoder, batch, 2 if options.quick else 20)
            peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
            work = flops(encoder) / 1e12
            print(f"{card_id}: {work:.3f} TFLOP a picture, batch {batch}")
            used = f", {alone * work / options.peak:.0%} of {options.peak:g} TFLOP/s" if options.peak else ""
            held = f", {peak:.1f} GiB" if peak else ""
            print(f"  bare      {alone:9.1f} images/s{used}{held}", flush=True)
            if device.type == "cuda" and not options.compile:
                replayed = graph(encoder, batch, 2 if options.quick else 20)
                print(f"  graph     {replayed:9.1f} images/s, {replayed / alone:.0%} of bare", flush=True)
            single = paper(encoder, paths)
            del encoder
            report = run_extract(
                manifest,
                encoder=card,
                bank=folder / "bank",
                checkpoint=checkpoint,
                batch_size=batch,
                workers=options.workers,
                resize=options.resize,
                **common,
            )
            found = report.images_per_second
            print(f"  patchbank {found:9.1f} images/s, {found / alone:.0%} of bare")
            print(f"            {report.summary().splitlines()[-1]}")
            print(f"  paper     {single:9.1f} images/s, {single / alone:.1%} of bare", flush=True)


def _save(card, path: Path) -> Path:
    network = build_encoder(card, device="cpu", precision="fp32", random_weights=True).network
    save_file({key.removeprefix("model."): value for key, value in network.state_dict().items()}, path)
    return path


if __name__ == "__main__":
    main()
