"""Split: who is set aside for val and test; stratified, seeded, equal content kept together."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable


def seeded_order(seed: int, content: str) -> str:
    """Sorting by this is a shuffle that depends on the seed and the image only, so it is the same
    for any folder layout or listing order, and stays put when other images come or go."""
    return hashlib.sha256(f"{seed}:{content}".encode()).hexdigest()


def set_aside(
    samples: Iterable[tuple[int, str]], fractions: dict[str, float], seed: int
) -> dict[str, str]:
    """Split of every content, given (label, content hash) of every sample.

    Per class: contents in seeded order; each split of `fractions` takes images until it has its
    share, rounded, and at least one where the class has one for every split; `train` the rest. A
    content in two classes stays in the split that its first class gave it.
    """
    classes: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for label, content in samples:
        classes[label][content] += 1
    splits: dict[str, str] = {}
    for label in sorted(classes):
        _set_aside_class(classes[label], fractions, seed, splits)
    return splits


def _set_aside_class(
    counts: dict[str, int], fractions: dict[str, float], seed: int, splits: dict[str, str]
) -> None:
    total = sum(counts.values())
    enough = len(counts) > len(fractions)
    wanted = {
        split: max(int(total * share + 0.5), 1 if enough else 0)
        for split, share in fractions.items()
    }
    for content in counts.keys() & splits.keys():
        if splits[content] in wanted:
            wanted[splits[content]] -= counts[content]
    waiting = sorted(counts.keys() - splits.keys(), key=lambda content: seeded_order(seed, content))
    for content in waiting:
        split = next((split for split, left in wanted.items() if left > 0), "train")
        splits[content] = split
        if split in wanted:
            wanted[split] -= counts[content]
