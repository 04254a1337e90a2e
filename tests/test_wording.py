"""One language: code, pages and tests say the field's words, not a dialect's."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".py", ".md", ".toml", ".html", ".js", ".svg", ".sh", ".yml"}
INSTEAD = {  # what is not written -> what is
    r"whole jobs?": "end-to-end workflow",
    r"(?:is|are) not there\b": "does not exist",
    r"can ?not be had\b": "unavailable",
    r"(?<!there) is no image\b": "not an image",
    r"ways? out:": "Fix:",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bone's own\b": "your own",
    r"(?:found|chosen) by itself": "chosen automatically",
    r"\bdoubles\b": "duplicates",
    r"(?:come|comes|came) twice": "duplicate",
    r"busy of": "utilization",
    r"\breckon": "estimate",
    r"in the place of": "instead of",
    r"told by the architecture": "decided from the architecture alone",
    r"false alarm": "false positive",
    r"probability given": "predicted probability",
    r"share that is": "observed frequency of",
    r"\bcoin\b": "chance level",
    r"\bby heart\b": "overfitting",
    r"\btold apart\b": "differs significantly, distinguished",
    r"order as out of fold": "rank correlation with the out-of-fold order",
    r"not to be seen here": "not shown",
    r"by the folds as a whole": "selected by cross-validation over all folds",
    r"what the page is told": "data model of the page",
    r"\bsurest\b": "most confident",
    r"(?:is|are) called so\b": "predicted as this class",
    r"\bfor ever\b": "always, permanently",
}
FILES = [
    path
    for path in sorted(ROOT.rglob("*"))
    if path.suffix in SUFFIXES
    and path.name != Path(__file__).name
    and not {".git", ".venv", "build", "dist", "data"} & set(path.relative_to(ROOT).parts)
]


@pytest.mark.parametrize("words", INSTEAD)
def test_the_words_are_the_fields(words: str) -> None:
    assert len(FILES) > 400
    pattern = re.compile(words.replace(" ", r"\s"), re.IGNORECASE)
    faults = []
    for path in FILES:
        text = path.read_text("utf-8")
        faults += [
            f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}"
            for match in pattern.finditer(text)
        ]
    assert not faults, f"write {INSTEAD[words]!r}:\n" + "\n".join(faults)
