"""Which format a file or folder of another program has, and its embeddings."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ...errors import InvalidRequest
from ..filesystem import explained
from ..untrusted import check_regular, readable
from .arrays import foreign_npy, foreign_npy_folder, foreign_npz
from .h5ad import foreign_anndata
from .hdf5 import foreign_h5
from .parquet import foreign_huggingface, foreign_parquet
from .pt import foreign_clam, foreign_eva, foreign_pt, foreign_slide2vec
from .safetensors import foreign_safetensors
from .source import Read, Source, joined
from .text import foreign_csv, foreign_projector
from .webdataset import foreign_webdataset

FILES: dict[str, Read] = {  # suffix -> reader
    ".npy": foreign_npy,
    ".npz": foreign_npz,
    ".h5": foreign_h5,
    ".hdf5": foreign_h5,
    ".pt": foreign_pt,
    ".pth": foreign_pt,
    ".parquet": foreign_parquet,
    ".h5ad": foreign_anndata,
    ".safetensors": foreign_safetensors,
    ".tar": foreign_webdataset,
    ".csv": foreign_csv,
    ".tsv": foreign_csv,
}
FOLDERS: list[tuple[str, Callable[[Path], bool], Read]] = [  # what it is, how it is known, reader
    ("eva", lambda p: (p / "manifest.csv").is_file(), foreign_eva),
    ("CLAM", lambda p: (p / "h5_files").is_dir() or (p / "pt_files").is_dir(), foreign_clam),
    (
        "slide2vec",
        lambda p: (
            (p / "tile_embeddings").is_dir() or ((p / "features").is_dir() and (p / "coordinates").is_dir())
        ),
        foreign_slide2vec,
    ),
    ("AnnData", lambda p: (p / "obs").is_dir() and (p / "X").exists(), foreign_anndata),
    ("npy", lambda p: any((p / "embeddings").glob("*.npy")), foreign_npy_folder),
    ("projector", lambda p: (p / "tensors.tsv").is_file(), foreign_projector),
    (
        "Hugging Face",
        lambda p: any(any(p.glob(what)) for what in ("*.arrow", "*/*.arrow", "*.parquet", "data/*.parquet")),
        foreign_huggingface,
    ),
]


def read_source(path: str | Path, key: str = "") -> Source:
    """The embeddings of a file, or of a folder: of a known layout, or of one file a slide.

    key : name of the array or column that holds them, where it is none of the usual ones

    Raises InvalidRequest naming the file (and the row) for what is damaged, no embeddings, of an unknown
    format or not safe to read; MissingDependency (.pt without torch, AnnData), StoreError (unreadable).
    """
    path = Path(path)
    if not path.exists():
        raise InvalidRequest(f"{path} does not exist")
    if not path.is_dir():
        check_regular(path)
        reader = FILES.get(path.suffix.lower())
        if reader is None:
            raise InvalidRequest(
                f"{path} is of no format that embeddings are read from: {', '.join(FILES)}, and folders "
                "of them"
            )
        return _read(reader, path, path, key)
    for file in path.rglob("*"):
        if not file.is_dir() and file.exists() and not file.is_file():
            raise InvalidRequest(f"{file} is not a regular file")
    for _, fits, reader in FOLDERS:
        if fits(path):
            with explained("read", path), readable(path, "embeddings"):
                return reader(path, path, key)
    for suffix, reader in FILES.items():
        files = sorted(path.glob(f"*{suffix}"))
        if files and suffix not in (".csv", ".tsv"):
            source = joined(path, f"folder of {suffix}", [_read(reader, file, path, key) for file in files])
            told = path.name.removeprefix("features_")  # TRIDENT's folder of an encoder
            told = "" if told == path.name else told
            return replace(source, encoder=source.encoder or told)
    below = sorted(
        {file.parent for suffix in (".h5", ".pt", ".npy", ".npz") for file in path.rglob(f"*{suffix}")}
    )
    features = [folder for folder in below if folder.name.startswith("features")]
    shown = ", ".join(str(folder) for folder in (features or below)[:8])
    raise InvalidRequest(
        f"{path} has no embeddings in it" + (f"; name one of the folders below: {shown}" if shown else "")
    )


def _read(reader: Read, path: Path, root: Path, key: str) -> Source:
    check_regular(path)
    with explained("read", path), readable(path, path.suffix[1:]):
        return reader(path, root, key)
