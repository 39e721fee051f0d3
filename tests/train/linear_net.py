"""A network that is exact for Gaussian patients, and can learn to be a perfect student of itself.

Every voxel of the target is N(last source, STD²). The ideal noise estimate is then linear in x and
in the last source, and so is that of a perfect student: `delta` holds what the student adds.
"""

import math

import torch
from torch import nn

from tadiff_rt.solvers import SolverPlan
from tests.rt.analytic import level

STD = 0.05
GAIN = 30.0
"""Of the mask's logits."""


class LinearNet(nn.Module):
    """Takes what `TaDiffNet` takes; weights of a level are at its time, rounded."""

    def __init__(self):
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(1001, 5))
        self.seen = []
        """(images, t, days, treatments, target) of every call."""

    def forward(self, images, t, days, treatments, target):
        self.seen.append(tuple(v.detach().clone() for v in (images, t, days, treatments, target)))
        (time,) = t.tolist()
        a, s = level(time)
        d = self.delta[round(time)]
        last, x = images[:, -6:-3], images[:, -3:]
        x0 = last + a * STD**2 / (a**2 * STD**2 + s**2) * (x - a * last)
        eps = (x - a * x0) / s + d[0] * (x - a * last) + d[1] * last
        rise = GAIN * (x0.mean(1, keepdim=True) - 0.5)
        logits = rise + d[2] * x.mean(1, keepdim=True) + d[3] * last.mean(1, keepdim=True) + d[4]
        return torch.cat([logits.expand(-1, 4, -1, -1), eps], 1)

    def __deepcopy__(self, memo):
        copy = type(self)()
        copy.load_state_dict(self.state_dict())
        return copy


def perfect_student(plan: SolverPlan) -> LinearNet:
    """Ends every step of `plan` on the probability flow of its start, in closed form.

    On the flow x = a last + k z with k² = a² STD² + s²; to end on a' last + k' z the estimate of
    x0 must be last + g (x - a last) with g = (k' - k s'/s) / (k (a' - a s'/s)). The end of a run
    is the ideal estimate at t = 1, not clean data.
    """
    net = LinearNet()
    ends = [*plan.t.tolist()[1:], None]
    with torch.no_grad():
        for t, end in zip(plan.t.tolist(), ends, strict=True):
            a, s = level(t)
            a2, s2 = (1.0, 0.0) if end is None else level(end)
            k, k2 = math.hypot(a * STD, s), math.hypot(a2 * STD, s2)
            if end is None:
                a1, s1 = level(1.0)
                k2 = a1 * STD**2 / math.hypot(a1 * STD, s1)
            g = (k2 - k * s2 / s) / (k * (a2 - a * s2 / s))
            ideal = a * STD**2 / k**2
            # eps = (x - a x0) / s with x0 = last + g (x - a last)
            net.delta[round(t), 0] = -a * (g - ideal) / s
    return net
