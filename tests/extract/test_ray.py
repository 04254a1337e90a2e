"""The Ray engine on a local cluster, one of whose workers is killed in the middle."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patchbank.cache.bank import Bank
from patchbank.errors import ImageError
from patchbank.extract.run import run_extract

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def deadly(marker: Path) -> Callable[[], Any]:
    """A factory of the mean RGB encoder that kills its process once, at the first batch of all."""

    def factory() -> Any:
        def forward(batch: torch.Tensor) -> torch.Tensor:
            try:
                marker.touch(exist_ok=False)
            except FileExistsError:
                return batch.mean(dim=(2, 3))
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

        return forward

    return factory


def test_a_killed_workers_units_are_done_again(
    cluster: None,
    tmp_path: Path,
    make_manifest: Callable[..., Any],
    rgb_card: Callable[..., Any],
    expected_rgb: Callable[..., Any],
    keys_of: Callable[..., Any],
) -> None:
    manifest = make_manifest(600)  # three units
    card = rgb_card()
    object.__setattr__(card, "factory", deadly(tmp_path / "killed"))
    options = {"encoder": card, "bank": tmp_path / "bank", "dtype": "float32", "progress": False}
    report = run_extract(manifest, engine="ray", actors=2, batch_size=16, **options)
    assert (tmp_path / "killed").exists()
    assert report.actors_lost == 1
    store = Bank(tmp_path / "bank").find("mean-rgb")
    assert len(store) == store.published_rows == 600
    np.testing.assert_allclose(store.load(keys_of(manifest)), expected_rgb(manifest), atol=1e-3)
    assert report.embedded == report.forwards == 600
    assert not list((tmp_path / "bank").rglob("leases/*.json"))
    # the second run starts no actor
    assert not run_extract(manifest, engine="ray", **options).model_loaded


def test_an_actors_error_is_the_runs_error(
    cluster: None, tmp_path: Path, make_manifest: Callable[..., Any], rgb_card: Callable[..., Any]
) -> None:
    manifest = make_manifest(8)
    Path(manifest.path(3)).write_bytes(b"text")
    card = rgb_card()
    object.__setattr__(card, "factory", deadly(tmp_path))  # the marker is there: nobody is killed
    with pytest.raises(ImageError, match=r"3\.png"):
        run_extract(manifest, encoder=card, bank=tmp_path / "bank", engine="ray", actors=1, progress=False)
