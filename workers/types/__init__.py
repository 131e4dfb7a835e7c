"""Values that cross process boundaries: orders, events, and what they consist of.

    orders   driver -> fleet -> worker    work to do; ids are deterministic
    events   worker -> fleet -> driver    results; each becomes a line of the ledger
    weights  are not sent: a Checkpoint names a place in the store

Everything is frozen and serialises to plain JSON. Torch-free.
"""

from typing import Annotated

from pydantic import Field, TypeAdapter

from workers.types.events import (
    Analysed,
    BackoffOver,
    BaseReady,
    Blended,
    Cancelled,
    Checkpointed,
    Compared,
    Damaged,
    Delta,
    EnsembleResult,
    ErrorClass,
    Evaluated,
    Event,
    Extended,
    Failed,
    FilesEvent,
    Finished,
    FinishRequested,
    GaveUp,
    Interrupted,
    Opened,
    Ordered,
    Preflighted,
    Retired,
    RetryDecided,
    Scored,
    Served,
    ServedDamaged,
    Started,
    Stopped,
    Trained,
)
from workers.types.merge_events import (
    Abandoned,
    Answered,
    Asked,
    Diversity,
    Measured,
    MergeOpened,
    Mixed,
    Rejoined,
    RoundClosed,
    Tasted,
)
from workers.types.orders import (
    BaseOrder,
    BlendOrder,
    GeometryOrder,
    GradientOrder,
    MergeOrder,
    OptimizerState,
    Order,
    PreflightOrder,
    Rejoin,
    TasteOrder,
    TrainOrder,
    WorkerConfig,
)
from workers.types.preflight import ModelInfo, PreflightResult, RunTiming, SplitInfo
from workers.types.recipe_protocol import (
    Answer,
    Decision,
    FirstAtLeast,
    FirstResult,
    GramMatrices,
    GramResult,
    Ingredient,
    MixGradient,
    MixGradientResult,
    Question,
    RecipeContext,
    Soup,
    Taste,
    TasteResult,
    TasteResults,
)
from workers.types.report_orders import (
    AnalysedModel,
    AnalyseOrder,
    CompareOrder,
    DiversityOrder,
    RetireOrder,
    ScoreMixOrder,
    ScoreOrder,
    ServeOrder,
    WeightSpaceGroup,
)
from workers.types.values import (
    SELECTION,
    WORST,
    BatchNormPolicy,
    Checkpoint,
    Cohort,
    Component,
    FileInfo,
    FrozenModel,
    Metric,
    Mix,
    Policy,
    RunSpec,
    Score,
    cohort_family,
    component_of,
    digest,
    dump_without_defaults,
    ema_id,
    model_key,
    run_id_of,
)

AnyOrder = (
    PreflightOrder
    | BaseOrder
    | TrainOrder
    | GeometryOrder
    | GradientOrder
    | MergeOrder
    | TasteOrder
    | BlendOrder
    | DiversityOrder
    | ScoreOrder
    | ScoreMixOrder
    | CompareOrder
    | AnalyseOrder
    | ServeOrder
    | RetireOrder
)

AnyEvent = Annotated[
    Opened
    | Ordered
    | Started
    | Preflighted
    | BaseReady
    | Evaluated
    | Checkpointed
    | Trained
    | Interrupted
    | Asked
    | Answered
    | Tasted
    | Measured
    | Mixed
    | Blended
    | Scored
    | Compared
    | Analysed
    | Served
    | ServedDamaged
    | Retired
    | Failed
    | Damaged
    | RetryDecided
    | BackoffOver
    | GaveUp
    | MergeOpened
    | RoundClosed
    | Abandoned
    | Rejoined
    | Diversity
    | FinishRequested
    | Extended
    | Cancelled
    | Stopped
    | Finished,
    Field(discriminator="kind"),
]

event_adapter: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)
