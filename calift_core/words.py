"""Numbers as people read them."""


def percent(value: float, digits: int = 1) -> str:
    """A fraction: `62.4 %`."""
    return f"{100 * value:.{digits}f} %"
