"""End-to-end extraction on a CPU against the bare model, the paper's loop and a DataLoader loop.

    python tests/benchmarks/extract_cpu.py [--encoder dinov2-s] [--n 2000] [--rounds 3] [--images FOLDER]
    python tests/benchmarks/extract_cpu.py --quick | --decode

From PNG files. In one run, alternating, median of the rounds:
  bare        the library's model alone, all its tokens, on tensors in memory, batch 32, our precision,
              torch's own threads and the allocator as the C library sets it: in a process of its own
  threads     the model alone as patchbank computes: its batch, a batch to each of as many threads, pages kept
  patchbank   from files to a published store, model loaded before
  loader      a DataLoader with one worker, batch 128, fp32, as thunder's extraction has it
  paper       one picture at a time, fp32, as the paper's scripts do (on a CPU)
The floor is the CPU time of the whole model's products (FLOPs as torch counts them) at the peak of large
float32 products, measured in the same run. Loops other than ours see n/8 of the pictures (paper) and n/4
(loader). On a machine with other work compare CPU ms. Aim: patchbank <= .80 x bare for dinov2-s, <= .65 x for
efficientnet-lite0.

--decode measures the decoding alone (read, hash, resize to 224 px) of the pictures and of their central 64
pixels, saved again: by 1, 2 and 4 threads as the engine has them, and by as many processes, which send the
pixels back through a pipe as a DataLoader's or a process pool's do.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from extract_inputs import Cost, default_images, manifest_of, random_checkpoint, timed, workspace
from patchbank.datasets.images import content_hash, read_image
from patchbank.datasets.manifest import Manifest
from patchbank.extract import encoders
from patchbank.extract.batch_size import batch_size_for
from patchbank.extract.cards import Transform
from patchbank.extract.devices import single_threaded
from patchbank.extract.encoders import DTYPES, Encoder, build_encoder
from patchbank.extract.engine import CHUNK
from patchbank.extract.registry import load_card
from patchbank.extract.run import BATCH_SIZE_CPU, run_extract
from patchbank.extract.views import View, prepare
from patchbank.extract.work import Lane
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

BARE_BATCH = 32


class Pictures(torch.utils.data.Dataset):
    def __init__(self, manifest: Manifest, encoder: Encoder) -> None:
        self.paths, self.encoder = [manifest.path(i) for i in range(len(manifest))], encoder

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.encoder.transform(read_image(self.paths[i]))


@torch.inference_mode()
def bare(encoder: Encoder, pixels: torch.Tensor, batch: int) -> None:
    low = encoder.precision != "fp32"
    with torch.autocast("cpu", dtype=DTYPES[encoder.precision] if low else None, enabled=low):
        for start in range(0, len(pixels), batch):
            encoder.network.features(
                encoder.normalise(pixels[start : start + batch]), pooled=not encoder.card.grid
            )


def floor(encoder: Encoder, pixels: torch.Tensor) -> str:
    """The CPU time of the products of one image at the speed of the best of five large ones."""
    one, side = pixels[:1], 2048
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        bare(encoder, one, 1)
    each, matrix, seconds = counter.get_total_flops(), torch.randn(side, side), []
    for _ in range(6):
        began = time.process_time()
        matrix @ matrix
        seconds.append(time.process_time() - began)
    peak = 2 * side**3 / min(seconds[1:])
    return (
        f"{each / 1e9:.2f} GFLOP an image; at the peak of float32 products ({peak / 1e9:.0f} GFLOP/s a "
        f"thread) {1e3 * each / peak:.2f} CPU ms"
    )


def bare_alone(options: argparse.Namespace, file: Path, checkpoint: Path | None) -> Cost:
    """`bare` in a process that has not been told to keep its pages."""
    command = [sys.executable, __file__, "--bare", str(file)]
    command += ["--checkpoint", str(checkpoint)] if checkpoint else []
    command += ["--encoder", options.encoder, "--precision", options.precision]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Cost(*json.loads(done.stdout))


def print_bare(options: argparse.Namespace) -> None:
    """[wall, CPU seconds] of `bare` over the pixels of a file."""
    encoders.keep_pages = lambda: False
    encoder = build_encoder(
        options.encoder, device="cpu", checkpoint=options.checkpoint, precision=options.precision
    )
    pixels = torch.from_numpy(np.load(options.bare))
    bare(encoder, pixels[:BARE_BATCH], BARE_BATCH)
    print(json.dumps(dataclasses.astuple(timed(lambda: bare(encoder, pixels, BARE_BATCH)))))


def threads(encoder: Encoder, pixels: torch.Tensor, batch: int) -> None:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(encoder.embed, pixels.split(batch)))
    torch.set_num_threads(count)


def loader(pictures: Pictures, encoder: Encoder) -> None:
    for batch in torch.utils.data.DataLoader(pictures, batch_size=128, num_workers=1):
        encoder.embed(batch)


def paper(pictures: Pictures, encoder: Encoder) -> None:
    for i in range(len(pictures)):
        encoder.embed(pictures[i][None])


def decode(paths: list[Path], transform: Transform) -> list[tuple[bytes, np.ndarray]]:
    """A task of the engine's decoding pool."""
    pixels = [read_image(path) for path in paths]
    return [(content_hash(one), prepare(one, transform)) for one in pixels]


def decode_rates(folder: Path, images: str | None, n: int, rounds: int) -> None:
    whole = manifest_of(folder, n, images)
    paths = [Path(whole.path(i)) for i in range(n)]
    small = folder / "small"
    small.mkdir()
    for path in paths:
        with Image.open(path) as picture:
            left, top = (side // 2 - 32 for side in picture.size)
            picture.crop((left, top, left + 64, top + 64)).save(small / path.name)
    work = functools.partial(decode, transform=load_card("dinov2-s").transform)
    pools: dict[str, Callable[[int], Executor]] = {
        "threads": ThreadPoolExecutor,
        "processes": functools.partial(ProcessPoolExecutor, mp_context=get_context("spawn")),
    }
    with ExitStack() as stack:
        ready = {(c, name): stack.enter_context(pools[name](c)) for c in (1, 2, 4) for name in pools}
        for side, found in (("whole", paths), ("64 px", [small / path.name for path in paths])):
            tasks = [found[start : start + CHUNK] for start in range(0, n, CHUNK)]
            seconds: dict[tuple[int, str], list[float]] = {which: [] for which in ready}
            for _ in range(rounds + 1):  # in the first, processes are started and import what they need
                for which, pool in ready.items():
                    started = time.perf_counter()
                    for _ in pool.map(work, tasks):
                        pass
                    seconds[which].append(time.perf_counter() - started)
            for (count, name), each in seconds.items():
                best, middle = n / min(each[1:]), n / statistics.median(each[1:])
                print(
                    f"{side:>6} {count} {name:<10} {best:6.0f} images/s at best, {middle:6.0f} in the median"
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoder", default="dinov2-s")
    parser.add_argument("--batch", type=int, help="of patchbank and threads (default: as patchbank finds it)")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--images", default=default_images())
    parser.add_argument("--quick", action="store_true", help="256 pictures, one round")
    parser.add_argument("--decode", action="store_true", help="only the decoding, in threads and processes")
    options = parser.parse_args()
    n, rounds = (256, 1) if options.quick else (options.n, options.rounds)
    if options.bare:
        print_bare(options)
        return
    if options.decode:
        with workspace() as folder:
            decode_rates(folder, options.images, n, rounds)
        return
    with workspace() as folder:
        manifest = manifest_of(folder, n, options.images)
        checkpoint = None  # where the order of the tensors counts, the card's own
        if load_card(options.encoder).load != "ordered":
            checkpoint = random_checkpoint(options.encoder, folder / "weights.safetensors")
        build = functools.partial(build_encoder, options.encoder, device="cpu", checkpoint=checkpoint)
        encoder = build(precision=options.precision)
        load = timed(lambda: build(precision=options.precision))  # warm, as in every round
        single = build(precision="fp32")
        shape = encoder.card.transform
        lane = Lane(0, View(), encoder.card.transform, [])
        with single_threaded([encoder.device]):
            batch = options.batch or batch_size_for(
                [[encoder]], [lane], default_cpu=BATCH_SIZE_CPU, passes=10_000
            )
        ready = [prepare(read_image(manifest.path(i)), shape) for i in range(min(n, 512))]
        pixels = torch.stack([torch.from_numpy(picture.copy()) for picture in ready])
        np.save(folder / "pixels.npy", pixels.numpy())
        few = {part: Pictures(manifest.select(range(n // part)), single) for part in (4, 8)}  # pyright: ignore
        print(
            f"{n} pictures from {options.images or 'noise'}; {encoder.precision}, batch {batch}, "
            f"torch {torch.__version__} with {torch.get_num_threads()} threads"
        )
        costs: dict[str, list[Cost]] = {
            name: [] for name in ("bare", "threads", "patchbank", "loader", "paper")
        }
        encoder.embed(pixels[:batch])  # first calls choose kernels
        print(floor(encoder, pixels), flush=True)
        for number in range(rounds):
            costs["bare"].append(bare_alone(options, folder / "pixels.npy", checkpoint))
            costs["threads"].append(timed(lambda: threads(encoder, pixels, batch)))
            found: list[Any] = []

            def extract(bank: Path = folder / f"bank{number}", found: list[Any] = found) -> None:
                found.append(
                    run_extract(
                        manifest,
                        encoder=options.encoder,
                        bank=bank,
                        device="cpu",
                        checkpoint=checkpoint,
                        precision=options.precision,
                        batch_size=options.batch,
                        progress=False,
                    )
                )

            cost = timed(extract)
            costs["patchbank"].append(Cost(cost.wall - found[0].seconds["load"], cost.cpu - load.cpu))
            print(found[0].summary().splitlines()[-1], flush=True)
            costs["loader"].append(timed(lambda: loader(few[4], single)))
            costs["paper"].append(timed(lambda: paper(few[8], single)))
        counts = {
            "bare": len(pixels),
            "threads": len(pixels),
            "patchbank": n,
            "loader": n // 4,
            "paper": n // 8,
        }
        middle = {
            name: Cost(statistics.median(c.wall for c in of), statistics.median(c.cpu for c in of))
            for name, of in costs.items()
        }
        base = middle["bare"]
        for name, cost in middle.items():
            wall = cost.wall / counts[name] / (base.wall / counts["bare"])
            cpu = cost.cpu / counts[name] / (base.cpu / counts["bare"])
            print(f"{name:>10} {cost.per(counts[name])}   x bare: {wall:5.2f} clock, {cpu:5.2f} CPU time")


if __name__ == "__main__":
    main()
