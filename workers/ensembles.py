"""Output ensembles: many models answer, their logits are averaged. What a soup is measured against.

From cached predictions alone; no image is looked at.
"""

import numpy as np

from workers.evaluate import read_predictions
from workers.storage import Store, ensemble_dir
from workers.types import EnsembleResult

SOFT_VOTING = "soft_voting"


def soft_vote(
    store: Store, members: tuple[str, ...], split: str
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(keys, labels (N,), logits float64 (N, C)): the mean of the members' logits.

    The ensemble's probabilities are the softmax of it (Wortsman et al., 2022, section 4). One
    member's predictions are in memory at a time.
    """
    keys, labels, first = read_predictions(store, members[0], split)
    total = first.astype(np.float64)
    for member in members[1:]:
        others, _, found = read_predictions(store, member, split)
        assert others == keys, f"predictions of {member} on {split} are of other images"
        total += found
    return keys, labels, total / len(members)


def save(store: Store, ensemble: EnsembleResult) -> None:
    text = ensemble.model_dump_json(indent=2) + "\n"
    store.write(f"{ensemble_dir(ensemble.id)}/ensemble.json", text.encode())
