"""Posts to the webhook that a run or a sweep has ended."""

from __future__ import annotations

import logging
import time

from backend.dispatch.periodic import Periodic
from backend.settings import Settings
from backend.store.notifications import Ended
from backend.store.stores import Stores
from calift_core.webhook import Event, Webhook, WebhookError, deliver

_log = logging.getLogger(__name__)


#: Seconds between two looks at what has ended.
_EVERY_S = 1.0


class Notifier(Periodic):
    """A thread of its own, since a receiver may be slow. Without an address, ends are forgotten.

    Raises:
        SpecError: the address or the secret is none.
    """

    def __init__(self, store: Stores, settings: Settings) -> None:
        super().__init__("webhook", _EVERY_S)
        self._notifications = store.notifications
        secret = settings.webhook_secret
        self._webhook = (
            Webhook(
                settings.webhook_url,
                secret.get_secret_value() if secret else "",
                settings.webhook_form,
                settings.webhook_private,
            )
            if settings.webhook_url
            else None
        )

    def run_once(self) -> None:
        """Deliver what is due; what cannot be delivered is tried again later."""
        if self._webhook is None:
            self._notifications.forget()
            return
        while not self._stopping.is_set() and (ended := self._notifications.take()) is not None:
            try:
                deliver(self._webhook, event_of(ended), now=time.time())
            except WebhookError as error:
                again = self._notifications.failed(ended.notification)
                later = "it will be tried again" if again else "it is given up"
                _log.warning("%s %s: %s; %s", ended.about, ended.subject, error.message, later)
            else:
                self._notifications.delivered(ended.notification)


def event_of(ended: Ended) -> Event:
    """What is said of an end, in a sentence and in fields."""
    text = f"The {ended.about} {ended.name} ({ended.subject}) has {ended.phase.lower()}"
    if ended.phase == "CANCELLED":
        text = f"The {ended.about} {ended.name} ({ended.subject}) was cancelled"
    numbers = {k: v for k, v in ended.summary.items() if isinstance(v, int | float)}
    shown = [
        f"{words} {100 * numbers[name]:.1f} %"
        for name, words in (("id_accuracy", "ID accuracy"), ("ood_accuracy", "OOD accuracy"))
        if name in numbers
    ]
    text += f": {', '.join(shown)}." if shown else f": {ended.message}" if ended.message else "."
    data = {
        "kind": ended.about,
        "id": ended.subject,
        "name": ended.name,
        "phase": ended.phase,
        "submitted_by": ended.submitted_by,
        "message": ended.message,
        "summary": numbers,
    }
    return Event(
        f"calift-{ended.kind}-{ended.subject}-{ended.notification}",
        f"{ended.kind}.{ended.phase.lower()}",
        ended.at,
        text,
        data,
    )
