"""calift_core: fine-tune vision-language models, measure how far to trust their confidence.

Importing this package loads neither torch nor numpy; import the module you need.
The parts that cross processes (`schema`, `errors`, `calibration`, `predictions`, `client`)
work on a machine without torch.
"""

__version__ = "0.1.0"
