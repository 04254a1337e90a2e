"""Cards on the terminal, as JSON and as TOML."""

import json
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from ..terminal import print_table
from .cards import Card, Transform
from .tokens import POLICIES, parse_policy, vector_dim


def describe(card: Card) -> dict[str, Any]:
    """Everything a card says, as plain values."""
    values = {f.name: getattr(card, f.name) for f in fields(Card) if f.name not in ("factory", "admit")}
    values["arguments"] = dict(card.arguments)
    values["files"] = list(card.files)
    values["transform"] = {
        f.name: list(value) if isinstance(value := getattr(card.transform, f.name), tuple) else value
        for f in fields(Transform)
    }
    return values


def to_toml(card: Card) -> str:
    """The card as a TOML file that `read_card` reads back to an equal card."""
    tables = describe(card)
    lines = [f"{key} = {_value(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    for name in ("arguments", "transform"):
        if tables[name]:
            lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in tables[name].items())]
    return "\n".join(lines)


def _value(value: Any) -> str:
    """JSON's strings, numbers, booleans and lists are TOML's."""
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


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
