"""How large an install is: the packages that each choice brings, by what is installed in this environment.

python .ci/size.py           patchbank alone, and with the extras below
"""

import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHOICES = ((), ("extract",), ("extract", "transformers", "wsi", "finetune", "figures", "hub"))


def closure(extras: tuple[str, ...]) -> tuple[set[str], set[str]]:
    """(packages that patchbank with these extras needs, those of them that are not installed here)."""
    found: set[str] = set()
    missing: set[str] = set()
    todo = [("patchbank", frozenset(extras))]
    seen = set()
    while todo:
        name, wanted = todo.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            missing.add(name)
            continue
        found.add(name)
        for text in requires:
            one = Requirement(text)
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in (*wanted, "")):
                todo.append((canonicalize_name(one.name), frozenset(one.extras)))
    return found, missing


def megabytes(name: str) -> float:
    """Of the files that a package has installed."""
    files = metadata.distribution(name).files or []
    sizes = (Path(str(file.locate())) for file in files)
    return sum(path.stat().st_size for path in sizes if path.is_file()) / 1e6


def main() -> None:
    for extras in CHOICES:
        packages, missing = closure(extras)
        total = sum(map(megabytes, packages))
        largest = sorted(packages, key=megabytes, reverse=True)[:4]
        label = f"patchbank[{','.join(extras)}]" if extras else "patchbank"
        lacks = f", without {', '.join(sorted(missing))}, which are not installed here" if missing else ""
        print(
            f"{label}: {len(packages)} packages, {total:.0f} MB "
            f"({', '.join(f'{name} {megabytes(name):.0f}' for name in largest)}){lacks}"
        )


if __name__ == "__main__":
    sys.exit(main())
