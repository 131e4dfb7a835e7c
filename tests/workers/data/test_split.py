"""Split: properties of val and test splits."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from workers.data.split import assign_splits

FRACTIONS = {"val": 0.15, "test": 0.2}


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(0, 9))
def test_shares_are_exact_if_all_images_differ(sizes: list[int], seed: int) -> None:
    samples = [(label, f"{label}-{i}") for label, size in enumerate(sizes) for i in range(size)]
    splits = assign_splits(samples, FRACTIONS, seed)
    assert splits.keys() == {content for _, content in samples}
    for label, size in enumerate(sizes):
        counts = Counter(split for content, split in splits.items() if content[0] == str(label))
        for split, share in FRACTIONS.items():
            least = 1 if size > 2 else 0
            assert counts[split] == max(int(size * share + 0.5), least)
        assert counts["train"] >= 1


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 25).map(str)), max_size=150),
    st.integers(0, 9),
    st.randoms(use_true_random=False),
)
def test_the_order_of_the_samples_does_not_matter(samples, seed, random) -> None:  # type: ignore[no-untyped-def]
    shuffled = random.sample(samples, len(samples))
    assert assign_splits(samples, FRACTIONS, seed) == assign_splits(shuffled, FRACTIONS, seed)
