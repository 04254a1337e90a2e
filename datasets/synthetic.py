"""A small generated data set for quickstart and tests: H&E-coloured patches with a signal to find.

Nothing here is tissue. A patch is drawn as two stain concentrations (haematoxylin for nuclei, eosin for the
rest) that absorb light by Beer-Lambert's law, with the stain vectors, their strength, the blur and the
light of the slide's domain. In its middle lies a dark figure: a plate or two for "Normal", the more split,
bent and scattered the more "Atypical". How atypical a figure looks is drawn from two overlapping
distributions, so that no classifier can be perfect, and three simulated voters see it with an error each.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter

from ..errors import InvalidRequest, OutputError
from ..files import cores, reason
from .hashes import hex_hashes
from .images import content_hash
from .manifest import Header, Manifest

SIZE = 128  # pixels, each side
POSITIVE_SHARE = 0.35
# (haematoxylin, eosin) absorption of R, G, B; the usual ones of H&E (Ruifrok and Johnston 2001)
_HAEMATOXYLIN, _EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])


@dataclass(frozen=True)
class Stain:
    """A domain's look: strengths of the two stains, a tilt of their colours, blur in pixels, lamp colour."""

    haematoxylin: float
    eosin: float
    tilt: tuple[float, float, float]
    blur: float
    lamp: tuple[float, float, float]


STAINS = {
    "scanner-a": Stain(1.00, 0.55, (0.00, 0.00, 0.00), 0.6, (1.00, 1.00, 1.00)),
    "scanner-b": Stain(0.80, 0.75, (0.06, -0.05, 0.05), 0.9, (1.00, 0.97, 0.96)),
    "scanner-c": Stain(1.15, 0.40, (-0.06, 0.03, 0.10), 0.5, (0.96, 0.98, 1.00)),
    "scanner-x": Stain(0.90, 0.95, (0.12, -0.08, -0.06), 1.1, (0.97, 0.93, 0.97)),
}
_SETS = {  # name -> domains, share of all patches, description
    "synthetic-mitoses": (
        ("scanner-a", "scanner-b", "scanner-c"),
        0.75,
        "generated, no tissue: three stains, slides in train and test",
    ),
    "synthetic-external": (("scanner-x",), 0.25, "generated, no tissue: a stain that the other set has not"),
}


def generate_manifests(folder: str | os.PathLike[str], *, n: int = 600, seed: int = 0) -> list[Manifest]:
    """Draw the sample into a folder: PNG images, and one manifest a set, saved as SET.toml there.

    folder: FOLDER/SET/SLIDE/NUMBER.png. n: patches of both sets together, at least 80. The same n and seed
    give the same pixels. Returns [synthetic-mitoses, synthetic-external]: three domains with the splits
    "train" and "test" (other slides), and one further domain, all of it "test"; content hashes and votes
    are filled.

    Raises InvalidRequest for an n that is too small, OutputError where the folder cannot be written.
    """
    if n < 80:
        raise InvalidRequest(f"n = {n} patches are too few for folds and a test set; ask for 80 or more.")
    folder = Path(folder)
    manifests = []
    for number, (name, (domains, share, description)) in enumerate(_SETS.items()):
        plan = _plan(name, domains, round(n * share), np.random.default_rng([seed, number]))

        def draw(i: int, plan: pd.DataFrame = plan, number: int = number) -> bytes:
            row = plan.iloc[i]
            stain = _slide_stain(STAINS[row["domain"]], np.random.default_rng([seed, number, row["slide"]]))
            pixels = draw_patch(row["atypia"], stain, np.random.default_rng([seed, number, 1000, i]))
            file = folder / row["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file, compress_level=1)
            return content_hash(pixels)

        try:
            with ThreadPoolExecutor(min(8, cores())) as pool:
                digests = b"".join(pool.map(draw, range(len(plan))))
        except OSError as error:
            raise OutputError(f"{error.filename or folder} cannot be written: {reason(error)}.") from error
        plan["content_hash"] = hex_hashes(np.frombuffer(digests, np.uint8).reshape(-1, 16))
        header = Header(
            name=name,
            version="1",
            classes=("Atypical", "Normal"),
            positive="Atypical",
            licence="CC0-1.0",
            source=f"patchbank's generator, n={n}, seed={seed}",
            description=description,
        )
        manifest = Manifest(header, plan.drop(columns=["atypia", "slide"]), folder)
        manifest.save(folder / f"{name}.toml")
        manifests.append(manifest)
    return manifests


def _plan(name: str, domains: tuple[str, ...], n: int, random: np.random.Generator) -> pd.DataFrame:
    """Every patch's domain, slide, split, label, votes and how atypical it is to look (0..1)."""
    domain = np.arange(n) % len(domains)
    turn = np.arange(n) // len(domains)
    slides_each = 9
    slide = domain * slides_each + turn % slides_each
    test = np.full(n, True) if len(domains) == 1 else turn % slides_each >= 6
    share = POSITIVE_SHARE * random.uniform(0.7, 1.3, slides_each * len(domains))
    positive = random.random(n) < share[slide]
    atypia = np.where(positive, random.beta(6.0, 2.0, n), random.beta(2.0, 6.0, n))
    seen = atypia[:, None] + random.normal(0, 0.15, (n, 3)) > 0.5
    # the label is the set's truth; the voters agree with it as often as the images let them
    votes = np.where(positive, np.maximum(seen.sum(1), 2), np.minimum(seen.sum(1), 1))
    names = [
        f"{domains[d].removeprefix('scanner-')}{s % slides_each + 1:02d}"
        for d, s in zip(domain, slide, strict=True)
    ]
    return pd.DataFrame(
        {
            "patch_id": [f"{name}/{slide_name}-{i:05d}" for i, slide_name in enumerate(names)],
            "path": [f"{name}/slide-{slide_name}/{i:05d}.png" for i, slide_name in enumerate(names)],
            "label": np.where(positive, "Atypical", "Normal"),
            "group": [f"slide-{slide_name}" for slide_name in names],
            "domain": [domains[d] for d in domain],
            "split": np.where(test, "test", "train"),
            "votes_positive": votes,
            "votes_total": 3,
            "atypia": atypia,
            "slide": slide,
        }
    )


def _slide_stain(stain: Stain, random: np.random.Generator) -> Stain:
    """The domain's look as one slide of it has it."""
    strength = random.uniform(0.85, 1.15, 2)
    tilt = np.array(stain.tilt) + random.normal(0, 0.015, 3)
    return Stain(
        stain.haematoxylin * strength[0],
        stain.eosin * strength[1],
        (float(tilt[0]), float(tilt[1]), float(tilt[2])),
        stain.blur,
        stain.lamp,
    )


def draw_patch(atypia: float, stain: Stain, random: np.random.Generator) -> np.ndarray:
    """One patch, uint8 (128, 128, 3). atypia: 0 (a plain plate) to 1 (split and scattered)."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)

    def noise(cells: int) -> np.ndarray:
        """Smooth noise, `cells` bumps across, mean 0 and standard deviation 1."""
        field = Image.fromarray(random.standard_normal((cells, cells), dtype=np.float32))
        smooth = np.asarray(field.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        return (smooth - smooth.mean()) / smooth.std()

    def add(
        canvas: np.ndarray,
        at: np.ndarray,
        axes: tuple[float, float],
        angle: float,
        edge: float,
        dark: Any = 1.0,
    ) -> None:
        """Put a rough ellipse with a soft edge on the canvas, where it is the darker one."""
        reach = 2 * max(axes)  # beyond that its edge has faded away
        left, top = (int(max(c - reach, 0)) for c in at)
        right, bottom = (int(max(c + reach, 0)) + 1 for c in at)
        window = slice(top, bottom), slice(left, right)
        u = (x[window] - at[0]) * np.cos(angle) + (y[window] - at[1]) * np.sin(angle)
        v = (y[window] - at[1]) * np.cos(angle) - (x[window] - at[0]) * np.sin(angle)
        radius = np.sqrt((u / axes[0]) ** 2 + (v / axes[1]) ** 2) + rough[window]
        shape = 1 / (1 + np.exp(np.minimum((radius - 1) * edge, 30)))
        canvas[window] = np.maximum(canvas[window], shape * (dark[window] if np.ndim(dark) else dark))

    rough = 0.12 * noise(36)
    fine, grain, cloud = noise(72), noise(30), noise(7)
    fibres = np.sin((x * np.cos(cloud[0, 0]) + y * np.sin(cloud[0, 0])) / 3.0 + 2.5 * cloud)
    eosin = 0.55 + 0.12 * cloud + 0.08 * fibres + 0.06 * grain
    nuclei = np.zeros((SIZE, SIZE), np.float32)
    centre = SIZE / 2 + random.uniform(-3, 3, 2)
    for _ in range(random.integers(5, 11)):
        spot = random.uniform(-6, SIZE + 6, 2)
        if np.hypot(*(spot - centre)) < 44:  # the figure stands free, as a dividing cell does
            continue
        size = random.uniform(6.5, 11)
        dark = random.uniform(0.45, 0.75) * (1 + 0.22 * grain)
        add(nuclei, spot, (size * random.uniform(1, 1.5), size), random.uniform(0, np.pi), 9, dark)

    cell = np.zeros_like(nuclei)
    add(cell, centre, (36, 33), random.uniform(0, np.pi), 7)
    eosin = eosin * (1 - 0.45 * cell)
    angle = random.uniform(0, np.pi)
    apart = 0.0 if random.random() < 0.6 else random.uniform(8, 12)  # one plate, or two
    figure = np.zeros_like(nuclei)
    for side in (-1, 1) if apart else (0,):
        spot = centre + side * apart * np.array([-np.sin(angle), np.cos(angle)])
        bend = random.normal(0, 0.35 * atypia)
        axes = (random.uniform(15, 20) * (1 - 0.35 * atypia), random.uniform(4.5, 6.5) + 5 * atypia)
        add(figure, spot, axes, angle + bend, 7)
    for _ in range(random.poisson(13 * atypia**1.5)):  # arms and lost chromosomes
        direction, away = random.uniform(0, 2 * np.pi), random.uniform(9, 28)
        spot = centre + away * np.array([np.cos(direction), np.sin(direction)])
        size = random.uniform(2.5, 5.0)
        add(figure, spot, (size * 1.5, size), random.uniform(0, np.pi), 5)
    haematoxylin = np.maximum(nuclei, figure * (1.25 + 0.1 * fine)) + 0.10 + 0.04 * np.abs(cloud)

    tilt = np.array(stain.tilt)
    density = (
        stain.haematoxylin * haematoxylin[..., None] * (_HAEMATOXYLIN + tilt)
        + stain.eosin * eosin[..., None] * (_EOSIN + tilt / 2)
    ) * 1.5
    light = np.exp(-np.clip(density, 0, None)) * np.array(stain.lamp)
    light = gaussian_filter(light, (stain.blur, stain.blur, 0)) + random.normal(0, 0.012, light.shape)
    return (np.clip(light, 0, 1) * 255 + 0.5).astype(np.uint8)
