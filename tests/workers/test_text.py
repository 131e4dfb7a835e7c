"""Text from data on its way to a terminal, a page, Markdown and a spreadsheet."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.errors import UserError
from workers.text import (
    csv_cell,
    markdown,
    one_line,
    printable,
    printable_values,
    without_credentials,
)


def test_escapes_and_overrides_become_visible() -> None:
    assert printable("a\x1b[31m\u202eb\nc\td\r") == r"a\x1b[31m\u202eb" + "\nc\td" + r"\r"
    assert one_line("a\nb") == r"a\nb"
    assert printable_values({"k": ["\x07", 1.5, None]}) == {"k": [r"\x07", 1.5, None]}


@given(st.text())
def test_nothing_that_steers_a_terminal_is_left(text: str) -> None:
    line = one_line(text)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2066\u2028" for c in line)
    line.encode()


def test_surrogates_of_a_file_name_can_be_written() -> None:
    assert one_line(b"\xff.png".decode(errors="surrogateescape")) == r"\udcff.png"


@pytest.mark.parametrize("name", ["cat", "n02123045 tabby, tabby cat", "R&B", "dark_blue", "Köln"])
def test_normal_names_stay_as_they_are(name: str) -> None:
    assert printable(name) == one_line(name) == markdown(name) == csv_cell(name) == name


def test_markup_in_a_name_is_text() -> None:
    name = "<script>alert(1)</script>|[x](y)`"
    assert markdown(name) == r"&lt;script&gt;alert(1)&lt;/script&gt;\|\[x\](y)\`"


@pytest.mark.parametrize("formula", ["=cmd|'/c calc'!A1", "+1+1", "@SUM(A1)", "-2+3", "\uff1d1"])
def test_a_formula_in_a_cell_is_text(formula: str) -> None:
    assert csv_cell(formula) == f"'{formula}"


def test_numbers_are_no_formulas() -> None:
    assert [csv_cell(cell) for cell in (-1, "-1", "-0.5e-3", None)] == [-1, "-1", "-0.5e-3", None]


@given(st.text())
def test_a_cell_is_one_line_of_a_csv_file(text: str) -> None:
    file = io.StringIO(newline="")
    csv.writer(file).writerow([csv_cell(text), "end"])
    assert list(csv.reader(io.StringIO(file.getvalue(), newline=""))) == [[csv_cell(text), "end"]]


@pytest.mark.parametrize(
    ("uri", "public"),
    [
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("s3://b/a?secret_key=x&region=eu", "s3://b/a?region=eu"),
        ("s3://b/a?region=eu&access_key=k&secret_key=x", "s3://b/a?region=eu"),
        ("s3://b/a?region=eu&access_key=k&scheme=http", "s3://b/a?region=eu&scheme=http"),
        ("https://h/x.tar?token=abc", "https://h/x.tar"),
        ("abfs://c@account.dfs.core.windows.net/a", "abfs://account.dfs.core.windows.net/a"),
        ("/local/a@b", "/local/a@b"),
    ],
)
def test_credentials_are_left_out_of_a_uri(uri: str, public: str) -> None:
    assert without_credentials(uri) == public
    assert str(UserError(f"storage {uri} is full")) == f"storage {public} is full"


def test_a_mistake_with_a_long_value_keeps_its_beginning_and_remedy() -> None:
    text = str(UserError(f"label {'x' * 30_000_000} is unknown; correct it"))
    assert len(text) < 3000 and text.startswith("label x") and text.endswith("correct it")
