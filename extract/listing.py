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
    """Print a table of cards."""
    rows = []
    for card in cards:
        layout = f"{card.prefix} + {card.grid}" if card.grid else "-"
        access = "gated" if card.gated else "PyPI" if card.package else "open"
        if card.remote_code:
            access += ", code"
        dim = vector_dim(card, parse_policy(card.tokens))
        size = card.transform.size
        rows.append((card.id, layout, f"{dim} ({card.tokens})", size, card.precision, access, card.licence))
    heads = ("encoder", "tokens", "dim", "input", "precision", "access", "licence")
    print_table(heads, rows, boxed=False)
