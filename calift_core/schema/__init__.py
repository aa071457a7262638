"""What crosses a process boundary: specs, records, reports, the API's models. Torch-free."""
