"""The engine and its plan, with an encoder that can be computed by hand."""

import _thread
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from patchbank.cache.bank import Bank
from patchbank.cache.store import StoreWriter
from patchbank.datasets import hashes
from patchbank.datasets.images import content_hash
from patchbank.datasets.manifest import Manifest
from patchbank.errors import (
    EncoderError,
    ImageError,
    InvalidRequest,
    PatchbankError,
    RowsMissing,
    StoreError,
    VectorRefused,
)
from patchbank.extract import engine, planning, run, writing
from patchbank.extract.cards import Transform
from patchbank.extract.engine import Outcome, Pipeline
from patchbank.extract.run import run_extract
from patchbank.extract.weights import Weights
from patchbank.probe.features import load
from PIL import Image

Make = Callable[..., Any]
SIDE = 16


def extract(manifests: Any, card: Any, bank: Path, **options: Any) -> run.ExtractReport:
    return run_extract(
        manifests, encoder=card, bank=bank, **{"progress": False, "dtype": "float32", **options}
    )


def test_vectors_are_right_and_keyed_by_content(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, expected_rgb: Make, keys_of: Make
) -> None:
    manifest = make_manifest(37)
    report = extract(manifest, rgb_card(), tmp_path / "bank", batch_size=8)
    assert (report.patches, report.unique, report.embedded, report.cached) == (37, 37, 37, 0)
    assert (report.forwards, report.forwards_avoided) == (37, 0)
    assert Path(report.stores[0].path).is_dir(), "made during the run, and named all the same"
    store = Bank(tmp_path / "bank").find("mean-rgb")
    np.testing.assert_allclose(store.load(keys_of(manifest)), expected_rgb(manifest), atol=1e-3)
    identity = store.identity
    assert identity.encoder["weights"] == "user:1"
    assert identity.preprocess["resizer"] == "pil"
    assert (identity.view, identity.tokens, identity.precision, identity.dim) == ("full", "pooled", "fp32", 3)
    assert store.provenance["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_the_second_run_makes_no_forward_pass_and_decodes_nothing(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, rgb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_manifest(20)
    extract(manifest, rgb_card(), tmp_path / "bank")
    for file in Path(manifest.root).glob("*.png"):
        file.unlink()  # so a decode would fail
    report = extract(manifest, rgb_card(), tmp_path / "bank")
    assert rgb.seen == 20
    assert not report.model_loaded
    assert (report.cached, report.embedded, report.forwards, report.forwards_avoided) == (20, 0, 0, 20)
    assert "no model was loaded" in report.summary()


def test_a_dry_run_counts_and_does_nothing(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, rgb: Any
) -> None:
    manifest = make_manifest(20)
    report = extract(manifest, rgb_card(), tmp_path / "bank", dry_run=True, view=["full", "d4:mean"])
    assert not (tmp_path / "bank").exists()
    assert (report.patches, report.cached, report.embedded, report.planned) == (20, 0, 0, 20)
    assert report.planned_forwards == 8 * 20  # "full" is one of the eight orientations
    assert report.planned_bytes == 2 * 20 * 3 * 4
    extract(manifest.select(np.arange(20) < 15), rgb_card(), tmp_path / "bank")
    report = extract(manifest, rgb_card(), tmp_path / "bank", dry_run=True)
    assert (report.cached, report.planned, report.planned_forwards, rgb.seen) == (15, 5, 5, 15)
    assert report.summary().endswith("nothing was done")


def test_the_second_run_imports_no_torch(tmp_path: Path, make_manifest: Make, rgb_card: Make) -> None:
    manifest = make_manifest(3)
    options = {
        "encoder": "efficientnet-lite0",
        "bank": str(tmp_path / "bank"),
        "device": "cpu",
        "progress": False,
    }
    run_extract(manifest, **options)
    code = (
        "import sys, json; from patchbank.extract.run import run_extract\n"
        "report = run_extract(sys.argv[1], **json.loads(sys.argv[2]))\n"
        "assert report.cached == 3, report; assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "toy.toml"), json.dumps(options)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_patch_more_costs_one_forward_pass(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, rgb: Any
) -> None:
    extract(make_manifest(10), rgb_card(), tmp_path / "bank")
    report = extract(make_manifest(11), rgb_card(), tmp_path / "bank")
    assert (rgb.seen, report.embedded, report.cached) == (11, 1, 10)


@pytest.mark.parametrize("hashed", [True, False])
def test_the_same_picture_is_embedded_once(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, rgb: Any, hashed: bool
) -> None:
    """Within a manifest and across two; with hashes in the manifest and without."""
    one, two = make_manifest(6, name="one", hashed=hashed), make_manifest(9, name="two", hashed=hashed)
    report = extract([one, two], rgb_card(), tmp_path / "bank", batch_size=4)
    assert rgb.seen == 9
    assert (report.patches, report.unique, report.embedded, report.forwards_avoided) == (15, 9, 9, 6)
    again = extract([two, one], rgb_card(), tmp_path / "bank")
    assert rgb.seen == 9
    assert not again.model_loaded, "hashes taken on the way are remembered in the bank"
    assert again.cached == 9


def test_batch_position_workers_and_resume_do_not_change_a_vector(
    tmp_path: Path, make_manifest: Make
) -> None:
    """A real network: what is promised is 1e-5 of a vector's length in fp32, whatever is around a patch."""
    from patchbank.extract.registry import load_card

    manifest = make_manifest(11, side=40)
    card = load_card("efficientnet-lite0")
    keys = None
    found = []
    for number, options in enumerate(
        (
            {"batch_size": 11},
            {"batch_size": 1},
            {"batch_size": 4, "workers": 3},
            {"batch_size": 3, "device": "cpu,cpu"},
        )
    ):
        bank = tmp_path / f"bank{number}"
        if number == 2:  # begun by another run
            extract(manifest.select(np.arange(11) % 3 == 1), card, bank, device="cpu")
        extract(manifest, card, bank, **{"device": "cpu", **options})
        store = Bank(bank).find("efficientnet-lite0")
        keys = np.sort(store.keys().view("V16").ravel()).view(np.uint8).reshape(-1, 16)
        found.append(store.load(keys))
    for other in found[1:]:
        assert np.linalg.norm(other - found[0], axis=1).max() <= 1e-5 * np.linalg.norm(found[0], axis=1).min()


# --- views, policies, several encoders ---------------------------------------------------------------


def test_views_are_stores_of_their_own(tmp_path: Path, make_manifest: Make, rgb_card: Make, rgb: Any) -> None:
    manifest = make_manifest(5, side=32)
    corner = rgb_card(function=lambda batch: batch[:, :, 0, 0])  # tells the orientations apart
    extract(manifest, corner, tmp_path / "bank", view=["center:0.5+d4"])
    bank = Bank(tmp_path / "bank")
    pixels = np.asarray(Image.open(manifest.path(0)), dtype=np.float64)[8:24, 8:24]
    corners = {0: (0, 0), 1: (0, -1), 2: (-1, -1), 3: (-1, 0), 4: (0, -1), 5: (0, 0), 6: (-1, 0), 7: (-1, -1)}
    from patchbank.datasets.hashes import resolve

    keys = resolve(manifest)[0][:1]
    for k, at in corners.items():
        store = bank.find("mean-rgb", view="center:0.5" + (f"+d4:{k}" if k else ""))
        np.testing.assert_allclose(store.load(keys)[0], pixels[at], atol=1e-3)
    mean = bank.find("mean-rgb", view="center:0.5+d4:mean").load(keys)[0]
    np.testing.assert_allclose(mean, np.mean([pixels[at] for at in corners.values()], axis=0), atol=1e-3)
    assert len(bank.stores()) == 9


def test_a_mean_over_orientations_costs_eight_passes_and_shares_them(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, rgb: Any
) -> None:
    report = extract(make_manifest(4), rgb_card(), tmp_path / "bank", view=["d4:mean", "full", "d4:3"])
    assert rgb.seen == report.forwards == 32
    assert len(report.stores) == 3


def test_the_bar_counts_forward_passes_and_reaches_its_end(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, rgb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of eight passes moves it; patches that need none (cached, repeated, unreadable) count too."""
    bars: list[Any] = []

    class Bar(nullcontext):
        def __init__(self, **about: Any) -> None:
            super().__init__()
            self.about, self.moved = about, []
            bars.append(self)

        def update(self, n: int) -> None:
            self.moved.append((n, rgb.seen))

    monkeypatch.setattr(run, "progress_bar", Bar)
    first, bank = make_manifest(4), tmp_path / "bank"
    extract(first, rgb_card(), bank, view="d4:mean", batch_size=4)
    assert bars[0].about["total"] == 32
    assert bars[0].moved[0] == (4, 4), "the first orientation of the only batch"
    more = make_manifest(6, name="more", hashed=False)
    (more.root / "5.png").write_bytes(b"no image")
    report = extract(more, rgb_card(), bank, view="d4:mean", on_error="skip")
    assert len(report.failed) == 1
    for bar in bars:
        assert sum(n for n, _ in bar.moved) == bar.about["total"]
    assert rgb.seen == 32 + 8
    assert bars[1].about["unit"] == "pass"
    extract(make_manifest(2, name="plain", first=20), rgb_card(), bank)
    assert bars[2].about["total"] == 2
    assert bars[2].about["unit"] == "patch"


def test_one_forward_pass_fills_every_policy(tmp_path: Path, make_manifest: Make, rgb_card: Make) -> None:
    tokens = [torch.zeros(1, 2, 3), torch.full((1, 2, 3), 9.0)]  # CLS and a register; then two patch tokens
    calls = []

    def network(batch: torch.Tensor) -> torch.Tensor:
        calls.append(len(batch))
        patches = batch.mean(dim=(2, 3))[:, None].repeat(1, 2, 1)
        return torch.cat([tokens[0].expand(len(batch), -1, -1), patches], dim=1)

    card = rgb_card(function=network, grid=2, prefix=2, tokens="cls")
    report = extract(
        make_manifest(4), card, tmp_path / "bank", tokens=["cls", "mean", "cls+mean", "registers", "patches"]
    )
    assert sum(calls) == report.forwards == 4
    dims = {store.tokens: store.dim for store in report.stores}
    assert dims == {"cls": 3, "mean": 3, "cls+mean": 6, "registers": 3, "patches": 6}


def test_a_store_that_was_added_later_is_filled_alone(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, rgb: Any
) -> None:
    manifest = make_manifest(6)
    extract(manifest, rgb_card(), tmp_path / "bank")
    extract(manifest, rgb_card(), tmp_path / "bank", view=["full", "center:0.5"])
    assert rgb.seen == 12
    assert [store.published_rows for store in Bank(tmp_path / "bank").stores()] == [6, 6]


def test_several_encoders_share_the_decoding(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from patchbank.datasets.sources import PatchSource

    reads, resizes = [], []
    read, prepare = PatchSource.read, engine.prepare
    monkeypatch.setattr(PatchSource, "read", lambda self, i: reads.append(i) or read(self, i))
    monkeypatch.setattr(engine, "prepare", lambda *args: resizes.append(args[2]) or prepare(*args))
    one, two = rgb_card(id="one"), rgb_card(id="two", function=lambda batch: batch.amax(dim=(2, 3)))
    report = extract(make_manifest(5), [one, two], tmp_path / "bank", view=["full", "center:0.5"])
    assert len(reads) == 5
    assert len(resizes) == 10, "two encoders of one geometry share the resized picture"
    assert report.forwards == 20
    assert {store.encoder for store in report.stores} == {"one", "two"}


def test_the_same_encoder_twice_is_refused(tmp_path: Path, make_manifest: Make, rgb_card: Make) -> None:
    with pytest.raises(InvalidRequest, match="given twice"):
        extract(make_manifest(1), [rgb_card(), rgb_card()], tmp_path / "bank")
    assert not Bank(tmp_path / "bank").names(), "nothing is created by a request that is refused"


# --- what goes wrong ---------------------------------------------------------------------------------


def spoil(manifest: Any, row: int, content: bytes | None) -> None:
    path = Path(manifest.path(row))
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def test_skip_lists_what_cannot_be_read(tmp_path: Path, make_manifest: Make, rgb_card: Make) -> None:
    manifest = make_manifest(12)
    whole = Path(manifest.path(3)).read_bytes()
    spoil(manifest, 3, whole[: len(whole) // 2])
    spoil(manifest, 5, b"this is text")
    spoil(manifest, 7, None)
    Image.new("RGB", (16, 16)).save(manifest.path(9))  # another picture than the one that was hashed
    report = extract(manifest, rgb_card(), tmp_path / "bank", on_error="skip", batch_size=4)
    failed = dict(report.failed)
    assert report.embedded == 8
    assert "cannot be decoded" in failed["toy/3"]
    assert "not an image that Pillow can read" in failed["toy/5"]
    assert "no such file" in failed["toy/7"]
    assert "has changed since its hash was taken" in failed["toy/9"]
    assert len(failed) == 4
    assert len(Bank(tmp_path / "bank").find("mean-rgb")) == 8


def test_fail_stops_with_one_error_and_keeps_what_was_embedded(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, rgb: Any
) -> None:
    manifest = make_manifest(60)
    spoil(manifest, 50, b"text")
    with pytest.raises(ImageError, match=r"50\.png") as error:
        extract(manifest, rgb_card(), tmp_path / "bank", batch_size=4)
    kept = len(Bank(tmp_path / "bank").find("mean-rgb"))
    assert 0 < kept < 50
    notes = " ".join(error.value.__notes__)
    assert f"{kept} patches were embedded and are kept" in notes
    assert "--on-error skip" in notes
    spoil(manifest, 50, Path(manifest.path(49)).read_bytes())
    extract(manifest, rgb_card(), tmp_path / "bank", on_error="skip")
    assert rgb.seen <= 60


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch, until: Any) -> Callable[[], None]:
    """Presses Ctrl-C, from any thread, and waits until the run has noticed."""
    pipelines: list[Pipeline] = []
    real = Pipeline.run

    def run(pipeline: Pipeline) -> Outcome:
        pipelines.append(pipeline)
        return real(pipeline)

    def press() -> None:
        _thread.interrupt_main()
        until(lambda: pipelines[0].progress.error is not None)

    monkeypatch.setattr(Pipeline, "run", run)
    return press


def test_ctrl_c_publishes_and_the_next_run_goes_on(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, rgb: Any, interrupt: Callable[[], None]
) -> None:
    manifest = make_manifest(80)
    pressing = threading.Lock()

    def press(batch: torch.Tensor) -> None:
        with pressing:  # the other device waits, too
            if rgb.seen >= 24 and not pressed:
                pressed.append(True)
                interrupt()

    pressed: list[bool] = []
    rgb.before = press
    with pytest.raises(KeyboardInterrupt) as stop:
        extract(manifest, rgb_card(), tmp_path / "bank", batch_size=8, device="cpu,cpu")
    kept = len(Bank(tmp_path / "bank").find("mean-rgb"))
    assert 24 <= kept < 80
    assert f"{kept} patches were embedded" in stop.value.__notes__[0]
    report = extract(manifest, rgb_card(), tmp_path / "bank")
    assert report.embedded == 80 - kept
    assert not [t for t in threading.enumerate() if t.name.startswith("patchbank")]


def test_a_second_ctrl_c_waits_for_nobody(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, rgb: Any, interrupt: Callable[[], None]
) -> None:
    blocked, go_on = threading.Event(), threading.Event()

    def block(batch: torch.Tensor) -> None:
        blocked.set()
        go_on.wait(300)

    def stop_twice() -> None:
        blocked.wait(300)
        interrupt()
        interrupt()

    rgb.before = block
    stops = threading.Thread(target=stop_twice)
    stops.start()
    with pytest.raises(KeyboardInterrupt):
        extract(make_manifest(40), rgb_card(), tmp_path / "bank", batch_size=8)
    assert not go_on.is_set(), "the run was left while its computing thread was still busy"
    stops.join()
    left = [t for t in threading.enumerate() if t.name.startswith(("patchbank-run", "patchbank-compute"))]
    assert left
    assert all(t.daemon for t in left), "no process waits for them"
    go_on.set()
    for thread in left:
        thread.join(300)
    report = extract(make_manifest(40), rgb_card(), tmp_path / "bank")
    assert report.cached + report.embedded == 40


@pytest.mark.parametrize("how", ["image", "encoder", "interrupt", "device", "weights"])
def test_a_run_that_fails_before_its_first_row_leaves_no_store(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, rgb: Any, how: str
) -> None:
    manifest, options = make_manifest(8), {}
    if how == "image":
        Path(manifest.path(0)).write_bytes(b"no image")
    elif how == "device":
        options["device"] = "cuda:99"
    elif how == "weights":
        rgb = None  # the factory gives nothing that can be called
    else:
        fault = KeyboardInterrupt() if how == "interrupt" else RuntimeError("broken")

        def fail(batch: torch.Tensor) -> None:
            raise fault

        rgb.before = fail
    bank = tmp_path / "bank"
    with pytest.raises((PatchbankError, RuntimeError, KeyboardInterrupt)):
        extract(manifest, rgb_card(function=rgb), bank, **options)
    assert Bank(bank).names() == []
    assert not list(bank.glob("stores/*")), "no empty folder either"


def test_what_is_said_to_be_kept_is_what_was_published(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up at the third block: the rows of two are kept, however many were computed."""
    publish, calls = StoreWriter.publish, []

    def full(self: StoreWriter, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise StoreError("the disk is full")
        return publish(self, *args, **options)

    monkeypatch.setattr(StoreWriter, "publish", full)
    monkeypatch.setattr(writing, "PUBLISH_EVERY", 0.0)
    with pytest.raises(StoreError) as error:
        extract(make_manifest(80), rgb_card(), tmp_path / "bank", batch_size=8, tokens=["pooled"])
    monkeypatch.undo()
    kept = len(Bank(tmp_path / "bank").find("mean-rgb"))
    assert 0 < kept < 80
    assert f"{kept} patches were embedded and are kept" in error.value.__notes__[0]


def test_a_lease_that_gc_sweeps_away_is_asked_for_again(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire, calls = engine.Lease.acquire, []

    def vanish(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) < 4:
            raise StoreError("cannot write a lease") from FileNotFoundError(2, "no such file")
        return acquire(*args, **options)

    monkeypatch.setattr(engine.Lease, "acquire", vanish)
    monkeypatch.setattr(engine, "POLL", 0.01)
    assert extract(make_manifest(8), rgb_card(), tmp_path / "bank").embedded == 8
    calls[:] = []

    def gone(*args: Any, **options: Any) -> Any:
        raise StoreError("cannot write a lease") from FileNotFoundError(2, "no such file")

    monkeypatch.setattr(engine.Lease, "acquire", gone)
    with pytest.raises(StoreError, match="cannot write a lease"):
        extract(make_manifest(8, first=8), rgb_card(), tmp_path / "bank")


def test_empty_folders_of_killed_runs_are_swept(tmp_path: Path, make_manifest: Make, rgb_card: Make) -> None:
    extract(make_manifest(4), rgb_card(), tmp_path / "bank")
    bank = Bank(tmp_path / "bank")
    (name,) = bank.names()
    held, free, made = (tmp_path / "bank" / "stores" / word for word in ("held", "free", "made"))
    for folder in (held, free):
        (folder / "parts" / "leases").mkdir(parents=True)
    (held / "parts" / "leases" / "unit.0.json").write_text("{}")
    (made / "parts" / "log").mkdir(parents=True)  # something is being made there without a lease
    assert bank.names() == [name]
    assert sorted(bank.empty_names()) == ["free", "held", "made"]
    assert not any(bank.remove_empty(word, grace=3600) for word in (name, "held", "free", "made"))
    assert [bank.remove_empty(word) for word in (name, "held", "free", "made")] == [False, False, True, False]
    assert bank.remove_empty("made", grace=-1)
    assert held.exists()
    assert not free.exists()


def test_a_vector_that_cannot_be_stored(tmp_path: Path, make_manifest: Make, rgb_card: Make) -> None:
    """Row 5 gives NaN: named when failing, listed when skipping; 1e6 does not fit float16."""
    manifest = make_manifest(8)
    marked = np.asarray(Image.open(manifest.path(5)))[0, 0].astype(float)

    def network(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(batch: torch.Tensor) -> torch.Tensor:
            out = batch.mean(dim=(2, 3))
            hit = ((batch[:, :, 0, 0] - torch.tensor(marked, dtype=torch.float32)).abs() < 0.5).all(dim=1)
            out[hit] = value
            return out

        return forward

    with pytest.raises(VectorRefused, match="toy/5") as error:
        extract(manifest, rgb_card(function=network(float("nan"))), tmp_path / "a")
    assert any("view full" in note for note in error.value.__notes__)
    report = extract(
        manifest, rgb_card(function=network(1e6)), tmp_path / "b", dtype="float16", on_error="skip"
    )
    assert [name for name, _ in report.failed] == ["toy/5"]
    assert len(Bank(tmp_path / "b").find("mean-rgb")) == 7


def test_an_encoder_that_fails_in_the_middle_keeps_what_was_done(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, rgb: Any
) -> None:
    def break_down(_: torch.Tensor) -> None:
        if rgb.seen >= 16:
            raise EncoderError("the network broke")

    rgb.before = break_down
    with pytest.raises(EncoderError, match="the network broke"):
        extract(make_manifest(64), rgb_card(), tmp_path / "bank", batch_size=8, device="cpu,cpu")
    assert len(Bank(tmp_path / "bank").find("mean-rgb")) >= 16


def test_a_store_that_cannot_be_written_stops_the_run(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from patchbank.cache.store import StoreWriter

    def full(self: Any) -> None:
        raise StoreError("no space left on the disk")

    monkeypatch.setattr(StoreWriter, "flush", full)
    with pytest.raises(StoreError, match="no space left"):
        extract(make_manifest(40), rgb_card(), tmp_path / "bank", batch_size=4)


def test_memory_that_runs_out_halves_the_batch(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, rgb: Any
) -> None:
    def limited(batch: torch.Tensor) -> None:
        if len(batch) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")

    rgb.before = limited
    report = extract(make_manifest(40), rgb_card(), tmp_path / "bank", batch_size=16)
    assert report.batch_size == 4
    assert rgb.seen == 40

    def nothing_fits(_: torch.Tensor) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    rgb.before = nothing_fits
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        extract(make_manifest(3, name="other", first=100), rgb_card(), tmp_path / "bank")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"on_error": "ignore"}, "on_error 'ignore' is not one of fail, skip"),
        ({"resize": "gpu"}, "resize 'gpu' is not one of pil, device"),
        ({"batch_size": 0}, "batch_size has to be at least 1, not 0"),
        ({"workers": 0, "engine": "spark"}, "engine 'spark' is not one of .*; workers has to be at least 1"),
        ({"batchsize": 8}, "unknown key 'batchsize', did you mean 'batch_size'"),
        ({"options": run.ExtractOptions()}, "not both"),
        ({"precision": "fp8"}, "unknown precision"),
        ({"precision": "fp16", "device": "cpu"}, "fp16 is not computed on a CPU"),
        ({"device": "cuda:7"}, "no device cuda:7"),
        ({"device": "tpu9000"}, "unknown device"),
        ({"view": "middle"}, "unknown view"),
        ({"tokens": "cls"}, "has no tokens"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"checkpoint": "none.safetensors"}, "the checkpoint none.safetensors does not exist"),
    ],
)
def test_requests_that_make_no_sense(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says):
        extract(make_manifest(2), rgb_card(), tmp_path / "bank", **options)


# --- two runs at once --------------------------------------------------------------------------------


OTHER_RUN = """
import os, signal, sys, time
from patchbank.extract.cards import Card, Transform
from patchbank.extract.run import run_extract

def forward(batch):
    {body}
    return batch.mean(dim=(2, 3))

shape = Transform(size=16, mean=(0, 0, 0), std=(1 / 255,) * 3)
card = Card(id="mean-rgb", kind="python", model="tests:mean-rgb", revision="1", dim=3, tokens="pooled",
            transform=shape, factory=lambda: forward)
options = {{"dtype": "float32", "progress": False, "batch_size": 8}}
report = run_extract(sys.argv[1], encoder=card, bank=sys.argv[2], **options)
print(report.embedded, report.elsewhere)
"""


def other_run(folder: Path, body: str) -> subprocess.Popen[str]:
    """Another process that extracts the same manifest into the same bank with the same encoder."""
    code = OTHER_RUN.format(body=body)
    arguments = [sys.executable, "-c", code, str(folder / "toy.toml"), str(folder / "bank")]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_two_runs_at_once_share_the_work(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, rgb: Any, until: Any
) -> None:
    """Both end with everything there; nothing is stored twice."""
    manifest = make_manifest(1200)  # five units
    rgb.before = lambda _: time.sleep(0.01)
    other = other_run(tmp_path, "time.sleep(0.01)")
    until(lambda: list((tmp_path / "bank").rglob("leases/*.json")) or other.poll() is not None)
    report = extract(manifest, rgb_card(), tmp_path / "bank", batch_size=8)
    embedded, elsewhere = map(int, other.communicate(timeout=300)[0].split())
    assert other.returncode == 0
    store = Bank(tmp_path / "bank").find("mean-rgb")
    assert len(store) == store.published_rows == 1200
    assert embedded + report.embedded == 1200
    assert report.elsewhere + report.cached + report.embedded == 1200
    assert embedded + elsewhere == 1200
    assert not list((tmp_path / "bank").rglob("leases/*.json")), "every lease is given back"


def test_a_killed_runs_unit_is_taken_over(tmp_path: Path, make_manifest: Make, rgb_card: Make) -> None:
    """A lease whose process is gone does not stop anybody."""
    manifest = make_manifest(30)
    other = other_run(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    other.communicate(timeout=300)
    assert other.returncode == -9
    assert list((tmp_path / "bank").rglob("leases/*.json"))
    assert extract(manifest, rgb_card(), tmp_path / "bank").embedded == 30


# --- commits of the hub -------------------------------------------------------------------------------


def test_another_commit_of_an_unpinned_card_is_an_error(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from patchbank.extract.cards import UNPINNED

    manifest, old, new = make_manifest(2), "a" * 40, "b" * 40
    card = rgb_card()
    object.__setattr__(card, "revision", UNPINNED)
    here = {"commit": old}
    monkeypatch.setattr(
        run, "locate", lambda *_, **__: Weights(f"hub:lab/mine@{here['commit']}", None, here["commit"])
    )
    extract(manifest, card, tmp_path / "bank")
    extract(manifest, card, tmp_path / "bank")
    here["commit"] = new
    with pytest.raises(EncoderError, match=f"made with hub:lab/mine@{old}.*--revision {old}"):
        extract(manifest, card, tmp_path / "bank")
    extract(manifest, card, tmp_path / "bank", revision=new)
    assert len(Bank(tmp_path / "bank").stores()) == 2


def test_resize_on_the_device_is_near_pil_and_another_identity(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, keys_of: Make
) -> None:
    """Patches of two shapes in one run; at most 2 of 255 from PIL."""
    manifest, large = make_manifest(4, side=40), make_manifest(3, name="large", first=50, side=50)
    card = rgb_card(
        function=lambda x: x.flatten(1),
        dim=3 * 16 * 16,
        transform=Transform(size=16, resize=20, mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255)),
    )
    for resize in ("pil", "device"):
        extract([manifest, large], card, tmp_path / resize, resize=resize)
    pil, device = (Bank(tmp_path / resize).find("mean-rgb") for resize in ("pil", "device"))
    assert pil.identity != device.identity
    keys = np.concatenate([keys_of(manifest), keys_of(large)])
    difference = np.abs(pil.load(keys) - device.load(keys))
    assert difference.max() <= 2
    assert difference.mean() < 0.2


# --- images that change -------------------------------------------------------------------------------


def repaint(path: str, seed: int, *, keep_time: bool = False) -> None:
    """Another picture of the same size in pixels under the same name."""
    before = os.stat(path)  # noqa: PTH116
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("keep_time", [True, False])
def test_an_image_overwritten_in_place_is_never_served(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, hashed: bool, keep_time: bool
) -> None:
    manifest, bank = make_manifest(6, hashed=hashed), tmp_path / "bank"
    extract(manifest, rgb_card(), bank)
    before, size = load(manifest, encoder="mean-rgb", bank=bank), Path(manifest.path(2)).stat().st_size
    repaint(manifest.path(2), 99, keep_time=keep_time)
    if not keep_time or Path(manifest.path(2)).stat().st_size != size:
        with pytest.raises(RowsMissing, match=r"1 of 6 patches .* files of another size or time .*toy/2"):
            load(manifest, encoder="mean-rgb", bank=bank)
    if hashed:
        with pytest.raises(ImageError, match="toy/2: the file has changed since its hash was taken"):
            extract(manifest, rgb_card(), bank)
        report = extract(manifest, rgb_card(), bank, on_error="skip")
        assert [name for name, _ in report.failed] == ["toy/2"]
        with pytest.raises(RowsMissing, match="files of another size or time"):
            load(manifest, encoder="mean-rgb", bank=bank)
        return
    assert extract(manifest, rgb_card(), bank).embedded == 1
    after = load(manifest, encoder="mean-rgb", bank=bank)
    assert not np.allclose(after[2], before[2])
    np.testing.assert_array_equal(np.delete(after, 2, axis=0), np.delete(before, 2, axis=0))


def test_a_file_that_was_only_touched_is_read_again_and_stays_cached(
    tmp_path: Path, make_manifest: Make, rgb_card: Make
) -> None:
    manifest, bank = make_manifest(4), tmp_path / "bank"
    extract(manifest, rgb_card(), bank)
    os.utime(manifest.path(1), ns=(1, 10**18))
    with pytest.raises(RowsMissing, match=r"patchbank extract toy\.toml"):
        load(manifest, encoder="mean-rgb", bank=bank)
    report = extract(manifest, rgb_card(), bank)
    assert (report.cached, report.embedded, report.forwards) == (4, 0, 0)
    assert load(manifest, encoder="mean-rgb", bank=bank).shape == (4, 3)


def test_images_that_are_not_here_are_not_changed(
    tmp_path: Path, make_manifest: Make, rgb_card: Make
) -> None:
    manifest, bank = make_manifest(4), tmp_path / "bank"
    extract(manifest, rgb_card(), bank)
    for i in range(4):
        Path(manifest.path(i)).unlink()
    assert load(manifest, encoder="mean-rgb", bank=bank).shape == (4, 3)


@pytest.mark.parametrize("hashed", [True, False])
def test_an_image_replaced_while_a_run_computes_is_noticed(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, rgb: Any, hashed: bool
) -> None:
    """After its decode, before the run's end, within the tick of the clock: read once more at the end."""
    manifest, bank = make_manifest(4, hashed=hashed), tmp_path / "bank"
    for i in range(4):  # as young as can be
        os.utime(manifest.path(i))

    def replace(batch: torch.Tensor) -> None:
        rgb.before = lambda _: None
        repaint(manifest.path(3), 77)

    rgb.before = replace
    extract(manifest, rgb_card(), bank)
    with pytest.raises(RowsMissing, match="toy/3"):
        load(manifest, encoder="mean-rgb", bank=bank)
    if not hashed:
        assert extract(manifest, rgb_card(), bank).embedded == 1
        assert load(manifest, encoder="mean-rgb", bank=bank).shape == (4, 3)


@pytest.mark.parametrize("kind", ["zip", "tar", "h5"])
@pytest.mark.parametrize("hashed", [True, False])
def test_a_container_replaced_within_a_tick_is_read_again(
    tmp_path: Path, make_manifest: Make, rgb_card: Make, rgb: Any, monkeypatch: pytest.MonkeyPatch,
    kind: str, hashed: bool,
) -> None:  # fmt: skip
    """Same size, same times; the run still holds the old file open when it looks again."""
    loose, bank, file = make_manifest(4, hashed=hashed), tmp_path / "bank", tmp_path / f"all.{kind}"
    images = np.random.default_rng(5).integers(0, 256, (2, 4, SIDE, SIDE, 3), dtype=np.uint8)

    def pack(to: Path, pixels: np.ndarray) -> None:
        if kind == "h5":
            with h5py.File(to, "w") as store:
                store["x"] = pixels
            return
        for i in range(4):
            Image.fromarray(pixels[i]).save(tmp_path / f"{i}.bmp")
        if kind == "zip":
            with zipfile.ZipFile(to, "w") as archive:
                for i in range(4):
                    archive.write(tmp_path / f"{i}.bmp", f"{i}.bmp")
        else:
            with tarfile.open(to, "w") as archive:
                for i in range(4):
                    archive.add(tmp_path / f"{i}.bmp", f"{i}.bmp")

    other = tmp_path / f"other.{kind}"
    pack(other, images[1])
    pack(file, images[0])
    assert other.stat().st_size == file.stat().st_size
    paths = [f"{file}::x[{i}]" if kind == "h5" else f"{file}::{i}.bmp" for i in range(4)]
    table = loose.table.assign(path=paths)
    if hashed:
        table["content_hash"] = [content_hash(one).hex() for one in images[0]]
    manifest = Manifest(loose.header, table, loose.root)
    now = time.time_ns()
    one_tick = lambda path: (os.stat(path).st_size, now, now)  # noqa: E731, PTH116
    monkeypatch.setattr(hashes, "state_of", one_tick)
    monkeypatch.setattr(planning, "state_of", one_tick)
    clock = [now]  # stands still but for the wait for a tick, however long the run takes
    fake = SimpleNamespace(
        time_ns=lambda: clock[0], sleep=lambda seconds: clock.append(clock.pop() + int(1e9 * seconds))
    )
    monkeypatch.setattr(planning, "time", fake)

    def replace(batch: torch.Tensor) -> None:
        rgb.before = lambda _: None
        other.replace(file)

    rgb.before = replace
    extract(manifest, rgb_card(), bank)
    if hashed:
        with pytest.raises(RowsMissing, match=r"4 of 4 patches .* files of another size or time"):
            load(manifest, encoder="mean-rgb", bank=bank)
        return
    with pytest.raises(RowsMissing, match="4 of 4 patches"):
        load(manifest, encoder="mean-rgb", bank=bank)
    assert extract(manifest, rgb_card(), bank).embedded == 4
    found = load(manifest, encoder="mean-rgb", bank=bank)
    np.testing.assert_allclose(found, images[1].mean((1, 2)), rtol=1e-5)


def test_a_path_with_nul_is_named(tmp_path: Path, make_manifest: Make, rgb_card: Make) -> None:
    whole = make_manifest(3, hashed=False)
    manifest = Manifest(
        whole.header, whole.table.assign(path=["a\0b.png", *whole.table["path"][1:]]), whole.root
    )
    with pytest.raises(ImageError, match="embedded null byte"):
        extract(manifest, rgb_card(), tmp_path / "bank")
    report = extract(manifest, rgb_card(), tmp_path / "bank", on_error="skip")
    assert [name for name, _ in report.failed] == ["toy/0"]
    with pytest.raises(RowsMissing, match="1 of 3 patches"):
        load(manifest, encoder="mean-rgb", bank=tmp_path / "bank")


def test_a_duplicate_that_was_not_decoded_is_watched_too(
    tmp_path: Path, make_manifest: Make, rgb_card: Make
) -> None:
    manifest, bank = make_manifest(3), tmp_path / "bank"
    Path(manifest.path(2)).write_bytes(Path(manifest.path(0)).read_bytes())
    table = manifest.table.copy()
    table.loc[2, "content_hash"] = table.loc[0, "content_hash"]
    manifest = Manifest(header=manifest.header, table=table, root=manifest.root)
    assert extract(manifest, rgb_card(), bank).embedded == 2
    assert load(manifest, encoder="mean-rgb", bank=bank).shape == (3, 3)
    repaint(manifest.path(2), 55)
    with pytest.raises(RowsMissing, match="toy/2"):
        load(manifest, encoder="mean-rgb", bank=bank)


def test_encoders_of_another_resolution_are_named(
    tmp_path: Path, make_manifest: Make, rgb_card: Make
) -> None:
    plain = make_manifest(3)
    manifest = Manifest(plain.header.replace(mpp=0.25), plain.table, plain.root)
    with pytest.warns(
        UserWarning, match=r"trained at 1 micrometres a pixel, .* have 0.25: 4.0 times apart.*mpp:1"
    ):
        extract(manifest, rgb_card(mpp=(1.0,)), tmp_path / "bank")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extract(manifest, rgb_card(mpp=(0.5, 0.25)), tmp_path / "bank")
        extract(manifest, rgb_card(), tmp_path / "bank", view="center:0.5")
        extract(manifest, rgb_card(mpp=(0.375,)), tmp_path / "bank", view="center:0.75")  # 1.5 times
        extract(plain, rgb_card(mpp=(1.0,)), tmp_path / "bank")  # not known
        other = Manifest(plain.header.replace(mpp=0.45), plain.table, plain.root)
        extract(other, rgb_card(mpp=(0.3,)), tmp_path / "bank")
    with pytest.warns(
        UserWarning, match=r"takes the patches of toy as 0.5 micrometres a pixel; .* says 0.25"
    ):
        extract(manifest, rgb_card(), tmp_path / "bank", view="mpp:1@0.5")


@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf")])
def test_a_resolution_is_a_number(value: float, make_manifest: Make, rgb_card: Make) -> None:
    with pytest.raises(InvalidRequest, match=r"mpp = .* is no number of micrometres a pixel"):
        make_manifest(1).header.replace(mpp=value)
    with pytest.raises(InvalidRequest, match=r"mpp = .*: micrometres a pixel are more than 0"):
        rgb_card(mpp=(0.5, value))


def test_a_view_by_resolution_is_a_store_of_its_own(
    tmp_path: Path,
    make_manifest: Make,
    rgb_card: Make,
) -> None:
    """16 px at 0.25 are 8 px at 0.5, framed by the card's mean, which is 0: a quarter of the sum stays."""
    plain = make_manifest(4)
    manifest = Manifest(plain.header.replace(mpp=0.25), plain.table, plain.root)
    report = extract(manifest, rgb_card(), tmp_path / "bank", view=["full", "mpp:0.5"], dtype="float32")
    assert [store.view for store in report.stores] == ["full", "mpp:0.5@0.25"]
    bank = Bank(tmp_path / "bank")
    keys = np.array([list(bytes.fromhex(h)) for h in manifest.table["content_hash"]], np.uint8)
    full, half = (bank.find("mean-rgb", view=v).load(keys) for v in ("full", "mpp:0.5@0.25"))
    np.testing.assert_allclose(half, full / 4, rtol=0.02)
    second = make_manifest(2, name="other", first=9)
    other = Manifest(second.header.replace(mpp=0.5), second.table, second.root)
    for two, says in ((other, "other 0.5, toy 0.25"), (second, "other not known, toy 0.25")):
        with pytest.raises(InvalidRequest, match=rf"differ in micrometres a pixel \({says}\)"):
            run.run_extract(
                [manifest, two], encoder=rgb_card(), bank=tmp_path / "bank", view="mpp:0.5", progress=False
            )
    with pytest.raises(InvalidRequest, match="resampled by PIL only"):
        extract(manifest, rgb_card(), tmp_path / "bank", view="mpp:0.5", resize="device")
