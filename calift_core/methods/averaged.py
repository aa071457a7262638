"""FLYP whose result is the mean of its trajectory, both ends weighing most."""

from calift_core.methods.base import Setup
from calift_core.methods.flyp import Flyp
from calift_core.methods.teacher import TrajectoryTeacher, average_into
from calift_core.schema.methods import Averaged as AveragedSpec


class Averaged(Flyp):
    """L = L_MCL; the model is Σ_k w_k θ_k / Σ_k w_k, w_k = Beta(β, β).pdf((k + ½)/(K + 1)).

    The mean of every iterate, θ₀ and θ_K among them, that TRACER distils from (its section on the
    weighted moving average), taken as an end point: no pass of a second model is run for it. Each
    step is FLYP's.

    Differs from the reference, TRACER: the mean teaches nobody.
    """

    teacher: TrajectoryTeacher

    def __init__(self, setup: Setup[AveragedSpec]) -> None:
        clip, captions, spec, length = setup.clip, setup.captions, setup.spec, setup.length
        super().__init__(setup)
        self.teacher = TrajectoryTeacher(
            clip, captions, total_steps=length.total_steps, beta=spec.beta, follow_buffers=True
        )

    def finish(self) -> None:
        """Take the mean, BatchNorm statistics among it."""
        average_into(self.clip, self.teacher.clip, 1.0, buffer_share=1.0)
