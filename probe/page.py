"""The page of a study: everything it found, as one HTML file that needs nothing else."""

from html import escape
from pathlib import Path

from ..datasets.manifest import write_atomically
from .entries import EmbeddingMap, Picture, PublishedRow, StudyPage, SystemRow
from .report import html_report

__all__ = ["EmbeddingMap", "Picture", "PublishedRow", "StudyPage", "SystemRow", "write_page"]


def write_page(path: Path, page: StudyPage) -> Path:
    """Write the page; `path` then holds the whole file or what it held before. Returns `path`."""
    text = html_report(page.result) if page.result else f"<!doctype html><title>{escape(page.title)}</title>"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: part.write_text(text, "utf-8"))
    return path
