"""What one real run said, told to the store."""

from pathlib import Path

from calift_core.schema import records as r
from tests.conftest import spec_of
from tests.support import record_run, recorded


def test_recorded__the_real_runner_still_says_it(tmp_path):
    new = [r.RECORD.validate_json(line) for line in record_run.record(tmp_path)]
    assert recorded.shapes(new) == recorded.shapes(recorded.RECORDED), (
        "what a run says has changed: python -m tests.support.record_run"
    )
    assert recorded.turns(new) == recorded.turns(recorded.RECORDED)
    text = recorded.RECORDED_FILE.read_text(encoding="utf-8")
    assert str(Path.home()) not in text
    assert "/tmp" not in text, "no path of the recording machine"


def test_recorded__every_validation_spectrum_is_kept_beside_the_final_one(store):
    run_id = store.runs.submit(spec_of())
    assert store.claims.claim(run_id, worker_id="w", ttl_s=60) is not None
    for record in recorded.RECORDED:
        assert store.records.record(run_id, 1, [record])
    assert store.claims.finish(run_id, 1, phase="SUCCEEDED")
    spectra = store.history.spectra(run_id)
    assert [s.final for s in spectra] == [False, False, False, True]
    assert [s.features for s in spectra] == ["photos/validation"] * 3 + ["photos/test"]
    assert spectra[-1].step == spectra[-2].step
