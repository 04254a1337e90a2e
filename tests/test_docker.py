"""The Dockerfile as text: stages, what is copied and installed. Built by `.github/workflows/ci.yml`."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / ".docker" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
INSTRUCTIONS = {"FROM", "ENV", "RUN", "COPY", "WORKDIR", "USER", "ENTRYPOINT", "CMD"}


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Stage -> what it is made from, and its instructions."""
    text = re.sub(r"\\\n", " ", FILE.read_text("utf-8"))
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    name = ""
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        assert word in INSTRUCTIONS, line
        if word == "FROM":
            match = re.fullmatch(r"(\S+) AS (\w+)", rest)
            assert match, line
            name = match[2]
            assert name not in found
            found[name] = match[1], []
        else:
            found[name][1].append((word, rest.strip()))
    return found


STAGES = stages()
FINAL = ("probe", "cpu", "cuda")


def test_stages_are_made_from_an_image_or_an_earlier_stage() -> None:
    assert list(STAGES) == ["base", *FINAL]
    for name, (source, _) in STAGES.items():
        assert source in list(STAGES)[: list(STAGES).index(name)] or re.fullmatch(r"[\w./-]+:[\w.-]+", source)
    assert int(STAGES["base"][0].partition(":3.")[2].partition("-")[0]) >= 11, "Python"


@pytest.mark.parametrize("name", FINAL)
def test_a_stage_installs_known_extras_and_runs_the_command_as_a_user(name: str) -> None:
    _, lines = STAGES[name]
    (installed,) = re.findall(r'"/opt/patchbank\[([\w,]+)\]"', " ".join(rest for _, rest in lines))
    assert set(installed.split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    words = dict(lines)
    assert words["ENTRYPOINT"] == '["patchbank"]'
    assert "patchbank" in PROJECT["project"]["scripts"]
    assert words["USER"] == "patchbank"
    assert ("extract" in installed.split(",")) == (name != "probe")
    assert ("/whl/cpu" in " ".join(words.values())) == (name == "cpu")


def test_what_is_copied_has_all_that_an_install_reads() -> None:
    copies = [rest for _, lines in STAGES.values() for word, rest in lines if word == "COPY"]
    assert copies == [". /opt/patchbank"]
    left_out = [
        line
        for line in (FILE.parent / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    needed = {"pyproject.toml", "README.md", "LICENSE", "__init__.py", "py.typed"}
    needed |= {f.split(".")[1] for f in PROJECT["tool"]["setuptools"]["packages"] if "." in f}
    assert not needed & set(left_out)
    assert not [name for name in needed if name.startswith(".")]
    assert all((ROOT / name).exists() for name in needed)
    assert ".*" in left_out, "no history and no settings of a machine in an image"
    assert not re.search(r"TOKEN|SECRET|PASSWORD", FILE.read_text("utf-8"))
