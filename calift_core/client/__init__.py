"""The typed client of the REST API: for scripts, the `calift` command and the dashboard.

::

    with Client() as calift:
        run = calift.submit({"name": "carot", "method": {"kind": "carot"}})
        run = calift.wait(run.id)
        print(run.summary.ood_ece)

It finds the service by `CALIFT_API_URL`, else the stack that runs on `CALIFT_HOME`, else on this
machine's port `CALIFT_PORT`; and the token in `CALIFT_TOKEN`, else in `CALIFT_HOME/token`.
"""

from calift_core.client.answers import AnswerCalls
from calift_core.client.evaluations import EvaluationCalls
from calift_core.client.runs import RunCalls, Spec
from calift_core.client.samples import SampleCalls
from calift_core.client.service import ServiceCalls
from calift_core.client.sweeps import SweepCalls
from calift_core.client.where import DEFAULT_PORT, running_stack

__all__ = ["DEFAULT_PORT", "Client", "Spec", "running_stack"]


class Client(
    RunCalls,
    SweepCalls,
    EvaluationCalls,
    SampleCalls,
    AnswerCalls,
    ServiceCalls,
):
    """A connection to a calift service. Close it, or use it as a context manager.

    Args:
        base_url: where the service is; None: `CALIFT_API_URL`, else the stack that runs here.
        token: None: `CALIFT_TOKEN`, else the embedded one's token file.
        timeout_s: for one answer to begin; downloads and event streams may take longer.

    Raises:
        SpecError: the address or the token cannot be used.

    Every method raises ServiceUnavailableError when nothing answers, and ServiceError, with the
    server's sentence and hint, when the answer is an error.
    """
