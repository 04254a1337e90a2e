"""Text of data sets (names, labels, paths) in what people open: Markdown, spreadsheets, terminals.

Whoever makes a data set or a store chooses these texts. Put unchanged where they do not stand for themselves,
they become links and HTML, formulas that run, or commands to the terminal.
"""

import hashlib
import re
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from .terminal import printable

_MARKUP = re.compile(
    r"[\\`*_{}\[\]#|~$]"
    r"|(?P<entity>[<>&@]|:(?=//)|(?<=www)\.)"  # HTML, addresses that become links by themselves
    r"|^[-+=]|(?<=^\d)[.)]|(?<=^\d\d)[.)]"  # a list or a rule, at the start of a line
)


def markdown(text: object) -> str:
    """A text as itself in Markdown: no HTML, no link, no emphasis, no cell of a table, no new line."""
    return _MARKUP.sub(
        lambda found: f"&#{ord(found[0])};" if found["entity"] else f"\\{found[0]}",
        printable(" ".join(str(text).split())),
    )


def public_url(url: str) -> str:
    """A URL for messages and files: no user, no password, and of the values in its query digests only.

    Signatures and tokens stand there. URLs that differ only in such a value stay different.
    """
    parts = urlsplit(url)
    values = parse_qsl(parts.query, keep_blank_values=True)
    query = urlencode(
        [(key, value and hashlib.sha256(value.encode()).hexdigest()[:8]) for key, value in values]
    )
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))
