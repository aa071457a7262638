"""Logs are read back in pieces."""

from tests.backend.store.helpers import claimed


def test_log__pieces_make_up_the_whole_and_never_split_a_character(store):
    run_id = claimed(store).run_id
    text_ = "".join(f"line {i} — ü🎈\n" for i in range(40))
    raw = text_.encode()
    for at in range(0, len(raw), 37):
        store.records.append_log(run_id, 1, raw[at : at + 37])
    store.claims.finish(run_id, 1, phase="SUCCEEDED")
    offset, pieces = 0, []
    while True:
        page = store.history.logs(run_id, offset=offset, limit=50)
        pieces.append(page.text)
        assert page.next_offset > offset or page.complete
        offset = page.next_offset
        if page.complete:
            break
    assert "".join(pieces) == text_
    assert text_.endswith(store.history.logs(run_id, offset=-21).text)
    assert "�" not in store.history.logs(run_id, offset=-21).text


def test_log__of_a_working_run_is_never_complete(store):
    run_id = claimed(store).run_id
    store.records.append_log(run_id, 1, "a")
    page = store.history.logs(run_id)
    assert (page.text, page.next_offset, page.complete) == ("a", 1, False)
    assert store.history.logs(run_id, offset=10_000).next_offset == 1
