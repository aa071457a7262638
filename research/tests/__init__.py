"""Tests of the studies: `make research-test`."""
