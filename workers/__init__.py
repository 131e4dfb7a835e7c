"""The workers do what the orchestrator orders. Nothing here imports `orchestrator`.

    order --> dispatch.py --> the function for its kind --> events, one by one
                                  |            ^
                                  v            |
        weights, predictions --> store --> node cache        images --> pixel cache
             (manifest written last)   (once per node)          (decoded once per node)

A worker is one process: a Ray actor, a rank of a run on several GPUs, the merge actor, or the
driver's own process. It keeps its model, images and optimizer between orders (`context.py`) and
decides nothing: a failure becomes an event, and the schedule decides whether to retry.

How a soup is made:

    recipe --question--> recipe_driver --event--> orchestrator --orders--> slots
           <--answer----        (merge actor)     <--scores, gradients--

A recipe never sees a tensor, a file or a report split. It asks and returns a mix: ordered weights
of checkpoints and a divisor. theta = (sum w_i theta_i) / d, summed in float64 by
`merging/blend.py`, the only code that averages tensors. The same answers lead to the same
questions, so a killed merge continues. Greedy stops a taste once it provably cannot reach the score
needed, and tastes candidates on all slots at once; members and bytes are the textbook loop's. With
BatchNorm, every mix is scored with the statistics that it would be served with.

Rooms, from the ground up; a room imports only rooms below it:

    text.py        text from data, made safe for terminal, page, Markdown and CSV
    errors.py      errors that a user can mend, as one sentence
    config/        the sections of the configuration that a worker reads: data, model, train
    types/         what crosses a boundary: values, orders, events, questions of recipes
    storage/       the store and its layout, node cache, checkpoints, manifests, predictions
    heartbeat.py   what a worker is doing right now, and the request to stop
    data/          images: found, split, fingerprinted, decoded once, turned into batches
      sources/     class folders, tar shards, Parquet files, the bundled digits
    models/        architectures of timm and ours, heads, pretrained weights, components
    context.py     what a worker keeps between orders: store, images, warm model
    scoring/       forward passes, metrics, intervals, output ensembles, stacking
    recipes/       one file per recipe: which ingredients, in which proportion
    merging/       blend weights, BatchNorm statistics, taste a mix, drive a recipe, write a soup
    training/      one run from a checkpoint to a step, with Accelerate
    analysis/      what the models have in common: predictions, weight space, calibration
    serving/       export for plain timm, evaluation on folders, predictions for new images
    preflight.py   the first order: images, model, optimizers and store are checked before training
    dispatch.py    the table from kind of order to function, and the boundary of errors
    ray_actor.py   a worker as a Ray actor
    model.py       `import workers.model` registers our architectures with timm

`text.py`, `errors.py`, `config`, `types`, `heartbeat.py`, `recipes` and the parts of `storage` that
the orchestrator imports are free of torch. Each heavy dependency is imported only in the files that
`tests/test_house.py` lists. Nothing is unpickled.
"""
