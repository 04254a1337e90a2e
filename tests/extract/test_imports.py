"""What a short run does not load, and that it is there all the same."""

import subprocess
import sys
from pathlib import Path

import torch
from patchbank.extract.models import imports
from torch._dynamo import utils
from torchvision.ops import roi_align

SCRIPT = """
import sys
import torch
from safetensors.torch import save_file
from patchbank.extract.cards import Card, Transform
from patchbank.extract.encoders import build_encoder

card = Card(
    id="tiny", model="vit_tiny_patch16_224", dim=192, grid=4, prefix=1, transform=Transform(size=32),
    arguments={"img_size": 32, "depth": 1, "num_classes": 0},
)
torch.manual_seed(0)
state = build_encoder(card, device="cpu", random_weights=True).network.model.state_dict()
assert state["blocks.0.mlp.fc1.weight"].std() > 0.01, "random weights stay random"
save_file(state, sys.argv[1])
images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
for model in (card, card.replace(model="tf_efficientnet_lite0", dim=1280, grid=0, prefix=0, arguments={})):
    checkpoint = sys.argv[1] if model is card else None
    found = build_encoder(model, device="cpu", checkpoint=checkpoint, random_weights=model is not card)
    found.embed(images, ["pooled"])
loaded = [name for name in ("torch._dynamo", "sympy", "transformers") if name in sys.modules]
assert not loaded, loaded

"""


def test_an_encoder_is_built_without_torchs_compiler(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "tiny.safetensors")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_is_put_off_comes_when_it_is_asked_for() -> None:
    assert roi_align(torch.ones(1, 1, 8, 8), [torch.tensor([[0.0, 0, 4, 4]])], 2).eq(1).all()
    assert imports._stand_in().counters is utils.counters
    assert imports._stand_in().is_compile_supported("cpu") == utils.is_compile_supported("cpu")
    marked = imports._later(torch.compiler.disable)
    assert marked(lambda: 4)() == marked(reason="no")(lambda: 4)() == 4
    assert marked(utils.is_compile_supported).__name__ == "is_compile_supported"


def test_values_are_left_out_on_the_device_meta_only() -> None:
    with imports.WithoutValues():
        real = torch.zeros(2).fill_(3)
        torch.nn.init.constant_(real[1:], 5)
        empty = torch.nn.init.trunc_normal_(torch.empty(2, 3, device="meta"))
    assert real.tolist() == [3, 5]
    assert (empty.shape, empty.is_meta) == ((2, 3), True)
