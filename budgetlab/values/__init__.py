"""The frozen values that flow through budgetlab: asked (`specs`, `scoring`), priced (`costs`), planned, found."""

from budgetlab.values.base import Record, Value, content_hash
from budgetlab.values.costs import (
    PHASES,
    ArmCost,
    CompiledCost,
    CostProfile,
    Environment,
    HeldOut,
    ModelCost,
    Packing,
    PhaseCost,
    PhaseTime,
    Ratio,
    TimeModel,
    Timing,
)
from budgetlab.values.kept import Kept, Sampled, TopK, TopP
from budgetlab.values.model_specs import ModelSpec, Pretrain
from budgetlab.values.plans import (
    Budget,
    Plan,
    PlannedCache,
    PlanSpec,
    PlanUnit,
    Schedule,
    TeacherPlan,
    Trial,
    TuningSpec,
)
from budgetlab.values.results import (
    NUMERICS_VERSION,
    Assumption,
    CurveFit,
    PhaseSpent,
    Point,
    RunRecord,
    Score,
    Verdict,
)
from budgetlab.values.scoring import EvaluateSpec, FinetuneRecipe, FitSpec, TaskSpec
from budgetlab.values.signals import Batch, Needs, Signals, SpecialIds
from budgetlab.values.specs import Arm, CorpusSpec, ExecutionSpec, Recipe, StrategySpec
