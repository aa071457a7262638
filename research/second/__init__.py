"""The second study, as it was run: its protocol, records, tables and pages."""
