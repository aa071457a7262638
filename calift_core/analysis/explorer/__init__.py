"""The one explorer of stored predictions: the API and the command ask it the same questions.

It knows neither a database nor folders: a `Library` does. Every answer is a function of the
predictions' bytes and of what is asked, and is remembered by those two.
"""

from calift_core.analysis.explorer.calibrators import CalibratorAnswers
from calift_core.analysis.explorer.decisions import DecisionAnswers
from calift_core.analysis.explorer.ood import OodAnswers
from calift_core.analysis.explorer.prompts import PromptAnswers
from calift_core.analysis.explorer.samples import SampleAnswers

__all__ = ["Explorer"]


class Explorer(CalibratorAnswers, SampleAnswers, PromptAnswers, DecisionAnswers, OodAnswers):
    """Reliability, measures, slices, calibrators and planning of stored predictions.

    Whatever is None in a question is as the predictions were evaluated.
    """
