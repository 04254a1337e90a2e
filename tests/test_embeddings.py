"""Embeddings as array, frame, AnnData, tensor; manifests by path and name; a text where a list is meant."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import patchbank
import pytest
from patchbank.datasets.manifest import as_manifest, as_manifests
from patchbank.errors import EncoderError, InvalidRequest, ManifestError
from patchbank.extract.cards import card_from
from PIL import Image


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """images/KIND/N.png with its manifest, an encoder that gives mean colours, and a bank."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for kind in ("a", "b"):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / kind / f"{i}.png")
    manifest = patchbank.build_manifest(
        "folder", tmp_path / "images", dataset="toy", positive="a", progress=False
    )
    manifest.save(tmp_path / "toy.toml")
    monkeypatch.chdir(tmp_path)

    class Mean(torch.nn.Module):
        def forward(self, batch: Any) -> Any:
            return batch.mean(dim=(2, 3))

    def transform(image: Image.Image) -> Any:
        return torch.from_numpy(np.array(image.resize((16, 16)), np.float32)).permute(2, 0, 1)

    return SimpleNamespace(
        manifest=manifest, bank=tmp_path / "bank", network=Mean(), transform=transform, torch=torch
    )


def test_a_torch_module_is_an_encoder_and_its_embeddings_have_every_form(place: SimpleNamespace) -> None:
    card = patchbank.wrap_encoder(place.network, place.transform, name="mean", revision="1", licence="MIT")
    assert (card.dim, card.tokens, card.transform.size) == (3, "pooled", 16)
    options = {"bank": place.bank, "progress": False, "dtype": "float32"}
    report = patchbank.run_extract("toy", encoder=card, view=["full", "d4:mean"], **options)
    assert report.embedded == 8
    where = {"encoder": "mean", "bank": place.bank, "view": "full"}
    expected = np.stack(
        [
            place.transform(Image.open(place.manifest.path(i))).mean(dim=(1, 2)).numpy()
            for i in range(len(place.manifest))
        ]
    )
    X = patchbank.load("toy.toml", **where)
    np.testing.assert_allclose(X, expected, rtol=1e-5)
    np.testing.assert_allclose(patchbank.load("toy", **{**where, "view": "d4:mean"}), X, rtol=1e-5)
    frame = patchbank.load(place.manifest, as_="frame", **where)
    assert list(frame.index) == list(place.manifest.table["patch_id"])
    np.testing.assert_array_equal(frame.to_numpy(), X)
    tensor = patchbank.load(place.manifest, as_="torch", **where)
    assert isinstance(tensor, place.torch.Tensor)
    assert tensor.shape == (8, 3)
    pytest.importorskip("anndata")
    data = patchbank.load(place.manifest, as_="anndata", **where)
    np.testing.assert_array_equal(data.X, X)
    assert list(data.obs["label"]) == list(place.manifest.table["label"])
    with pytest.raises(InvalidRequest, match="as_ 'list' is not one of array, frame, anndata, torch"):
        patchbank.load(place.manifest, as_="list", **where)  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_name_and_revision_are_the_identity(place: SimpleNamespace) -> None:
    options = {"bank": place.bank, "progress": False}
    cards = [
        patchbank.wrap_encoder(place.network, place.transform, name="mean", revision=revision)
        for revision in ("1", "2", "1")
    ]
    stores = [patchbank.run_extract("toy", encoder=card, **options).stores[0].name for card in cards]
    assert stores[0] == stores[2] != stores[1]
    before = next(place.network.parameters(), None)
    assert before is None or before.requires_grad, "the module itself is left as it was"
    with pytest.raises(InvalidRequest, match=r"encoder=wrap_encoder\(network, transform"):
        patchbank.run_extract("toy", encoder=place.network, **options)
    with pytest.raises(InvalidRequest, match=r"has a transform of its own: leave --resize out"):
        patchbank.run_extract("toy", encoder=cards[0], resize="device", **{**options, "bank": "other"})


def test_what_does_not_fit_together_is_said(place: SimpleNamespace) -> None:
    torch = place.torch
    name: dict[str, Any] = {"name": "x", "revision": "1"}
    with pytest.raises(InvalidRequest, match=r"the transform gives \(16, 16, 3\) for an image"):
        patchbank.wrap_encoder(place.network, lambda image: np.zeros((16, 16, 3)), **name)
    with pytest.raises(InvalidRequest, match=r"the network gives \(1, 3, 16, 16\)"):
        patchbank.wrap_encoder(torch.nn.Identity(), place.transform, **name)

    def by_shape(image: Image.Image) -> np.ndarray:
        return np.zeros((3, 16, 16 if image.width > 100 else 8), np.float32)

    card = patchbank.wrap_encoder(place.network, by_shape, **name)
    with pytest.raises(EncoderError, match=r"the transform x@1 gave float32 \(3, 16, 8\)"):
        patchbank.run_extract("toy", encoder=card, bank=place.bank, progress=False)
    with pytest.raises(InvalidRequest, match="unknown key 'function'"):
        card_from({"id": "x", "dim": 3, "transform": {"function": "os:system"}}, origin="x.toml")


def test_manifests_by_name_and_path(place: SimpleNamespace) -> None:
    assert as_manifest(place.manifest) is place.manifest
    for named in ("toy", "toy.toml", Path("toy"), str(Path("toy.toml").absolute())):
        assert len(as_manifest(named)) == 8
    with pytest.raises(ManifestError, match=r"none\.toml"):
        as_manifest("none")
    assert len(as_manifests("tests", ["toy", place.manifest])) == 2
    with pytest.raises(InvalidRequest, match=r"tests takes a list: write tests=\['toy'\]"):
        as_manifests("tests", "toy")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidRequest, match=r"tests takes a list: write tests=\[test\]"):
        as_manifests("tests", place.manifest)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("argument", ["encoders", "views", "tokens", "features", "tests"])
def test_a_text_where_a_list_is_meant(place: SimpleNamespace, argument: str) -> None:
    settings: dict[str, Any] = {"encoders": ["mean"], argument: "toy"}
    with pytest.raises(InvalidRequest, match=rf"{argument} takes a list: write {argument}=\['toy'\]"):
        patchbank.run_probe(train="toy", bank=place.bank, **settings)


def test_every_public_name_is_there_and_described() -> None:
    for name in patchbank.__all__:
        described = getattr(patchbank, name)
        assert name.startswith("__") or described.__doc__, name
    text = (Path(patchbank.__file__).parent / ".docs/reference/api.md").read_text("utf-8")
    missing = [name for name in patchbank.__all__ if not name.startswith("__") and f".{name}\n" not in text]
    assert missing == []
