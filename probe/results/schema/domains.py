"""Models of some domains on the others."""

from .models import Choice, Fits
from .values import Measured, Part


class LeftOut(Measured):
    """One domain by a model of the other domains; choice : None where it could not be fitted."""

    domain: str
    n: int
    n_positive: int | None = None
    n_groups: int | None = None
    choice: Choice | None


class Matrix(Part):
    """Trained on one domain (rows), scored on another (columns "SET / DOMAIN"; "train" is the train set)."""

    train: list[str]
    test: list[str]
    n: list[int]
    n_positive: list[int] = []
    n_groups: list[int] = []
    balanced_accuracy: list[list[float | None]]
    auroc: list[list[float | None]]
    average_precision: list[list[float | None]]
    intervals: dict[str, list[list[tuple[float | None, float | None]]]] = {}
    """Metric -> low and high of each value."""
    reasons: dict[str, list[list[str]]] = {}
    """Metric -> why a value has no interval, "" where it has one."""


class Domains(Part):
    """See `domains.analyse_step`."""

    leave_one_out: list[LeftOut]
    matrix: Matrix
    fits: Fits | None = None
    seconds: dict[str, float] = {}
