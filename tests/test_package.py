"""The package as it is installed: every folder is listed, every declaration shipped, every export real."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import patchbank
import pytest
from patchbank import version

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_every_folder_with_code_is_a_package_of_the_wheel() -> None:
    folders = {p.parent.relative_to(ROOT).as_posix() for p in ROOT.glob("[!.]*/**/*.py")}
    folders = {f for f in folders if f.split("/")[0] not in {"tests", "build", "dist"}}
    assert "cache" in folders
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    assert {f"patchbank.{f.replace('/', '.')}" for f in folders} | {
        "patchbank",
        "patchbank.manifests",
    } == set(listed)


def test_every_declaration_is_shipped() -> None:
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["patchbank.manifests"]
    shipped = {p for pattern in patterns for p in (ROOT / "manifests").glob(pattern)}
    files = {p for p in (ROOT / "manifests").rglob("*") if p.is_file() and p.suffix not in {".py", ".pyc"}}
    assert files
    assert files == shipped


@pytest.mark.parametrize("name", [n for n in patchbank.__all__ if n != "__version__"])
def test_exports_are_real(name: str) -> None:
    assert callable(getattr(patchbank, name))
    assert name in dir(patchbank)


def test_an_unknown_export_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = patchbank.no_such_thing


@pytest.mark.parametrize(
    ("program", "known"),
    [("/bin/patchbank", True), ("/lib/patchbank/__main__.py", True), ("/bin/pytest", False), ("-c", False)],
)
def test_the_command_is_kept_with_results(program: str, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "run", "my study.toml"])
    assert version.provenance()["command"] == (["run", "my study.toml"] if known else [])


def test_pages_and_studies_start_without_the_large_libraries() -> None:
    """What they show is drawn and counted without them; each takes half a second or more to load."""
    script = (
        "import sys\n"
        "import patchbank.study, patchbank.probe.report.study_tables, patchbank.probe.report.write\n"
        "large = ('torch', 'timm', 'sklearn', 'scipy.stats', 'matplotlib')\n"
        "print([name for name in large if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_cpu_stage_runs_where_no_gpu_stack_is_installed() -> None:
    """Every module of cache and probe imports while torch, timm and PIL cannot be."""
    modules = [
        "patchbank." + path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for folder in ("cache", "probe")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(modules) > 60
    script = (
        "import sys, importlib\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'torchvision', 'timm', 'transformers', 'peft', 'PIL'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name.removesuffix('.__init__'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_hugging_face_datasets_is_not_hidden() -> None:
    """`datasets/` has no __init__.py, so that `import datasets` from the checkout finds the other package."""
    assert not (ROOT / "datasets" / "__init__.py").exists()
    assert importlib.import_module("patchbank.datasets.manifest").load_manifest is patchbank.load_manifest
