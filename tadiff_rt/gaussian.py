"""Arithmetic of Gaussian noise: the normal quantile, and the weights of a coherent series."""

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

CUT = 2.0**-12
"""`ar1_weights` leaves out terms whose weight relative to the first is below this."""

_Polynomials: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""Numerator and denominator, constant term first."""

# Wichura 1988, PPND16: a and b, c and d, e and f of the paper.
_CENTRE: _Polynomials = (
    (
        3.3871328727963666080e0,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    ),
    (
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    ),
)
_TAIL: _Polynomials = (
    (
        1.42343711074968357734e0,
        4.63033784615654529590e0,
        5.76949722146069140550e0,
        3.64784832476320460504e0,
        1.27045825245236838258e0,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    ),
    (
        1.0,
        2.05319162663775882187e0,
        1.67638483018380384940e0,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ),
)
_FAR_TAIL: _Polynomials = (
    (
        6.65790464350110377720e0,
        5.46378491116411436990e0,
        1.78482653991729133580e0,
        2.96560571828504891230e-1,
        2.65321895265761230930e-2,
        1.24266094738807843860e-3,
        2.71155556874348757815e-5,
        2.01033439929228813265e-7,
    ),
    (
        1.0,
        5.99832206555887937690e-1,
        1.36929880922735805310e-1,
        1.48753612908506148525e-2,
        7.86869131145613259100e-4,
        1.84631831751005468180e-5,
        1.42151175831644588870e-7,
        2.04426310338993978564e-15,
    ),
)


def normal_quantile(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """z such that a standard normal variable is below z with probability u: Wichura 1988, AS 241.

    The 16-digit form (PPND16).

    Args:
        u: strictly inside (0, 1).

    Raises:
        ValueError: a value of `u` is outside (0, 1) or NaN.
    """
    if not ((u > 0) & (u < 1)).all():
        raise ValueError("the normal quantile exists strictly inside 0 to 1 only")
    q = u - 0.5
    centre = np.abs(q) <= 0.425
    z = np.empty_like(q)
    z[centre] = q[centre] * _ratio(0.180625 - q[centre] ** 2, _CENTRE)
    # 1 − u is exact for u >= 1/2.
    depth = np.sqrt(-np.log(np.where(q < 0, u, 1 - u)))
    for region, start, polynomials in (
        (~centre & (depth <= 5), 1.6, _TAIL),
        (~centre & (depth > 5), 5.0, _FAR_TAIL),
    ):
        z[region] = np.copysign(_ratio(depth[region] - start, polynomials), q[region])
    return z


def _ratio(r: NDArray[np.float64], polynomials: _Polynomials) -> NDArray[np.float64]:
    top, bottom = (np.zeros_like(r), np.zeros_like(r))
    for a, b in zip(*map(reversed, polynomials), strict=True):
        top, bottom = top * r + a, bottom * r + b
    return top / bottom


def ar1_weights(coherence: float) -> NDArray[np.float64]:
    """w with sum(w²) = 1: z_k = Σ_j w_j · n_{k−j} has correlation close to coherence^|d| at lag d.

    The moving-average form of the stationary autoregression z_k = ρ z_{k−1} + √(1 − ρ²) n_k (Box
    and Jenkins 1970, section 3.2), w_j proportional to ρ^j. Terms with ρ^j < `CUT` are left out
    and the J others scaled to unit square sum, so z is standard normal for standard normal n. At
    lag d < J the correlation becomes

        ρ^d · (1 − ρ^(2(J−d))) / (1 − ρ^(2J)),

    at J and beyond it is 0: nowhere above ρ^d, and below it by less than `CUT`.

    Args:
        coherence: ρ, in [0, 1). Terms: 1 for 0, 13 for 0.5, 79 for 0.9, 828 for 0.99.
    """
    # Products and a compensated sum, not pow: the same bits on every machine.
    rho, powers = float(coherence), [1.0]
    while powers[-1] * rho >= CUT:
        powers.append(powers[-1] * rho)
    return np.array(powers) / math.sqrt(math.fsum(p * p for p in powers))
