"""From scores to numbers with intervals; FORMAT.md says what results.json has of them."""

from .comparing import ALL_PAIRS_UP_TO as ALL_PAIRS_UP_TO
from .comparing import COMPARED as COMPARED
from .comparing import compare_models as compare_models
from .comparing import comparisons_of as comparisons_of
from .comparing import pairs_of as pairs_of
from .comparing import precision as precision
from .estimates import FEW_GROUPS as FEW_GROUPS
from .estimates import NO_INTERVALS as NO_INTERVALS
from .estimates import OOF_INFLATION as OOF_INFLATION
from .estimates import UNCERTAINTY as UNCERTAINTY
from .estimates import evaluate_models as evaluate_models
from .estimates import mean_of_models as mean_of_models
from .estimates import measure as measure
from .estimates import measure_models as measure_models
from .experts import score_experts as score_experts
from .experts import score_votes as score_votes
from .rows import Column as Column
from .rows import Rows as Rows
from .rows import class_codes as class_codes
from .rows import out_of_fold_cuts as out_of_fold_cuts
from .rows import specificity_cuts as specificity_cuts
from .rows import without_duplicates as without_duplicates
from .subsets import estimate_set as estimate_set
from .subsets import score_set as score_set
