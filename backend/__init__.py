"""The REST API: FastAPI over the store. Torch-free."""
