"""Who imports whom: cli -> study -> extract | probe | finetune -> cache, datasets -> manifests, errors."""

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEAVES = {
    "errors",
    "files",
    "hub",
    "options",
    "settings",
    "steps",
    "terminal",
    "texts",
    "version",
}
STAGES = {"datasets", "extract", "probe", "finetune"}
LAYERS = {  # folder -> the folders and root modules that it may import
    "files": {"errors"},
    "hub": {"errors", "files"},
    "options": {"errors", "terminal"},
    "settings": {"errors", "files"},
    "steps": {"errors", "files", "version"},
    "version": set(),
    "terminal": set(),
    "texts": {"errors", "files", "terminal"},
    "cache": LEAVES,
    "datasets": LEAVES,
    "extract": LEAVES | {"cache", "datasets"},
    "probe": LEAVES | {"cache", "datasets"},
    "finetune": LEAVES | {"cache", "datasets", "extract", "probe"},
    "study_file": LEAVES | {"cache", "probe"},
    "study_page": LEAVES | {"datasets", "extract", "probe", "study_file"},
    "study": LEAVES | STAGES | {"study_file", "study_page"},
    "prediction": LEAVES | STAGES,
    "embeddings": {"datasets", "errors", "probe"},
    "slides": {"cache", "datasets", "errors", "files", "prediction", "texts"},
    "study_tasks": LEAVES | {"cache", "probe", "study", "study_file", "study_page"},
    "quickstart": {"datasets", "extract", "probe"},
    "cli": LEAVES
    | STAGES
    | {"cache", "prediction", "quickstart", "slides", "study", "study_file", "study_tasks"},
}
WINGS = {"probe/solver": {"errors"}, "probe/statistics": {"errors"}}  # the same for parts of a folder
GPU_STACK = {"torch", "torchvision", "timm", "transformers", "peft", "PIL"}
# modules that read results, and what they may subscript by a name that results have too
READS = re.compile(r"^ *from \.+(probe\.)?(results|report)\.|ProbeResult", re.M)
COLUMNS = {"patch_id", "path", "dataset", "domain", "group", "label", "fold"}  # of predictions
COLUMNS |= {"features", "role", "score", "threshold"}
OTHER_DICTS = {
    "attention.py": {"e"},  # an epoch
    "cli.py": {
        "r",
        "records",
        "summary",
        "seconds",  # of predictions
        "settings",
        "tomllib.loads(f'value = {value}')",
    },  # of comparisons, of few-shot curves
    "compare.py": {"r"},  # what is printed of a comparison
    "domains.py": {"record", "c", "view.titles"},  # makes records; names of metrics
    "figures.py": {"view.titles"},
    "predict.py": {"card", "data"},  # of a fine-tuned model
    "prediction.py": {"card", "predictions.seconds", "seconds", "stored"},
    "published.py": {"document"},  # a file of published figures
    "study_file.py": {"settings"},
    "tasks.py": {"row", "whole"},  # of table.csv
    "study_page.py": {"about"},  # a row that is made
    "run.py": {"seconds", "run.seconds", "run.fits", "cards", "card", "c", "runs"},
    "data.py": {"train.table"},
    "describe.py": {"run.fits", "choices", "runs"},
}
FORBIDDEN = {"probe": GPU_STACK, "cache": GPU_STACK}
WHEN_USED = {"cache/tensors.py": {"torch"}}  # imported inside a function, for files of that kind only


def imports(path: Path) -> list[tuple[str, bool]]:
    """(top name, is it ours) of every import in a file, those inside functions too."""
    found: list[tuple[str, bool]] = []
    depth = len(path.relative_to(ROOT).parts)  # dots that reach the repository root
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name.split(".")[0], False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append(((node.module or "").split(".")[0], False))
        elif isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            found += [(name, True) for name in names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level < depth, f"{path}: an import that leaves the package"
    return found


def sources(place: str) -> list[Path]:
    return [ROOT / f"{place}.py"] if (ROOT / f"{place}.py").exists() else sorted((ROOT / place).rglob("*.py"))


@pytest.mark.parametrize("place", [p for p in LAYERS if (ROOT / p).exists() or (ROOT / f"{p}.py").exists()])
def test_imports_point_downwards(place: str) -> None:
    files = sources(place)
    assert files, f"{place}: no files were checked"
    for path in files:
        allowed = WHEN_USED.get(path.relative_to(ROOT).as_posix(), set())
        body = ast.parse(path.read_text("utf-8")).body
        top = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
        assert not allowed & top, f"{path}: {allowed} is imported inside the function that needs it"
        for name, ours in imports(path):
            if ours:
                assert name in LAYERS[place] | {place}, f"{path}: {place} must not import {name}"
            else:
                assert name != "patchbank", f"{path}: imports inside the package are relative"
                assert name not in FORBIDDEN.get(place, set()) - allowed, (
                    f"{path}: {place} must not import {name}"
                )


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_imports_its_own_modules_and_what_its_rule_names(wing: str) -> None:
    parts = len(Path(wing).parts)
    files = sources(wing)
    assert len(files) > 1, f"{wing}: no files were checked"
    for path in files:
        inside = len(path.relative_to(ROOT).parts) - parts  # dots that reach the wing's own folder
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level > inside:
                assert node.level == inside + parts, (
                    f"{path}: {wing} must not import from the folders around it"
                )
        ours = {name for name, inside_package in imports(path) if inside_package}
        assert ours <= WINGS[wing], f"{path}: {wing} must not import {ours - WINGS[wing]}"


def test_all_code_has_a_rule() -> None:
    folders = {p.parent.relative_to(ROOT).parts[0] for p in ROOT.glob("[!.]*/*.py")}
    assert {"cache", "datasets", "extract", "probe"} <= folders
    modules = {p.stem for p in ROOT.glob("*.py")}
    assert {"errors", "study"} <= modules
    free = {"tests", "build", "manifests", "errors", "__init__", "__main__"}  # errors imports nothing at all
    assert (folders | modules) - set(LAYERS) <= free


def test_files_import_each_other_in_no_circle() -> None:
    """Whichever file is imported first: imports inside functions and for type checkers count too."""
    modules = {
        path.relative_to(ROOT).with_suffix("").parts: path
        for place in ("*.py", *(f"{place}/**/*.py" for place in LAYERS))
        for path in ROOT.glob(place)
    }
    assert len(modules) > 140
    graph: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for name, path in modules.items():
        below = graph.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = (*name[: len(name) - node.level], *(node.module or "").split("."))
                base = tuple(part for part in base if part)
                for alias in node.names:
                    below |= {found for found in ((*base, alias.name), base) if found in modules} - {name}
    graph.pop(("__init__",))  # its exports are lazy
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join("/".join(name) for name in error.args[1]))


def test_results_are_read_as_classes() -> None:
    """Outside probe/results nothing subscripts what results.json holds: `schema.Results` has it typed."""
    readers = [p for p in sources("probe") if "results" not in p.relative_to(ROOT).parts]
    readers += [*sources("finetune"), *ROOT.glob("study*.py"), ROOT / "quickstart.py", ROOT / "cli.py"]
    readers += [ROOT / "prediction.py"]
    readers = [p for p in readers if READS.search(p.read_text("utf-8"))]
    assert {p.name for p in readers} >= {"scores.py", "charts.py", "board.py", "plan.py", "study_page.py"}
    faults = [fault for path in readers for fault in untyped_reads(path, path.read_text("utf-8"))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "line",
    [
        'value = result.document["scores"]',
        'value = results["scores"]',
        'value = result.results["train"]["dataset"]',
        'value = json.loads(file.read_text())["models"][0]',
        'value = score["intervals"]',
        'results["scores"] = []',
    ],
)
@pytest.mark.parametrize("module", ["probe/report/board.py", "probe/run.py", "finetune/plan.py", "cli.py"])
def test_a_result_read_by_string_is_caught(module: str, line: str) -> None:
    path = ROOT / module
    text = path.read_text("utf-8")
    assert untyped_reads(path, text) == []
    faults = untyped_reads(path, f"{text}\n{line}\n")
    assert faults
    assert all(fault.startswith(f"{path}:{len(text.splitlines()) + 2} ") for fault in faults)


@cache
def result_keys() -> set[str]:
    """The names of fields of all classes of a result."""
    from patchbank.probe.results import schema
    from pydantic import BaseModel

    parts = [c for c in vars(schema).values() if isinstance(c, type) and issubclass(c, BaseModel)]
    assert len(parts) > 30
    return {name for part in parts for name in part.model_fields} - COLUMNS


def untyped_reads(path: Path, text: str) -> list[str]:
    """Where a module takes a part of a result by its name as a string."""
    keys, faults = result_keys(), []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and node.attr == "document":
            faults.append(f"{path}:{node.lineno} reads a result as a dict")
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            base, key = ast.unparse(node.value), node.slice.value
            if key in keys and base.split("[")[0] not in OTHER_DICTS.get(path.name, ()):
                faults.append(f"{path}:{node.lineno} {base}[{key!r}]: use its field")
    return faults
