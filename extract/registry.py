"""Encoders by name: the shipped cards, those of other packages, timm:NAME, hf:ORG/NAME, and card files."""

import re
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

from ..errors import EncoderError, InvalidRequest, UnknownEncoder, UntrustedCode
from ..settings import SHIPPED, alike
from .cards import Card, at_size, parse_card, read_card, trusted, untrusted

ENTRY_POINTS = "patchbank.encoders"
SCHEMES = "patchbank.encoder_schemes"  # entry point NAME: a function that makes a Card of REST in "NAME:REST"


def shipped_cards() -> dict[str, Card]:
    """The cards that come with the package, by id, sorted; read once."""
    return dict(_shipped())


@cache
def _shipped() -> dict[str, Card]:
    cards: dict[str, Card] = {}
    for entry in sorted((SHIPPED / "encoders").glob("*.toml")):
        if entry.is_file():
            card = parse_card(entry.read_text("utf-8"), origin=f"manifests/encoders/{entry.name}")
            if card.id != entry.stem:
                raise InvalidRequest(
                    f"manifests/encoders/{entry.name} has id {card.id!r}: the two must agree"
                )
            cards[card.id] = card
    return cards


def plugged_cards() -> dict[str, Card]:
    """Cards from other installed packages: entry points of the group "patchbank.encoders".

    An entry point is named as the card's id and resolves to a Card, to a function that returns one, or to
    the path of a TOML file.

    Raises
    ------
    EncoderError
        an entry point does not load, or takes a name that is taken; names its package.
    """
    cards: dict[str, Card] = {}
    shipped = shipped_cards()
    for point in metadata.entry_points(group=ENTRY_POINTS):
        owner = point.dist.name if point.dist else "?"
        try:
            made = point.load()
            made = made() if callable(made) else made
            card = read_card(made) if isinstance(made, str | Path) else made
            if isinstance(card, Card) and card.kind == "python" and card.factory is None:
                card = trusted(card)  # whoever installed the package trusts its code
        except (ImportError, AttributeError, InvalidRequest, OSError) as error:
            raise EncoderError(
                f"the encoder {point.name!r} of the package {owner} does not load: {error}"
            ) from error
        if not isinstance(card, Card):
            raise EncoderError(
                f"the encoder {point.name!r} of the package {owner} gave a {type(card).__name__}, not a Card"
            )
        if card.id in shipped or card.id in cards:
            raise EncoderError(f"the package {owner} brings an encoder {card.id!r}, a name that is taken")
        cards[card.id] = card
    return cards


def by_alias(cards: Mapping[str, Card]) -> dict[str, str]:
    """Other name -> id of the card that has it, lower case."""
    return {name.lower(): card.id for card in cards.values() for name in card.other_names}


def load_card(spec: str | Path | Card, *, trust_code: bool = False) -> Card:
    """The card for a name. Imports no code that a file names, unless `trust_code` is given.

    Parameters
    ----------
    spec
        the id or an alias of a shipped or plugged-in card, "timm:NAME", "hf:ORG/NAME", "finetuned:FOLDER", or
        the path of a .toml file. NAME@PIXELS and timm:NAME@PIXELS are the same at another input size.
    trust_code
        allow a card of kind "python" that names its callable as text: a module beside the card's file, or
        an installed one. The card that is returned can then be built wherever it goes.

    Raises
    ------
    UnknownEncoder
        no card has this id; suggests near ones.
    InvalidRequest
        the TOML file is not a card, or the encoder takes no input of PIXELS.
    UntrustedCode
        the card names Python code, and `trust_code` is not given.
    """
    card = spec if isinstance(spec, Card) else _find(str(spec))
    if card.kind != "python" or card.factory is not None:
        return card
    if not trust_code:
        raise untrusted(card, str(spec) if not isinstance(spec, Card) else "it")
    of_file = not isinstance(spec, Card) and str(spec).strip().endswith(".toml")
    return trusted(card, Path(str(spec).strip()).absolute().parent if of_file else None)


def named_card(spec: str, *, named_by: str, trust_code: bool = False) -> Card:
    """The card for a name that stands in a file from elsewhere (a study, the folder of a model).

    Such a file may name a card that is installed here, "timm:NAME" and "hf:ORG/NAME"; with `trust_code`
    all that `load_card` takes.

    Parameters
    ----------
    named_by
        what names it, for the message.

    Raises
    ------
    UntrustedCode
        a file or folder is named, and `trust_code` is not given.
    """
    public = re.fullmatch(
        r"(timm:[\w.]+|[\w.+-]+)(@[0-9]+)?|((hf|hf-hub|hf_hub):)?\w[\w.-]*/\w[\w.-]*", spec, re.ASCII
    )
    file = Path(spec.rpartition(":")[2])
    if not trust_code and (not public or spec.endswith(".toml") or ("/" in spec and file.exists())):
        raise UntrustedCode(
            f"{named_by} names the encoder {spec!r}, a file that may name code to run. Allowed are the names "
            "of `patchbank encoders ls`, timm:NAME and hf:ORG/NAME. Fix: read the file, then add --trust-code"
        )
    return load_card(spec, trust_code=trust_code)


def _find(spec: str) -> Card:
    spec = re.sub(r"^https?://(www\.)?(huggingface\.co|hf\.co)/", "", spec.strip()).rstrip("/")
    if spec.endswith(".toml"):
        return read_card(spec)
    if sized := re.fullmatch(r"((?:timm:)?[\w.+-]+)@([0-9]+)", spec, re.ASCII):
        card = _find(sized[1])
        size = int(sized[2])
        about = {"id": f"{card.id}@{size}", "name": f"{card.name or card.id}, {size} px", "aliases": ()}
        return at_size(card, size).replace(**about)
    if spec.startswith("timm:"):
        from .models.timm import card_of_timm

        return card_of_timm(spec.removeprefix("timm:"))
    repository = re.sub(r"^(hf|hf-hub|hf_hub):", "", spec, flags=re.IGNORECASE)
    shipped = shipped_cards()
    if "/" in repository and not Path(repository).exists():  # as its model card writes it: MahmoodLab/UNI
        for card in shipped.values():
            # hf: asks for what transformers makes of a repository; timm's it cannot read
            if card.hub.lower() == repository.lower() and not (
                card.kind == "transformers" and spec.startswith("hf:")
            ):
                return card
    if spec.startswith("hf:"):
        from .models.transformers import card_of_hub

        return card_of_hub(repository)
    scheme, colon, rest = spec.partition(":")
    for point in metadata.entry_points(group=SCHEMES, name=scheme) if colon else ():
        return point.load()(rest)
    cards = shipped | plugged_cards()
    if spec in cards:
        return cards[spec]
    if (alias := by_alias(cards).get(spec.lower())) is not None:
        return cards[alias]
    raise UnknownEncoder(_unknown(spec, repository, cards))


def _unknown(spec: str, repository: str, cards: Mapping[str, Card]) -> str:
    """The sentence about a name that no card has: near names, and the ways to others."""

    def plain(name: str) -> str:
        return name.lower().replace("_", "-").replace(" ", "-")

    lowered = {plain(alias): name for alias, name in by_alias(cards).items()}
    lowered |= {plain(name): name for name in cards}
    lowered |= {plain(card.hub): card.id for card in cards.values() if card.hub}
    lowered |= {plain(card.hub.partition("/")[2]): card.id for card in cards.values() if card.hub}
    key = plain(repository)
    words = [word for word in dict.fromkeys([key, key.rpartition("/")[2]]) if word]
    near = [lowered[word] for word in words if word in lowered]
    near += [name for name in cards for word in words if re.search(rf"\b{re.escape(word)}", name)]
    for word in words:
        near += [lowered[name] for name in alike(word, lowered)]
    near = list(dict.fromkeys(near))[: 1 if key in lowered else 3]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    owner, _, name = repository.rpartition("/")
    if owner == "timm":
        hint += f"A model of timm is timm:{name.partition('.')[0]}. "
    elif re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+(\.\w+)?", repository):
        hint += f"If it is an architecture of timm: timm:{repository}. "
    elif "/" in repository:
        hint += f"A vision model of transformers on the hub is hf:{repository}. "
    return (
        f"no encoder is called {spec!r}: {hint}`patchbank encoders ls` lists the {len(cards)} cards; "
        f"`timm:NAME`, `hf:ORG/NAME` and --card FILE bring others"
    )
