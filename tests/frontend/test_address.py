"""The page's address under acts of a visitor whose browser hears of it late."""

from hypothesis import example, given
from hypothesis import strategies as some

from frontend.address import _Written

NAMES = ("bins", "metric")
VALUES = (None, "1", "2")

#: What is changed to what, and how many of the server's messages arrive before it.
ACTS = some.lists(
    some.tuples(some.sampled_from(NAMES), some.sampled_from(VALUES), some.integers(0, 3)),
    max_size=12,
)


class Session:
    """A server and a browser that hears what the server writes in order, and late."""

    def __init__(self) -> None:
        self.written = _Written()
        self.on_the_way = []
        self.shown = {}

    def arrive(self, count: int) -> None:
        for _ in range(min(count, len(self.on_the_way))):
            self.shown = self.on_the_way.pop(0)

    def act(self, name: str, value: str | None) -> dict[str, str]:
        """Change a parameter; the address that the server holds then."""
        address = self.looked(moved=False)
        if address.get(name) != value:
            self.written.write(name, value, before=address.get(name))
            address = self.with_changes(address, {name: value})
            self.on_the_way.append(address)
        return address

    def looked(self, *, moved: bool) -> dict[str, str]:
        """The address with which the server goes on when a browser has sent its own."""
        late = self.written.look(self.shown, moved=moved)
        address = self.with_changes(self.shown, late)
        if late:
            self.on_the_way.append(address)
        return address

    @staticmethod
    def with_changes(address: dict[str, str], changes: dict[str, str | None]) -> dict[str, str]:
        return {k: v for k, v in {**address, **changes}.items() if v is not None}


@given(acts=ACTS)
@example(acts=[("bins", "1", 0), ("metric", "1", 0)])
@example(acts=[("bins", "1", 0), ("bins", None, 0), ("metric", "1", 1)])
def test_address__holds_every_change_however_late_the_browser_hears_of_it(acts):
    session, wanted = Session(), {}
    for name, value, arrived in acts:
        session.arrive(arrived)
        wanted = session.with_changes(wanted, {name: value})
        assert session.act(name, value) == wanted
    session.arrive(len(session.on_the_way))
    assert session.shown == wanted


@given(acts=ACTS, where=some.dictionaries(some.sampled_from(NAMES), some.sampled_from("123")))
def test_back__counts_whatever_is_still_on_the_way(acts, where):
    session = Session()
    for name, value, arrived in acts:
        session.arrive(arrived)
        session.act(name, value)
    session.shown = where
    assert session.looked(moved=True) == where


def test_back__before_the_last_change_has_arrived_takes_that_change_back():
    session = Session()
    session.act("bins", "6")
    assert session.looked(moved=True) == {}
    session.arrive(1)
    assert session.looked(moved=False) == {}
    session.arrive(1)
    assert session.shown == {}


def test_link__to_an_earlier_value_counts_once_the_browser_has_sent_the_newer_one():
    session = Session()
    session.act("bins", "6")
    session.arrive(1)
    assert session.act("metric", "1") == {"bins": "6", "metric": "1"}
    session.shown = {"metric": "1"}
    assert session.looked(moved=False) == {"metric": "1"}
