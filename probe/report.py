"""`patchbank probe report`: the results of a study as one self-contained HTML file, or as Markdown."""

import os
from html import escape
from pathlib import Path

from ..errors import InvalidRequest
from .results import ProbeResult
from .sections import Html, Sections, Table


def write_report(
    result: ProbeResult | str | os.PathLike[str], output: str | os.PathLike[str], *, images: bool = True
) -> Path:
    """Write a report of results (or of the folder that has them): .html or .md, by the output's name.

    images : put the most confident errors into the HTML as thumbnails, where the image files are still there
    Raises ProbeError (no results), InvalidRequest (another ending).
    """
    result = result if isinstance(result, ProbeResult) else ProbeResult.load(result)
    output = Path(output)
    if output.suffix.lower() in (".html", ".htm"):
        text = html_report(result, images=images)
    elif output.suffix.lower() in (".md", ".markdown"):
        text = markdown_report(result)
    else:
        raise InvalidRequest(f"{output}: a report is written as .html or .md")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, "utf-8")
    return output


def html_report(result: ProbeResult, *, images: bool = True) -> str:
    """The whole page."""
    view = Sections(result)
    parts, links = [], []
    for number, (title, content) in enumerate(view.sections(images=images)):
        links.append(f'<a href="#s{number}">{escape(title)}</a>')
        parts.append(f'<section id="s{number}"><h2>{escape(title)}</h2>')
        for one in content:
            parts.append(
                f"<p>{_marked(one)}</p>"
                if isinstance(one, str)
                else one.html()
                if isinstance(one, Table)
                else one.text
            )
        parts.append("</section>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{escape(view.title)}</title><style>{STYLE}</style></head><body><header>'
        f"<h1>{escape(view.title)}</h1><p "
        f"class=lead>{_marked(view.lead)}</p><nav>{''.join(links)}</nav></header><main>"
        + "\n".join(parts)
        + f"</main><footer>patchbank {escape(str(view.doc['provenance'].get('patchbank', '')))}, "
        f"{escape(str(view.doc['provenance'].get('finished', '')))}</footer></body></html>\n"
    )


def markdown_report(result: ProbeResult) -> str:
    """The same tables and sentences without the plots."""
    view = Sections(result)
    out = [f"# {view.title}", view.lead]
    for title, content in view.sections(images=False):
        shown = [
            one if isinstance(one, str) else one.markdown() for one in content if not isinstance(one, Html)
        ]
        if shown:
            out += [f"## {title}", *shown]
    return "\n\n".join(out) + "\n"


def _marked(text: str) -> str:
    """**bold** of Markdown as HTML."""
    pieces = escape(text).split("**")
    return "".join(f"<b>{p}</b>" if i % 2 else p for i, p in enumerate(pieces))


STYLE = """
:root{--paper:#fff;--ink:#1b1f24;--faint:#8a94a0;--rule:#e3e7ec;--card:#f6f8fa;
--s0:#0060a8;--s1:#c8500a;--s2:#0a8060;--s3:#a8468c;--s4:#a87800;--s5:#3a8fc8;--s6:#69737d}
@media (prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e4e8ed;--faint:#8b95a1;--rule:#2c323a;
--card:#1c2127;
--s0:#5ab0f0;--s1:#f59150;--s2:#45c8a0;--s3:#e090c8;--s4:#e0b440;--s5:#98d0f5;--s6:#9aa4ae}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:28px 24px 60px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
h1{font-size:27px;line-height:1.2;margin:0 0 8px}h2{font-size:20px;margin:44px 0 8px;padding-top:14px;
border-top:1px solid var(--rule)}
h3{font-size:16px;margin:22px 0 6px}h4{font-size:14px;margin:12px 0 6px;font-weight:600}
p{max-width:86ch;margin:8px 0 10px}.lead{font-size:17px}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:14px 0 0}a{color:var(--s0)}
.scroll{overflow-x:auto;margin:6px 0 16px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
th{font-weight:600;text-align:left;vertical-align:bottom;padding:5px 12px 5px 0;
border-bottom:1.5px solid var(--faint)}
td{padding:5px 12px 5px 0;border-bottom:1px solid var(--rule);vertical-align:top;overflow-wrap:break-word}
th.n,td.n{text-align:right}table.board th.n,table.board td.n{text-align:left;white-space:nowrap}
table.board{width:100%}table:not(.board):not(.matrix) td:first-child{white-space:nowrap}
tr.over th{border-bottom:0;padding-bottom:0;font-weight:600}table.matrix tr.over th{max-width:none;
text-align:center}
small{color:var(--faint);font-size:12.5px}
.whisker{display:block;margin-top:1px}.grid{stroke:var(--rule)}.chance{stroke:var(--faint)}
.human{stroke:var(--ink);stroke-dasharray:3 2;stroke-width:1.5}
svg text{fill:var(--ink);font:11.5px system-ui,sans-serif}svg text.label{font-size:12.5px}
.row{display:flex;flex-wrap:wrap;gap:14px}.row svg{max-width:100%;height:auto}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:14px;margin:6px 0 10px}
.swatch{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:7px;
background:transparent}
table.matrix{font-size:13px}table.matrix th{max-width:110px;font-size:12px;padding-right:6px}
table.matrix td{padding:2px}
table.matrix td span{display:block;padding:5px 6px;border-radius:3px}
table.matrix .own{outline:1.5px solid var(--faint)}
.cards{display:flex;flex-wrap:wrap;gap:12px}figure{margin:0;width:128px;background:var(--card);
border-radius:6px;padding:8px}
figure img{display:block;border-radius:3px}figcaption{font-size:12px;line-height:1.35;margin-top:6px;
overflow-wrap:anywhere}
.noimage{width:112px;height:112px;display:grid;place-items:center;color:var(--faint);
border:1px dashed var(--faint);font-size:12px}
footer{margin-top:48px;color:var(--faint);font-size:13px}
@media print{nav{display:none}body{max-width:none}}
"""
