"""Messages to workers, and the housekeeping of the queue."""
