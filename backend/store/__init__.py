"""The only SQL: one class per role on one engine, so that imports say who may touch what.

A run's row is the truth; the message in the broker may be lost or sent twice.

* **Submit** (`runs`) writes the row and a message (`outbox`) in one transaction; a relay sends it.
* **Claim, fence** (`claims`, `states`): a worker takes the first run in line, and each of its later
  writes (`records`, `files`) carries the attempt.
* **Sweep** (`reaper`) queues runs with an expired lease again, or fails them.
* What is read back: `runs`, `history` (curves, events, log), `results`, `files`, `workers`.
* Who may ask: `tokens`, `sessions`.

`engine` opens databases, `cursors` signs places in lists, `errors` says what went wrong, and
`stores` holds all roles for the API.
"""
