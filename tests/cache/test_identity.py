"""The identity of a store: what changes it, what does not, and its name on disk."""

import json
from typing import Any

import pytest
from patchbank.cache.identity import Identity, safe_name
from patchbank.errors import InvalidRequest


def test_digest_is_the_same_on_every_machine(identity: Any) -> None:
    assert identity().digest == "9a3cae3e62983208a73e8f5d45b5bfb4"


def test_round_trip_and_equality(identity: Any) -> None:
    one = identity()
    other = Identity.from_json(json.loads(json.dumps(one.to_json())))
    assert one == other
    assert hash(one) == hash(other)
    assert one == identity(preprocess={"mean": (0.5, 0.5, 0.5), "resize": 224})  # order, tuple
    assert one != "something else"


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": {"id": "fake:noise", "weights": "sha256:01"}},
        {"encoder": {"id": "fake:noise", "weights": "sha256:00", "act": "gelu"}},
        {"preprocess": {"resize": 224, "mean": [0.5, 0.5, 0.500001]}},
        {"view": "center:0.5"},
        {"tokens": "mean"},
        {"precision": "bf16"},
        {"dtype": "float32"},
        {"dim": 9},
    ],
)
def test_every_part_counts(identity: Any, change: dict[str, Any]) -> None:
    assert identity(**change) != identity()
    assert identity(**change).name != identity().name


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"encoder": {}}, "id"),
        ({"dtype": "float64"}, "float16 or float32"),
        ({"precision": "half"}, "fp32, bf16, fp16"),
        ({"dim": 0}, "dim is 0"),
        ({"dim": True}, "dim is True"),
        ({"tokens": ""}, "tokens"),
        ({"preprocess": {"mean": float("nan")}}, "JSON"),
        ({"preprocess": {"mean": object()}}, "JSON"),
    ],
)
def test_what_is_no_identity(identity: Any, change: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        identity(**change)


def test_unknown_parts_are_refused(identity: Any) -> None:
    with pytest.raises(InvalidRequest, match="wrong here: licence"):
        Identity.from_json(identity().to_json() | {"licence": "MIT"})


def test_names(identity: Any) -> None:
    name = identity(encoder={"id": "hf:org/Model v2"}, view="center:0.5", tokens="cls+mean").name
    assert name.startswith("hf-org-Model-v2.center-0-5.cls+mean.")
    assert safe_name("../..") == "x"
    assert safe_name("a" * 300) == "a" * 80
