"""Push and pull of probes against the stand-in of the hub: the real client, the files, the model card."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from patchbank.errors import InvalidRequest, ProbeError
from patchbank.probe.cli import probe_group
from patchbank.probe.hub import model_card, probe_of_hub, pull_probe, push_probe
from patchbank.probe.model import About, ProbeModel

pytest.importorskip("huggingface_hub")


@pytest.fixture
def probe() -> ProbeModel:
    affine = ("affine", {"weight": np.array([[1.0], [-2.0]]), "bias": np.array([0.5])})
    store = {
        "store": "uni2-h.full.cls.0123",
        "identity": {"encoder": {"id": "uni2-h", "weights": "hub:MahmoodLab/UNI2-h@abc"}, "view": "full"},
        "provenance": {"licence": "CC-BY-NC-ND-4.0"},
    }
    about = About(
        features="uni2-h/full/cls",
        classes=("normal", "<b>tumor"),
        positive="<b>tumor",
        stores={"uni2-h/full/cls": store},
        training={"dataset": "mine:train", "licence": "CC0", "n": 300},
        scores={"mine:test": {"auroc": [0.9, 0.85, 0.95], "balanced_accuracy": [0.8, None, None]}},
    )
    return ProbeModel((((affine,)),), np.array([0.2, 1.0, 2.0, -0.5]), about)


def test_push_and_pull(hub: Any, probe: ProbeModel, tmp_path: Path) -> None:
    endpoint, repositories = hub
    asked = {"endpoint": endpoint, "token": "secret"}
    assert push_probe(probe, "org/probe", **asked).endswith("org/probe")
    files = repositories["org/probe"]
    assert set(files) == {"README.md", "probe.json", "probe.safetensors"}
    card = files["README.md"].decode()
    for words in ("uni2-h: CC-BY-NC-ND-4.0", "0.900 [0.850, 0.950]", "licence: CC0", "300 patches"):
        assert words in card.replace("\\", ""), words
    assert "<b>" not in card
    assert "patchbank probe pull org/probe probe" in card
    pulled = pull_probe("org/probe", tmp_path / "probe", **asked)
    X = np.random.default_rng(0).standard_normal((5, 2))
    for one in (pulled, ProbeModel.load(tmp_path / "probe")):
        np.testing.assert_array_equal(one.predict_proba(X), probe.predict_proba(X))
        assert one.about.to_json() == probe.about.to_json()
    assert "patchbank predict hf:org/probe images" in card
    with pytest.raises(InvalidRequest, match="holds a probe already"):
        pull_probe("org/probe", tmp_path / "probe", **asked)


def test_the_card_of_a_probe_of_numbers(probe: ProbeModel) -> None:
    about = About(
        features="uni2-h/full/cls",
        targets=("CD3E", "age"),
        stores=probe.about.stores,
        scores={"mine:test": {"pearson": [0.5, 0.4, 0.6]}},
    )
    card = model_card(ProbeModel(probe.members, np.zeros(0), about), "org/genes")
    assert "A probe of patchbank: 2 numbers (CD3E, age), on embeddings" in card
    assert "| scored on | pearson |" in card
    assert "0.500 [0.400, 0.600]" in card
    assert ".predict(X)" in card


def test_a_probe_on_the_hub_predicts(
    hub: Any, probe: ProbeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept in the hub's cache, for machines without a network."""
    from huggingface_hub import constants

    endpoint, repositories = hub
    push_probe(probe, "org/probe", endpoint=endpoint, token="secret")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    X = np.random.default_rng(0).standard_normal((5, 2))
    for _ in range(2):
        found = probe_of_hub("org/probe", endpoint=endpoint, token="secret")
        np.testing.assert_array_equal(found.predict_proba(X), probe.predict_proba(X))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        repositories.clear()
    with pytest.raises(InvalidRequest, match="org/probe: org/probe has no ensemble"):
        probe_of_hub("org/probe", role="ensemble", endpoint=endpoint, token="secret")


def test_what_is_no_probe_is_not_written(hub: Any, probe: ProbeModel, tmp_path: Path) -> None:
    endpoint, repositories = hub
    asked = {"endpoint": endpoint, "token": "secret"}
    push_probe(probe, "org/probe", **asked)
    repositories["org/probe"]["probe.safetensors"] += b"!"
    with pytest.raises(
        ProbeError, match=r"org/probe.*probe.safetensors is not the file .*nothing was written"
    ):
        pull_probe("org/probe", tmp_path / "probe", **asked)
    repositories["org/other"] = {"README.md": b"a model"}
    with pytest.raises(ProbeError, match=r"org/other: org/other holds no probe: it has no probe\.json"):
        pull_probe("org/other", tmp_path / "probe", **asked)
    with pytest.raises(ProbeError, match="org/none was not pulled: the hub has no model org/none"):
        pull_probe("org/none", tmp_path / "probe", **asked)
    assert not (tmp_path / "probe").exists()
    with pytest.raises(
        ProbeError, match="was not pushed to org/probe: the hub refuses this machine's token"
    ) as caught:
        push_probe(probe, "org/probe", endpoint=endpoint, token="hf_wrong")
    assert "hf_wrong" not in str(caught.value)
    with pytest.raises(InvalidRequest, match="does not say which embeddings"):
        push_probe(ProbeModel(probe.members, probe.adjusted), "org/x", **asked)


def test_the_commands(hub: Any, probe: ProbeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, _ = hub
    monkeypatch.setenv("HF_TOKEN", "secret")
    probe.save(tmp_path / "results")
    for words in (["push", tmp_path / "results", "org/probe"], ["pull", "org/probe", tmp_path / "taken"]):
        done = CliRunner().invoke(probe_group, [*map(str, words), "--endpoint", endpoint])
        assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads((tmp_path / "taken/probe.json").read_text())["chosen"] == "uni2-h/full/cls"


def test_the_card_is_yaml_and_names_every_licence(probe: ProbeModel) -> None:
    text = model_card(probe, "org/probe")
    assert text.startswith("---\nlicense: other\n")
    assert text.count("---") == 2 or "|---" in text
    assert "Not for clinical use" in text
