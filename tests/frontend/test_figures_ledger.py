"""What was gained and forgotten, drawn: flows that add up, and tables that say the same."""

import numpy as np

from calift_core.analysis.ledger import outcomes
from calift_core.schema.wire.answers import LedgerSet
from frontend.figures import ledger
from frontend.tables import analysis
from tests.frontend.examples import RUNS

CELLS = [
    (outcome, moved, 10 * i + j)
    for i, outcome in enumerate(ledger.OUTCOMES)
    for j, moved in enumerate(ledger.MOVED)
]
COUNTS = {o: sum(n for name, _, n in CELLS if name == o) for o in ledger.OUTCOMES}
FOUND = LedgerSet.model_validate(
    {
        "dataset": "on<b>_x", "role": "shift", "evaluation_id": "a", "against_id": "b",
        "n": sum(COUNTS.values()), **COUNTS, "difference": 0.1, "interval": (0.0, 0.2),
        "distinguishable": False, "forgotten": 0.25, "forgotten_interval": (0.2, 0.3),
        "cells": [
            {"outcome": o, "moved": m, "n": n, "confidence_before": None, "confidence_after": None}
            for o, m, n in CELLS
        ],
    }
)  # fmt: skip


def test_flows__what_enters_a_node_leaves_it():
    figure = ledger.flows(FOUND, run=RUNS[0].label, base=RUNS[1].label, step=0.1)
    (trace,) = figure.data
    n_nodes = len(trace.node.label)
    entering, leaving = np.zeros(n_nodes), np.zeros(n_nodes)
    np.add.at(entering, list(trace.link.target), list(trace.link.value))
    np.add.at(leaving, list(trace.link.source), list(trace.link.value))
    assert leaving[:2].sum() == entering[-3:].sum() == FOUND.n
    np.testing.assert_array_equal(entering[2:6], leaving[2:6])
    assert "25.0" in figure.layout.meta["alt"]
    assert "<b>_" not in figure.layout.title.text


def test_tables__add_up_to_the_data_set():
    rows = analysis.ledger_cells(FOUND).rows
    assert sum(row["n"] for row in rows) == FOUND.n
    (row,) = analysis.ledger_sets([FOUND]).rows
    assert (row["gained"], row["lost"]) == (FOUND.gained, FOUND.lost)


def test_outcomes__every_sample_meets_one():
    rng = np.random.default_rng(0)
    before, after = rng.random((2, 500)) < 0.6
    met = outcomes(before, after)
    np.testing.assert_array_equal(sum(m.astype(int) for m in met.values()), 1)
    turned = outcomes(after, before)
    np.testing.assert_array_equal(met["gained"], turned["lost"])
    np.testing.assert_array_equal(met["both"], turned["both"])
