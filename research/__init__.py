"""The third study: made anew with `make research-test` and the commands of its modules."""
