"""Curves on disk: what an attempt takes over, and what is read back."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from calift_core.jobs.curves import FILES, METRICS, Curves, read_curves
from calift_core.schema import records as r
from tests.conftest import example_spectrum
from tests.support import recorded


def steps(first: int, last: int) -> list[r.Record]:
    """What a run says of its steps, with a validation at every tenth."""
    found = []
    for step in range(first, last + 1):
        found.append(recorded.metrics(step, step / 10, loss=1 / step))
        if step % 10 == 0:
            found += recorded.validated(step, step / 10, example_spectrum(step / 10))
    return found


def keep(folder: Path, records: list[r.Record], resume_from: Path | None = None) -> None:
    folder.mkdir(exist_ok=True)
    with Curves(folder, resume_from) as curves:
        for record in records:
            curves.take(record)


def order(records: list[r.Record]) -> list[tuple[str, int, str]]:
    return sorted((x.kind, x.step, x.model_dump_json()) for x in records)


@given(stops=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=4))
def test_curves__attempts_leave_what_one_alone_would_have_left(stops, tmp_path_factory):
    root = tmp_path_factory.mktemp("curves")
    begun, before = 0, None

    def attempt(last):
        return [*([recorded.resumed(begun)] if begun else []), *steps(begun + 1, last)]

    for index, (checkpoint, beyond) in enumerate(stops):
        last = min(40, max(begun, checkpoint) + beyond)
        keep(root / str(index), attempt(last), before)
        begun, before = min(last, max(begun, checkpoint)), root / str(index)
    keep(root / "end", attempt(40), before)
    assert order(list(read_curves(root / "end", until=99))) == order(steps(1, 40))
    assert order(list(read_curves(root / "end", until=20))) == order(steps(1, 20))


def test_read_curves__passes_over_half_a_line_and_finds_none_in_an_empty_run(tmp_path):
    assert read_curves(tmp_path, until=9) == []
    keep(tmp_path, [])
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)
    assert read_curves(tmp_path, until=9) == []
    keep(tmp_path, steps(1, 3))
    with (tmp_path / METRICS).open("a") as file:
        file.write(
            'nonsense\n[1]\n{"loss": 1}\n{"step": 4, "epoch": 0.4, "loss": 0.25}\n{"step": 5'
        )
    assert [record.step for record in read_curves(tmp_path, until=9)] == [1, 2, 3, 4]
