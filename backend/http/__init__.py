"""Requests: who sent them, what they may, how errors answer."""
