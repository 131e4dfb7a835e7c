"""What crosses a boundary: the nouns, the orders that go down, the events that come up.

    orders   driver -> fleet -> worker    what shall be done; ids are deterministic
    events   worker -> fleet -> driver    what happened; each becomes a line of the ledger
    weights  never travel here: a Checkpoint names a place in the store

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
    Delta,
    EnsembleResult,
    ErrorClass,
    Evaluated,
    Event,
    Failed,
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
    Started,
    Stopped,
    Trained,
)
from workers.types.merge_events import (
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
    Setting,
    TasteOrder,
    TrainOrder,
    measurement_id,
)
from workers.types.preflight import Facts, ModelFacts, SplitFacts
from workers.types.recipe_protocol import (
    Answer,
    Decision,
    First,
    Found,
    Geometry,
    Gradient,
    Grams,
    Ingredient,
    Kitchen,
    Question,
    Slope,
    Soup,
    Taste,
    Tasting,
    Tastings,
)
from workers.types.report_orders import (
    AnalyseOrder,
    CompareOrder,
    DiversityOrder,
    PointOrder,
    RetireOrder,
    ScoreOrder,
    ServeOrder,
    Subject,
    Weighed,
)
from workers.types.values import (
    SELECTION,
    WORST,
    BatchNormPolicy,
    Checkpoint,
    Cohort,
    Component,
    Metric,
    Mix,
    Policy,
    RunSpec,
    Score,
    Value,
    component_of,
    digest,
    ema_of,
    family_of,
    model_key,
    run_of,
    sparse,
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
    | PointOrder
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
    | Retired
    | Failed
    | RetryDecided
    | BackoffOver
    | GaveUp
    | MergeOpened
    | RoundClosed
    | Rejoined
    | Diversity
    | FinishRequested
    | Cancelled
    | Stopped
    | Finished,
    Field(discriminator="kind"),
]

event_adapter: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)
