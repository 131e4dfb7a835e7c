from orchestrator.report.html.tables import metric_table, recipe_table, run_table, soup_members
from orchestrator.report.model_rows import rows
from tests.orchestrator.report.scenario import RECIPES, Scenario


def test_the_recipe_table_has_every_column_and_model(finished: Scenario) -> None:
    results = finished.results()
    table = recipe_table(results, finished.analysis, list(rows(results)))
    titles = [column.title for column in table.columns]
    metrics = {"macro-F1", "NLL", "ECE", "ECE, T", "worst class"}
    assert metrics | {"vs best single on test", "p", "tastes", "seconds"} <= set(titles)
    assert len(table.rows) == 1 + len(RECIPES) + 1, "best single, soups, soft voting"
    assert "4 of 4 + base" in [row.cells[1].text for row in table.rows]
    assert [row.kind for row in table.rows].count("soup served") == 1


def test_tables_have_a_cell_per_column(finished: Scenario) -> None:
    results = finished.results()
    models = list(rows(results))
    tables = [recipe_table(results, finished.analysis, models), run_table(results, models)]
    tables += [metric_table(results, models).table]
    tables += [soup.decisions for soup in soup_members(results)]
    for table in tables:
        assert {len(row.cells) for row in table.rows} == {len(table.columns)}
