"""What a runner says is stored once, in order, whatever happens to its attempt."""

from calift_core.schema import records as r
from tests.backend.store.helpers import WORKER, claimed, expire, metric, steps
from tests.conftest import example_evaluation, example_predictions, example_spectrum


def test_record__resumed_run_neither_loses_nor_repeats_points(store):
    run_id = claimed(store).run_id
    store.records.record(run_id, 1, [metric(s, 1.0) for s in range(1, 11)])
    store.records.record(
        run_id, 1, [r.SpectrumRecord(step=s, spectrum=example_spectrum()) for s in (5, 9)]
    )
    expire(store, run_id)
    store.reaper.sweep()
    assert store.claims.claim(run_id, **WORKER) is not None
    assert store.records.record(
        run_id, 2, [r.ResumedRecord(step=5), metric(6, 2.0), metric(7, 2.0)]
    )
    assert steps(store, run_id) == [1, 2, 3, 4, 5, 6, 7]
    assert store.history.metrics(run_id).series[0].values == [1.0] * 5 + [2.0] * 2
    assert [s.step for s in store.history.spectra(run_id)] == [5]


def test_record__attempt_that_starts_over_leaves_no_old_points(store):
    run_id = claimed(store).run_id
    store.records.record(run_id, 1, [metric(s, 1.0) for s in (10, 20, 30, 40)])
    expire(store, run_id)
    store.reaper.sweep()
    store.claims.claim(run_id, **WORKER)
    store.records.record(run_id, 2, [metric(10, 2.0)])
    assert steps(store, run_id) == [10]


def test_restore__fills_holes_and_touches_nothing_else(store):
    run_id = claimed(store).run_id
    store.records.record(run_id, 1, [metric(s, 1.0) for s in (1, 2, 5)])
    expire(store, run_id)
    store.reaper.sweep()
    assert store.claims.claim(run_id, **WORKER) is not None
    store.records.record(run_id, 2, [r.ResumedRecord(step=5), metric(6, 2.0)])
    events = len(store.history.events_after(run_id)[0])
    measured = [metric(s, 1.0) for s in range(1, 6)]
    measured.append(r.SpectrumRecord(step=5, spectrum=example_spectrum()))
    for _ in range(2):
        assert store.records.restore(run_id, 2, measured)
    assert steps(store, run_id) == [1, 2, 3, 4, 5, 6]
    assert store.history.metrics(run_id).series[0].values == [1.0] * 5 + [2.0]
    assert [s.step for s in store.history.spectra(run_id)] == [5]
    assert len(store.history.events_after(run_id)[0]) == events
    assert not store.records.restore(run_id, 1, measured)
    assert not store.records.restore(run_id, 1, [])
    assert store.records.restore(run_id, 2, [metric(s, 1.0) for s in range(1, 2500)])
    assert len(steps(store, run_id)) == 2499


def test_record__repeating_a_batch_changes_no_number(store):
    run_id = claimed(store).run_id
    batch = [
        metric(1),
        metric(2),
        r.EvaluationRecord(evaluation=example_evaluation(example_predictions()), predictions="p"),
        r.SpectrumRecord(step=2, spectrum=example_spectrum()),
    ]
    store.records.record(run_id, 1, batch)
    first = (
        store.history.metrics(run_id),
        store.history.spectra(run_id),
        len(store.results.run_evaluations(run_id)),
    )
    store.records.record(run_id, 1, batch)
    assert (
        store.history.metrics(run_id),
        store.history.spectra(run_id),
        len(store.results.run_evaluations(run_id)),
    ) == (first)


def test_record__same_step_twice_in_a_batch_keeps_the_later(store):
    run_id = claimed(store).run_id
    assert store.records.record(run_id, 1, [metric(1, 1.0), metric(1, 2.0)])
    assert store.history.metrics(run_id).series[0].values == [2.0]


def test_record__event_ids_have_no_gap(store):
    run_id = claimed(store).run_id
    store.records.record(run_id, 1, [r.PhaseRecord(phase="training"), metric(1), metric(2)])
    store.records.record(run_id, 1, [r.LogRecord(message="x"), metric(3)])
    store.claims.finish(run_id, 1, phase="FAILED", reason="OOM")
    events, phase = store.history.events_after(run_id)
    assert [e.id for e in events] == list(range(1, len(events) + 1))
    assert phase == "FAILED"
    assert events[-1].data["phase"] == "FAILED"
    assert store.history.events_after(run_id, 3)[0] == events[3:]
