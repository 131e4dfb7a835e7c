"""Orders go down: what shall be done. Ids are deterministic and omit the attempt."""

from workers.types.making import (
    BaseOrder,
    BlendOrder,
    GeometryOrder,
    GradientOrder,
    MergeOrder,
    PreflightOrder,
    TasteOrder,
    TrainOrder,
)
from workers.types.telling import (
    AnalyseOrder,
    CompareOrder,
    DiversityOrder,
    PointOrder,
    RetireOrder,
    ScoreOrder,
    ServeOrder,
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
