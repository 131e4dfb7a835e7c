"""Split: the images of val, test and every fold, stratified and seeded.

Images of equal content are in one split and one fold.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable


def seeded_order(seed: int, content: str) -> str:
    """Sort key of a shuffle that depends on the seed and the image only.

    It does not depend on folders or other images.
    """
    return hashlib.sha256(f"{seed}:{content}".encode()).hexdigest()


def assign_splits(
    samples: Iterable[tuple[int, str]], fractions: dict[str, float], seed: int
) -> dict[str, str]:
    """Split of every content, given (label, content hash) of every sample.

    In every class, contents are taken in seeded order. Every split of `fractions` takes images
    until it has its rounded share, at least one if the class has one for every split. `train` has
    the rest. A content in two classes has the split of its first class.
    """
    classes: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for label, content in samples:
        classes[label][content] += 1
    splits: dict[str, str] = {}
    for label in sorted(classes):
        _assign_class_splits(classes[label], fractions, seed, splits)
    return splits


def _assign_class_splits(
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
    rest = sorted(counts.keys() - splits.keys(), key=lambda content: seeded_order(seed, content))
    for content in rest:
        split = next((split for split, left in wanted.items() if left > 0), "train")
        splits[content] = split
        if split in wanted:
            wanted[split] -= counts[content]


def assign_folds(samples: Iterable[tuple[int, str]], num: int, seed: int) -> dict[str, int]:
    """Fold of every content, given (label, content hash) of every training sample.

    In every class, contents are taken in seeded order, those with copies first, and assigned to the
    fold with fewest images of the class, then fewest of all. If no two images are equal, folds
    differ by at most one image in every class and altogether. A content in two classes has the fold
    of its first class.
    """
    classes: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for label, content in samples:
        classes[label][content] += 1
    folds: dict[str, int] = {}
    sizes = [0] * num
    for label in sorted(classes):
        _assign_class_folds(classes[label], folds, sizes, seed)
    return folds


def _assign_class_folds(
    counts: dict[str, int], folds: dict[str, int], sizes: list[int], seed: int
) -> None:
    mine = [0] * len(sizes)
    for content in counts.keys() & folds.keys():
        mine[folds[content]] += counts[content]
        sizes[folds[content]] += counts[content]
    rest = counts.keys() - folds.keys()
    for content in sorted(rest, key=lambda other: (-counts[other], seeded_order(seed, other))):
        fold = min(range(len(sizes)), key=lambda k: (mine[k], sizes[k], k))
        folds[content] = fold
        mine[fold] += counts[content]
        sizes[fold] += counts[content]
