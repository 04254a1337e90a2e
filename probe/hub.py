"""Probes on the Hugging Face hub, in model repositories: `push` with a model card, `pull` with a check."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest, ProbeError
from ..hub import client, explained
from ..texts import markdown, markdown_table
from .artefact import ABOUT, ARRAYS
from .model import ProbeModel

CARD = """---
license: other
license_name: see-the-encoder
library_name: patchbank
pipeline_tag: image-classification
tags:
- patchbank
- pathology
- probe
---

# {title}

A probe of patchbank: {what}, on embeddings of {encoders}. It is the head alone; the encoder's weights
are not included, and are needed to embed images.

**Licences.** {licences} What they say of derived works and of commercial use may hold for this
probe too. Training data: {training}, licence: {training_licence}.

Not for clinical use.

## Use

```
patchbank predict hf:{repo} images -o predictions.csv
patchbank probe pull {repo} probe
```

With embeddings at hand, in numpy alone: `patchbank.ProbeModel.load("probe").{call}(X)`.

## Scores

{scores}

In brackets: 95 % intervals over whole groups. Training rows are scored out of fold.

## Embeddings that it reads

```json
{identities}
```
"""
SHOWN = ("balanced_accuracy", "auroc", "average_precision", "pearson", "spearman", "r2", "mae")


def model_card(probe: ProbeModel, repo: str) -> str:
    """README.md of a repository that holds a probe: what it does, on what, how well, under which licences."""
    about, train = probe.about, probe.about.training
    encoders = {str(store["identity"]["encoder"]["id"]): _licence(store) for store in about.stores.values()}
    metrics = [name for name in SHOWN if any(name in of for of in about.scores.values())]
    rows = [
        (dataset, *(_interval(of.get(metric)) for metric in metrics)) for dataset, of in about.scores.items()
    ]
    names = about.targets or probe.classes
    what = f"{len(names)} {'numbers' if about.targets else 'classes'} ({', '.join(map(markdown, names))})"
    if probe.threshold is not None:
        what += f", called {markdown(about.positive)} where its probability reaches {probe.threshold:.4g}"
    return CARD.format(
        title=markdown(f"{about.features}: {', '.join(names)}"),
        what=what,
        encoders=" and ".join(map(markdown, encoders)),
        licences=" ".join(f"{markdown(name)}: {markdown(licence)}." for name, licence in encoders.items()),
        training=f"{markdown(train.get('dataset', 'not recorded'))}, {train.get('n', '?')} patches",
        training_licence=markdown(train.get("licence", "not recorded")),
        repo=repo,
        call="predict" if about.targets else "predict_proba",
        scores=markdown_table(["scored on", *(name.replace("_", " ") for name in metrics)], rows, words=1),
        identities=json.dumps(
            {name: about_store["identity"] for name, about_store in about.stores.items()}, indent=2
        ),
    )


def _licence(store: Mapping[str, Any]) -> str:
    return str(store.get("provenance", {}).get("licence", "unknown: ask whoever published the weights"))


def _interval(value: Any) -> str:
    number, low, high = value or (None, None, None)
    if number is None:
        return "-"
    return f"{number:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def push_probe(
    probe: ProbeModel,
    repo: str,
    *,
    private: bool = True,
    endpoint: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a probe to a model repository (created if missing), as one commit. Returns its URL.

    Check the encoder's licence before making it public. Names of data sets and classes, scores and the digest
    of the training rows go with it; no patch names, no labels of patches.
    Raises ProbeError (refused, no network), InvalidRequest (a probe that does not know its encoder).
    """
    if not probe.about.stores:
        raise InvalidRequest("the probe does not say which embeddings it reads: fit it again to push it")
    api = client(endpoint, token)
    from huggingface_hub import CommitOperationAdd

    asked = {"act": "write", "url": endpoint, "token": token is not None}
    with (
        tempfile.TemporaryDirectory() as folder,
        explained(f"the probe was not pushed to {repo}", repo, as_error=ProbeError, **asked),
    ):
        probe.save(folder)
        url = api.create_repo(repo, private=private, exist_ok=True)
        files = {name: (Path(folder) / name).read_bytes() for name in (ABOUT, ARRAYS)}
        files["README.md"] = model_card(probe, repo).encode()
        api.create_commit(
            repo,
            [CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message=probe.about.features,
        )
    return str(url)


def pull_probe(
    repo: str,
    folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> ProbeModel:
    """Download a probe into a folder, after it was read and checked. Nothing of it is executed.

    Raises ProbeError (no probe there, damaged, no network), InvalidRequest (the folder has a probe already).
    """
    if (Path(folder) / ABOUT).exists():
        raise InvalidRequest(f"{folder} holds a probe already: name another folder")
    with tempfile.TemporaryDirectory() as interim:
        probe = _downloaded(repo, revision, endpoint, token, local_dir=interim)
    probe.save(folder)
    return probe


def probe_of_hub(
    repo: str,
    *,
    features: str | None = None,
    role: str | None = None,
    revision: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> ProbeModel:
    """A probe on the hub, kept in the hub's own cache; see `ProbeModel.load` for `features` and `role`.

    Raises ProbeError (no probe there, damaged, no network and not in the cache), InvalidRequest.
    """
    return _downloaded(repo, revision, endpoint, token, features=features, role=role)


def _downloaded(
    repo: str,
    revision: str | None,
    endpoint: str | None,
    token: str | None,
    *,
    local_dir: str | None = None,
    **which: str | None,
) -> ProbeModel:
    api = client(endpoint, token)
    asked = {"files": f"{ABOUT}, {ARRAYS}", "revision": revision, "url": endpoint, "token": token is not None}
    with explained(f"{repo} was not pulled", repo, as_error=ProbeError, **asked):
        folder = api.snapshot_download(
            repo, revision=revision, allow_patterns=[ABOUT, ARRAYS], local_dir=local_dir
        )
        try:
            return ProbeModel.load(folder, **which)
        except (ProbeError, InvalidRequest) as error:
            said = str(error).replace(folder, repo)
            raise type(error)(f"{repo}: {said}; nothing was written") from error
