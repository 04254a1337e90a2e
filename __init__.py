"""patchbank: extract patch embeddings once, cache them, probe them on a CPU.

    >>> import patchbank
    >>> manifest = patchbank.load_manifest("ami-br.toml")
    >>> patchbank.run_extract([manifest], encoder="efficientnet-lite0", bank="bank")
    >>> X = patchbank.load(manifest, encoder="efficientnet-lite0", bank="bank")
    >>> result = patchbank.run_probe(train=manifest, encoders=["efficientnet-lite0"], bank="bank")

The names below are loaded when they are first used, so that `import patchbank` costs nothing and the
CPU stage (cache, probe) never loads torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .cache.bank import Bank as Bank
    from .datasets.builders import build_manifest as build_manifest
    from .datasets.manifest import Manifest as Manifest
    from .datasets.manifest import load_manifest as load_manifest
    from .embeddings import load as load
    from .extract.cards import Card as Card
    from .extract.external import import_embeddings as import_embeddings
    from .extract.run import run_extract as run_extract
    from .extract.wrap import wrap_encoder as wrap_encoder
    from .finetune.run import run_finetune as run_finetune
    from .prediction import Predictions as Predictions
    from .prediction import predict as predict
    from .probe.config import ProbeConfig as ProbeConfig
    from .probe.estimator import BatchedLogisticRegression as BatchedLogisticRegression
    from .probe.estimator import BatchedLogisticRegressionCV as BatchedLogisticRegressionCV
    from .probe.fewshot import run_few_shot as run_few_shot
    from .probe.model import ProbeModel as ProbeModel
    from .probe.results.files import ProbeResult as ProbeResult
    from .probe.run import run_probe as run_probe
    from .probe.solver.logistic import fit_logistic as fit_logistic
    from .study import run_study as run_study

_EXPORTS = {
    "Bank": ".cache.bank",
    "BatchedLogisticRegression": ".probe.estimator",
    "BatchedLogisticRegressionCV": ".probe.estimator",
    "Manifest": ".datasets.manifest",
    "Predictions": ".prediction",
    "ProbeConfig": ".probe.config",
    "ProbeModel": ".probe.model",
    "ProbeResult": ".probe.results.files",
    "Card": ".extract.cards",
    "build_manifest": ".datasets.builders",
    "fit_logistic": ".probe.solver.logistic",
    "import_embeddings": ".extract.external",
    "load": ".embeddings",
    "load_manifest": ".datasets.manifest",
    "predict": ".prediction",
    "run_extract": ".extract.run",
    "run_few_shot": ".probe.fewshot",
    "run_finetune": ".finetune.run",
    "run_probe": ".probe.run",
    "run_study": ".study",
    "wrap_encoder": ".extract.wrap",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
