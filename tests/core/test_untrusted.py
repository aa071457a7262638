"""Documents that nest."""

import json

import pytest

from calift_core.untrusted import MAX_DEPTH, check_depth, parse_json


def test_parse_json__nests_as_deep_as_may_be_and_no_deeper():
    for begin, end in (("[", "]"), ('{"a":', "}")):
        deepest = begin * MAX_DEPTH + "1" + end * MAX_DEPTH
        assert parse_json(deepest) == json.loads(deepest)
        for more in (1, 500, 100_000):
            text = begin * more + deepest + end * more
            with pytest.raises(ValueError, match="at most 64 levels deep"):
                parse_json(text)


def test_check_depth__of_what_holds_itself_or_one_thing_in_many_places():
    loop = []
    loop.append(loop)
    with pytest.raises(ValueError, match="levels deep"):
        check_depth(loop)
    shared = 1
    for _ in range(MAX_DEPTH):
        shared = [shared, shared]  # 2^64 places
    assert check_depth(shared) is shared
