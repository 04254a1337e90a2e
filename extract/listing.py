"""Cards on the terminal, as JSON and as TOML."""

from collections.abc import Iterable
from typing import Any

import tomli_w

from ..terminal import print_table
from .cards import Card, declaration
from .tokens import POLICIES, parse_policy, vector_dim


def describe(card: Card) -> dict[str, Any]:
    """Everything a card says, as plain values."""
    return declaration(card)


def to_toml(card: Card) -> str:
    """The card as a TOML file that `read_card` reads back to an equal card."""
    return tomli_w.dumps(
        {key: value for key, value in declaration(card).items() if value not in ({}, {"targets": []})}
    )


def policies_of(card: Card) -> dict[str, int]:
    """Token policies that this encoder can give, and the length of their vectors."""
    found: dict[str, int] = {}
    for name in POLICIES:
        try:
            found[name] = vector_dim(card, parse_policy(name))
        except ValueError:
            continue
    return found


def show_cards(cards: Iterable[Card]) -> None:
    """Print a table of cards: each with its other names, and two lines where the terminal is narrow."""
    rows = []
    for card in cards:
        names = f"{card.id} ({', '.join(card.aliases)})" if card.aliases else card.id
        access = "gated" if card.gated else "PyPI" if card.package else "open"
        access += ", code" if card.remote_code else ""
        dim = vector_dim(card, parse_policy(card.tokens))
        mpp = "-".join(f"{one:g}" for one in dict.fromkeys((*card.mpp[:1], *card.mpp[-1:]))) or "-"
        rows.append((names, card.family or card.model, f"{dim} {card.tokens}", mpp, access, card.licence))
    heads = ("encoder (also called)", "family", "dim, tokens", "mpp", "access", "licence")
    print_table(heads, rows, boxed=False)
