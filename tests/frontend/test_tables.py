"""Tables as HTML and CSV: the numbers of the figures, escaped and with an end."""

import csv

from calift_core.data.relabel import read_corrections
from calift_core.schema.wire.results import LabelCorrection
from frontend import figures, tables
from frontend.panels.correcting import corrections_csv
from frontend.tables import Column, Table
from frontend.tables import sweeps as sweep_tables
from tests.frontend.examples import BINS, make_reliability


def test_table__twin_holds_the_numbers_of_the_diagram():
    table = figures.reliability.bins_table([make_reliability(BINS)])
    assert [row["accuracy"] for row in table.rows] == [b.accuracy for b in BINS]
    html = tables.to_html(table, caption="bins")
    assert html.count("<tr>") == 1 + len(BINS)
    assert "35.0\u00a0%" in html


def test_table__html_escapes_everything_but_markup():
    table = tables.Table(
        [tables.Column("a", "<b>"), tables.Column("b", "B")],
        [{"a": "<script>", "b": tables.Markup("<i>ours</i>")}],
    )
    html = tables.to_html(table, caption='"><x')
    assert "<script>" not in html
    assert "<b>" not in html
    assert "<x" not in html
    assert "<i>ours</i>" in html


def test_table__csv_keeps_fractions_and_long_ones_say_how_much_is_left_out():
    columns = [tables.Column("x", "X", "percent"), tables.Column("name", "Name")]
    table = tables.Table(columns, [{"x": -0.0312345, "name": "=1+1"}, {"x": None, "name": "a,b"}])
    assert tables.to_csv(table) == 'x,name\n-0.0312345,\'=1+1\n,"a,b"\n'
    table = tables.Table([tables.Column("x", "X", "count")], [{"x": i} for i in range(7)])
    assert "and 4 more rows" in tables.to_html(table, caption="numbers", limit=3)


def test_sweep__evaluated_without_shifts_names_its_columns_after_the_id_data():

    shown = Table(
        [
            Column("id_accuracy", "ID accuracy", "percent"),
            Column("ood_accuracy", "OOD accuracy", "percent"),
            Column("ood_nll", "OOD NLL", "number"),
            Column("metric", "By"),
        ],
        [{"id_accuracy": 0.9, "ood_accuracy": 0.9, "ood_nll": 0.1, "metric": "OOD NLL"}],
    )
    assert sweep_tables.as_evaluated(shown, "shifts") == shown
    output = sweep_tables.as_evaluated(shown, "id")
    assert [c.label for c in output.columns] == ["ID accuracy", "ID NLL", "By"]
    assert output.rows[0]["metric"] == "ID NLL"


def test_corrections__hold_no_formula_and_are_read_back_as_they_were(tmp_path):
    output = [
        LabelCorrection(sample="=1+1.png", label="@a", suggested="-b"),
        LabelCorrection(sample="'=x.png", label="cat", suggested=""),
    ]
    path = tmp_path / "corrections.csv"
    path.write_text(corrections_csv(output), newline="")
    with path.open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(tuple("=+-@"))]
    read = read_corrections(path)
    assert [(one.sample, one.label, one.suggested) for one in read] == [
        (one.sample, one.label, one.suggested) for one in output
    ]
