"""Use cases of the service, one a file."""
