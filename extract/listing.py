"""Cards on the terminal, as JSON and as TOML."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tomli_w

from ..errors import InvalidRequest
from ..terminal import print_table
from .cards import Card, declaration
from .tokens import POLICIES, parse_policy, vector_dim


def describe(card: Card) -> dict[str, Any]:
    """Everything a card says, as plain values."""
    return declaration(card)


WIDTH = 80  # columns of a card as a file


def to_toml(card: Card) -> str:
    """The card as a TOML file that `read_card` reads back to an equal card; no line is longer than WIDTH."""
    kept = {key: value for key, value in declaration(card).items() if value not in ({}, {"targets": []})}
    text = tomli_w.dumps(kept)
    long = [line for line in text.splitlines() if len(line) > WIDTH and re.search(r' = "\S.*"$', line)]
    for line in long:
        key, _, value = line.partition(" = ")
        text = text.replace(line, f'{key} = """\\\n' + "".join(_pieces(value[1:-1])) + '"""')
    return text


def _pieces(value: str) -> Iterator[str]:
    """The text of a TOML string on lines that end with a backslash, which takes the break away again."""
    line = ""
    for word in re.findall(r"(?:\\U\w{8}|\\u\w{4}|\\.|[^\\\s]{1,40})\s*", value):
        if len(line) + len(word) > WIDTH - 4:
            yield f"{line}\\\n"
            line = ""
        line += word
    yield line


def policies_of(card: Card) -> dict[str, int]:
    """Token policies that this encoder can give, and the length of their vectors."""
    found: dict[str, int] = {}
    for name in POLICIES:
        try:
            found[name] = vector_dim(card, parse_policy(name))
        except ValueError:
            continue
    return found


def matching(cards: Iterable[Card], words: Sequence[str]) -> list[Card]:
    """The cards whose row in the table holds every word, in any case; InvalidRequest if there is none."""
    cards = list(cards)
    rows = [" ".join((card.hub, *_row(card))).lower() for card in cards]
    found = [
        card for card, row in zip(cards, rows, strict=True) if all(word.lower() in row for word in words)
    ]
    if not found:
        raise InvalidRequest(
            f"none of the {len(cards)} encoder cards has {' and '.join(map(repr, words))} among its names, "
            "family, tokens, access and licence"
        )
    return found


def show_cards(cards: Iterable[Card]) -> None:
    """Print a table of cards: each with its other names, and two lines where the terminal is narrow."""
    heads = ("encoder (names in other tools)", "family", "dim, tokens", "mpp", "access", "licence")
    print_table(heads, [_row(card) for card in cards], boxed=False)


def _row(card: Card) -> tuple[str, ...]:
    names = [f"{tool} {', '.join(used)}" for tool, used in card.used_by.items()]
    names += [f"also {', '.join(card.aliases)}"] if card.aliases else []
    access = "gated" if card.gated else "PyPI" if card.package else "open"
    access += ", code" if card.remote_code else ""
    dim = vector_dim(card, parse_policy(card.tokens))
    mpp = "-".join(f"{one:g}" for one in dict.fromkeys((*card.mpp[:1], *card.mpp[-1:]))) or "-"
    name = f"{card.id} ({'; '.join(names)})" if names else card.id
    return name, card.family or card.model, f"{dim} {card.tokens}", mpp, access, card.licence
