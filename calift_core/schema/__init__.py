"""What crosses a process boundary: specs, records, reports and the API's wire models. Torch-free."""
