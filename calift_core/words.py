"""Numbers as people read them."""


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction: `62.4 %`; none is a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def nats(value: float, *, signed: bool = False) -> str:
    """A negative log-likelihood, or with a sign the difference of two: `0.412`."""
    return f"{value:{'+' if signed else ''}.3f}"
