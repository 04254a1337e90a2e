"""What the readings of experts say about labels and models."""

from .values import Measured, Part, Role, Triple


class HumanModel(Part):
    """A model against the references of the experts; difference : expert less model."""

    features: str
    role: Role
    value: Triple
    difference: Triple
    p: float | None


class ExpertScore(Measured):
    """An expert's calls against the labels of more than two classes (accuracy, balanced_accuracy, f1, kappa),
    and the balanced accuracy of the models on the rows that it read; see `scoring.score_experts`.
    """

    dataset: str
    expert: str
    n: int
    n_groups: int
    models: list[HumanModel] = []


class Human(Part):
    """An expert against the majority of the others; see `scoring.score_votes`."""

    value: Triple
    standard_error: float | None = None
    degrees_of_freedom: float | None = None
    reason: str = ""
    n: int
    n_left_out: int = 0
    n_votes: int = 0
    n_tied: int = 0
    without_ties: float | None = None
    models: list[HumanModel] = []


class Stratum(Part):
    """Metrics over the rows on which as many experts agree."""

    features: str
    role: Role
    votes_agreeing: int
    votes_total: int
    rows: int
    positives: int
    balanced_accuracy: float | None
    auroc: float | None
    average_precision: float | None


class ByVotes(Part):
    """The mean probability of rows with as many positive votes."""

    features: str
    role: Role
    votes_positive: int
    votes_total: int
    rows: int
    mean_score: float | None
    called_positive: float | None = None


class Soft(Part):
    """Scores against the share of positive votes."""

    features: str
    role: Role
    soft_brier: float | None = None
    soft_log_loss: float | None = None
    soft_excess_log_loss: float | None = None
    pearson: float | None
    spearman: float | None = None


class Votes(Part):
    """What the experts' votes say about the models of one set."""

    dataset: str
    n: int
    kappa: float | None
    unanimous: float
    human_line: float | None
    human: Human | None = None
    strata: list[Stratum] = []
    by_votes: list[ByVotes] = []
    soft: list[Soft] = []
