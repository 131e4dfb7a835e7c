"""Values, texts and documents that a stranger may write, and changes of valid ones."""

import random
from typing import Any

HOSTILE_TEXTS = (
    *("", "\x1b[31m", "\u202egnp.exe", "=cmd|'/c calc'!A1", "<script>alert(1)</script>", "a" * 300),
    *("../../etc/passwd", "~nosuchuser/x", "s3://", "gs://", "hdfs://nowhere/x", "az://x", "\0"),
    *("pipe:touch /tmp/pwned", "${HOME}", "${NOT_SET}", "file:///dev/null", "http://[", "\udcff"),
    *("x-{000000000..999999999}.tar", "{" * 40, "{a,b}" * 12, "os:system", "evil:Recipe", "%n"),
    *("!!python/object:os.system", "9" * 5000, "1e999", "-1", "nan", "a\nb", "C:\\x", "*", "."),
)
HOSTILE_NUMBERS = (0, -1, 1, 2, 3, 0.5, 1e-9, 1e9, 1e300, 10**6, 2**31, 2**63, 10**30, -(10**30))
HOSTILE_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 1e-320, 1e300, float("nan")),
    *(float("inf"), [], {}, [[]], {"": None}, {"a": {"b": {"c": 1}}}, [1, "a", None]),
    *HOSTILE_TEXTS,
)

BASE_CONFIG: dict[str, Any] = {
    "name": "x",
    "data": {"source": "digits", "image_size": 32},
    "model": {"name": "test_resnet", "kwargs": {}},
    "base": {"init": "zero"},
    "train": {"epochs": 2, "batch_size": 8, "lr": 0.003, "aa": None},
    "sweep": {"seeds": 2, "space": {"train.lr": [0.1, 0.01]}},
    "fleet": {"device": "cpu", "env": {"A": "b"}},
    "merge": {"mode": "observe", "method": "greedy"},
    "soup": {"recipes": ["best", {"greedy": {"tie": "strict"}}], "ingredients": "best"},
    "ensemble": {"stacking": False},
}


def changed_bytes(rng: random.Random, content: bytes) -> bytes:
    """The content with some bytes flipped, cut, repeated, inserted or overwritten."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 4, 64))
        match rng.randrange(5):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[at:]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                data[at:at] = rng.randbytes(length)
            case _:
                data[at : at + length] = rng.choice((b"\xff", b"\0", b"9")) * length
    return bytes(data)


def changed_tree(rng: random.Random, tree: Any) -> Any:
    """The tree with one hostile value, or one hostile key, somewhere in it."""
    if isinstance(tree, dict) and tree and rng.random() < 0.8:
        key = rng.choice(sorted(tree))
        if rng.random() < 0.1:
            return {**tree, rng.choice(HOSTILE_TEXTS): tree[key]}
        return {**tree, key: changed_tree(rng, tree[key])}
    if isinstance(tree, list) and tree and rng.random() < 0.7:
        at = rng.randrange(len(tree))
        return [*tree[:at], changed_tree(rng, tree[at]), *tree[at + 1 :]]
    return _hostile_value(rng, tree)


def _hostile_value(rng: random.Random, value: Any) -> Any:
    """Mostly of the kind of the value, so that more than its type is checked."""
    if rng.random() < 0.2:
        return rng.choice(HOSTILE_VALUES)
    if isinstance(value, str):
        return rng.choice(HOSTILE_TEXTS)
    return rng.choice(HOSTILE_NUMBERS)


def hostile_document(rng: random.Random) -> str:
    """YAML that is deep, of aliases, of long numbers, or of other kinds than a configuration."""
    n = rng.choice((5, 60, 3000))
    aliases = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    return rng.choice(
        (
            "model: {kwargs: " + "[" * n + "]" * n + "}",
            "model:\n" + "".join(f"{' ' * i}a:\n" for i in range(1, min(n, 400))),
            f"a0: &a0 [1, 2]\n{aliases}model: {{kwargs: *a8}}",
            "model: &m {kwargs: *m}",
            f"seed: {'7' * n}",
            f"sweep: {{seeds: {10 ** rng.randrange(12)}}}",
            f"sweep: {{num_runs: {10 ** rng.randrange(3, 12)}, space: {{train.lr: [1, 2]}}}}",
            "? [a, b]\n: c",
            "&a *a",
            "- 1\n- 2",
            "a: !!python/object/apply:os.system ['true']",
            "<<: *none",
            "\x00",
            "a: 2026-13-45",
        )
    )
