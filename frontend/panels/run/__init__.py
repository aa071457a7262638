"""The parts of a run's page: what stands above its tabs, and a file per tab."""
