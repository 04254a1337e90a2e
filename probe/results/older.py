"""Results of older formats, brought to the form of the present one: what can be computed is, the rest is said
to be not recorded.

Version 1 (2026-11-23 to 27) had its probabilities as the fit gives them, and the threshold on those.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from ...errors import ProbeError
from ..model import ProbeModel, read_steps
from .schema import PAIRED

PROBES = "probes.npz"  # of version 2 until 2026-11-27: the refits (of published recipes the ensembles)
UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile)
BOOTSTRAP = "paired cluster bootstrap"  # the paired test of the first days; p_method says so too
LACKS = {  # what version 1 may lack, by where it would stand
    "stores": "which stores the embeddings came from",
    "fold_means": "means over the models of the folds",
    "precision": "how small a difference the sets can show",
    "votes": "agreement of the experts",
}


def document_of_version_1(document: Mapping[str, Any]) -> dict[str, Any]:
    """results.json of version 1 in the form of version 2; the numbers are those that were written."""
    models = []
    for model in document["models"]:
        threshold = float(logit(model["threshold"]))
        scale, offset = model["platt"]
        scaled = float(expit(scale * threshold + offset))
        models.append({**model, "threshold": scaled, "threshold_score": threshold})
    comparisons = [
        {**record, "test": record["test"].replace(BOOTSTRAP, PAIRED)} for record in document["comparisons"]
    ]
    lacks = [text for key, text in LACKS.items() if key not in document]
    lacks += ["standard errors of the scores", "calibration, operating points and net benefit"]
    return {**document, "models": models, "comparisons": comparisons, "not_recorded": lacks}


def predictions_of_version_1(table: pd.DataFrame) -> pd.DataFrame:
    """The predictions that belong to it: probability calibrated with Platt's method, the threshold on that
    scale, the call. Calls are those of then.
    """
    call = table["probability"] >= table["threshold"]
    converted = table.drop(columns="probability_platt").assign(
        probability=table["probability_platt"], call=call.astype(np.int8)
    )
    # one model has one scale and one offset: the two rows furthest apart give them
    keys = ["features", "role", "dataset", "fold"]
    for _, rows in table.groupby(keys, observed=True):
        score = rows["score"].to_numpy(np.float64)
        low, high = score.argmin(), score.argmax()
        platt = logit(rows["probability_platt"].to_numpy(np.float64))
        apart = score[high] - score[low]
        slope = (platt[high] - platt[low]) / apart if apart else 0.0
        threshold = logit(rows["threshold"].to_numpy(np.float64))
        converted.loc[rows.index, "threshold"] = expit(platt[low] + slope * (threshold - score[low]))
    for name, given in (("path", ""), ("content_hash", ""), ("ranking", table["score"])):
        if name not in converted:
            converted[name] = given
    return converted


def probes_of_npz(file: Path) -> dict[str, dict[str, ProbeModel]]:
    """The probes of a probes.npz: feature set -> role -> probe. Raises ProbeError for anything else."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            if (about["format"], about["version"]) != ("patchbank-probes", 1):
                raise ValueError(f"{about['format']!r} version {about['version']!r}")
            probes: dict[str, dict[str, ProbeModel]] = {}
            arrays = {name: stored[name] for name in stored.files if name != "about"}
        for i, (name, members) in enumerate(about["probes"].items()):
            steps = tuple(read_steps(arrays, f"{i}.{j}", kinds) for j, kinds in enumerate(members))
            role = "refit" if len(members) == 1 else "ensemble"
            probes[name] = {role: ProbeModel(steps, arrays[f"{i}.adjusted"])}
    except UNREADABLE as error:
        raise ProbeError(f"{file} cannot be read as probes of `patchbank probe run`: {error}") from error
    return probes
