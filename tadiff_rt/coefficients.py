"""Rows of coefficients of every sampler, each method one function of the visited levels.

A row is what `plan.SolverPlan` holds of a step: factors of x_i, x0_i, x0_{i−1}, x0_{i−2},
x0_{i−3} and of fresh noise. Primes mark the next level; λ = log(alpha/sigma) is half the log-SNR
and h = λ' − λ > 0.

Methods with an inner stage or a corrector need no further state. Such a step combines the x at
its beginning with estimates of x0, and so does the x that the stage or the predictor left: the
former is a linear combination of the latter and of x0 in the history, and is eliminated.

Every method ends on clean data, alpha' = 1 and sigma' = 0, where h is infinite and each of them
has the same limit: the last x0 as it is. What noise is left at the last visited level is removed,
not kept as grain. No step is taken at a lower order near the end unless `ramp_down` asks for it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.schedule import Levels

Rows = NDArray[np.float64]
"""(n, 6): coef_x, coef_x0, coef_x0_prev, coef_x0_prev2, coef_x0_prev3, coef_noise."""

X, X0, PREV, NOISE, WIDTH = 0, 1, 2, 5, 6


@dataclass(frozen=True, eq=False)
class Path:
    """The visited levels as arrays, with λ."""

    alpha: NDArray[np.float64]
    sigma: NDArray[np.float64]
    lam: NDArray[np.float64]
    ramp_down: bool = False
    """Limits the order of step i of n to n − i, as the `lower_order_final` of the published codes
    does in short runs."""

    @classmethod
    def along(cls, levels: Levels, ramp_down: bool = False) -> "Path":
        """Of `levels`."""
        alpha, sigma = np.array(levels.alpha), np.array(levels.sigma)
        return cls(alpha, sigma, np.log(alpha / sigma), ramp_down)

    def empty_rows(self) -> Rows:
        """All zero but the last row, which returns x0."""
        rows = np.zeros((len(self.alpha), WIDTH))
        rows[-1, X0] = 1.0
        return rows

    def order(self, i: int, most: int) -> int:
        """Order of the step from level i: the history grows from nothing at the start."""
        left = len(self.alpha) - i if self.ramp_down else most
        return min(most, i + 1, left)


def ddim(path: Path, eta: float = 0.0) -> Rows:
    """DDIM: Song et al. 2021, Eqs. (12) and (16), in terms of x and x0.

    With ε = (x − alpha·x0) / sigma,  x' = alpha'·x0 + √(sigma'² − v)·ε + √v·z, where the variance
    is v = (eta·sigma'/sigma)²·(1 − ᾱ/ᾱ'). eta 0 draws nothing; eta 1 is DDPM.
    """
    a, s, rows = path.alpha, path.sigma, path.empty_rows()
    for i in range(len(a) - 1):
        variance = (eta * s[i + 1] / s[i]) ** 2 * (1 - (a[i] / a[i + 1]) ** 2)
        direction = math.sqrt(s[i + 1] ** 2 - variance) / s[i]
        rows[i, X] = direction
        rows[i, X0] = a[i + 1] - a[i] * direction
        rows[i, NOISE] = math.sqrt(variance)
    return rows


def ddpm(path: Path) -> Rows:
    """Ancestral sampling from the posterior q(x' | x, x0): Ho et al. 2020, Eqs. (6) and (7).

    Between levels that are not neighbours the same posterior holds with α_t read as the ratio
    ᾱ/ᾱ' and β_t as 1 − ᾱ/ᾱ'. The variance is β̃, the published choice, not β.
    """
    a, s, rows = path.alpha, path.sigma, path.empty_rows()
    for i in range(len(a) - 1):
        ratio = a[i] / a[i + 1]
        beta = 1 - ratio**2
        rows[i, X] = ratio * s[i + 1] ** 2 / s[i] ** 2
        rows[i, X0] = a[i + 1] * beta / s[i] ** 2
        rows[i, NOISE] = s[i + 1] / s[i] * math.sqrt(beta)
    return rows


def dpmpp_multistep(path: Path, most: int) -> Rows:
    """DPM-Solver++ of order 1 or 2M: Lu et al. 2022b, Eq. (9) for k = 1, and Algorithm 2.

    x' = (sigma'/sigma)·x − alpha'·(e^{−h} − 1)·D with D = x0, or of second order
    D = (1 + 1/2r)·x0 − 1/2r·x0_prev, r = h_prev/h.
    """
    a, s, lam, rows = path.alpha, path.sigma, path.lam, path.empty_rows()
    for i in range(len(a) - 1):
        h = lam[i + 1] - lam[i]
        half_over_r = 0.5 * h / (lam[i] - lam[i - 1]) if path.order(i, most) == 2 else 0.0
        gain = -a[i + 1] * math.expm1(-h)
        rows[i, :3] = s[i + 1] / s[i], gain * (1 + half_over_r), -gain * half_over_r
    return rows


def dpmpp_3m(path: Path) -> Rows:
    """Third-order multistep: the exact integral of the polynomial through the last x0.

    The solution is x' = (sigma'/sigma)·x + alpha' ∫_λ^λ' e^{μ−λ'} x0(μ) dμ (Lu et al. 2022b,
    Eq. 8). x0(μ) is replaced by the Lagrange polynomial through the newest three estimates, which
    makes the local error O(h⁴): an exponential Adams-Bashforth method (Hochbruck and Ostermann
    2010, section 2.6). The published 3M integrates its quadratic term with half the weight and
    converges at order 2 only; see `dpmpp_3m_parity`.
    """
    a, s, lam, rows = path.alpha, path.sigma, path.lam, path.empty_rows()
    for i in range(len(a) - 1):
        order = path.order(i, 3)
        nodes = lam[i - np.arange(order)] - lam[i]
        weights = np.linalg.solve(
            np.vander(nodes, increasing=True).T, _moments(lam[i + 1] - lam[i], order)
        )
        rows[i, X] = s[i + 1] / s[i]
        rows[i, X0 : X0 + order] = a[i + 1] * weights
    return rows


def _moments(h: float, count: int) -> NDArray[np.float64]:
    """∫_0^h e^{τ−h} τ^k dτ for k < count.

    By parts I_k = h^k − k·I_{k−1}, which cancels for small h; hence the series
    I_k = e^{−h} h^{k+1} Σ_j h^j / (j!·(j + k + 1)), all of whose terms are positive.
    """
    if h > 1:
        values = [-math.expm1(-h)]
        for k in range(1, count):
            values.append(h**k - k * values[-1])
        return np.array(values)
    series = [
        sum(h**j / (math.factorial(j) * (j + k + 1)) for j in range(20)) for k in range(count)
    ]
    return np.array([math.exp(-h) * h ** (k + 1) * series[k] for k in range(count)])


def dpmpp_3m_parity(path: Path) -> Rows:
    """The multistep method of third order as it is distributed with Lu et al. 2022b.

    With D0 = x0, divided differences D1_0 = (x0 − x0_prev)/r0 and D1_1 = (x0_prev − x0_prev2)/r1,
    D1 = D1_0 + r0/(r0 + r1)·(D1_0 − D1_1), D2 = (D1_0 − D1_1)/(r0 + r1):
    x' = (sigma'/sigma)·x − alpha'·(φ1·D0 − φ2·D1 + φ3·D2). D2 is h²/2 times the second derivative
    where φ3 asks for h² times it.
    """
    a, s, lam, rows = path.alpha, path.sigma, path.lam, path.empty_rows()
    second = dpmpp_multistep(path, 2)
    for i in range(len(a) - 1):
        if path.order(i, 3) < 3:
            rows[i] = second[i]
            continue
        h = lam[i + 1] - lam[i]
        r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
        near, far = np.array([1, -1, 0]) / r0, np.array([0, 1, -1]) / r1
        d1 = near + r0 / (r0 + r1) * (near - far)
        d2 = (near - far) / (r0 + r1)
        phi1 = math.expm1(-h)
        phi2 = phi1 / h + 1
        phi3 = phi2 / h - 0.5
        rows[i, X] = s[i + 1] / s[i]
        rows[i, X0 : X0 + 3] = -a[i + 1] * (phi1 * np.array([1, 0, 0]) - phi2 * d1 + phi3 * d2)
    return rows


def dpmpp_2s(path: Path) -> Rows:
    """DPM-Solver++(2S): Lu et al. 2022b, Algorithm 1. Levels are begin, middle, begin, middle, …

    u = (sigma_m/sigma)·x − alpha_m·(e^{−rh} − 1)·x0,
    x' = (sigma'/sigma)·x − alpha'·(e^{−h} − 1)·((1 − 1/2r)·x0 + 1/2r·x0_u).
    Where an even number of levels leaves no middle for the last step, that step is of first order.
    """
    a, s, lam = path.alpha, path.sigma, path.lam
    rows = dpmpp_multistep(path, 1)
    for i in range(0, len(a) - 2, 2):
        h = lam[i + 2] - lam[i]
        half_over_r = 0.5 * h / (lam[i + 1] - lam[i])
        gain = -a[i + 2] * math.expm1(-h)
        # x = (u − rows[i, X0]·x0) / rows[i, X] is eliminated from the second line.
        back = s[i + 2] / s[i] / rows[i, X]
        rows[i + 1, X] = back
        rows[i + 1, X0] = gain * half_over_r
        rows[i + 1, PREV] = gain * (1 - half_over_r) - back * rows[i, X0]
    return rows


def sde_dpmpp_2m(path: Path) -> Rows:
    """SDE-DPM-Solver++(2M): Lu et al. 2022b, the multistep solver of the diffusion SDE.

    x' = (sigma'/sigma)·e^{−h}·x + alpha'·(1 − e^{−2h})·D + sigma'·√(1 − e^{−2h})·z, D as in 2M.
    """
    a, s, lam, rows = path.alpha, path.sigma, path.lam, path.empty_rows()
    for i in range(len(a) - 1):
        h = lam[i + 1] - lam[i]
        half_over_r = 0.5 * h / (lam[i] - lam[i - 1]) if path.order(i, 2) == 2 else 0.0
        fresh = -math.expm1(-2 * h)
        rows[i, X] = s[i + 1] / s[i] * math.exp(-h)
        rows[i, X0 : X0 + 2] = a[i + 1] * fresh * np.array([1 + half_over_r, -half_over_r])
        rows[i, NOISE] = s[i + 1] * math.sqrt(fresh)
    return rows


def unipc(path: Path, most: int) -> Rows:
    """UniPC of order `most` for data prediction, B(h) = e^h − 1: Zhao et al. 2023, section 3.

    Predictor UniP from the corrected x_i, corrector UniC once x0_{i+1} is known. The row of level
    i first corrects, x_i + Σ (corrector − predictor)·x0, then predicts level i + 1.
    """
    a, s, lam, rows = path.alpha, path.sigma, path.lam, path.empty_rows()
    correction = np.zeros(WIDTH - 1)
    for i in range(len(a) - 1):
        order = path.order(i, most)
        predictor, corrector = _unipc_weights(lam, i, order)
        forward = s[i + 1] / s[i]
        rows[i, X] = forward
        rows[i, X0 : X0 + order] = a[i + 1] * predictor
        rows[i, X0:NOISE] += forward * correction[: NOISE - X0]
        # Of x0_{i+1}, x0_i, x0_{i−1}, …, as row i + 1 will see them.
        correction = np.zeros(WIDTH - 1)
        correction[: order + 1] = a[i + 1] * corrector
        correction[1 : order + 1] -= a[i + 1] * predictor
    return rows


def _unipc_weights(
    lam: NDArray[np.float64], i: int, order: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights of x0 over alpha': UniP of (x0_i, x0_{i−1}, …), UniC of (x0_{i+1}, x0_i, …).

    Both are (1 − e^{−h})·x0_i plus B(h)·Σ_k a_k (x0_k − x0_i)/r_k with r_k = (λ_k − λ_i)/h, where
    Σ_k a_k r_k^{n−1} = n!·φ_{n+1}/B for n = 1, 2, …: Zhao et al. 2023, section 3. For one
    unknown a_1 = 1/2 solves it to the order needed, as there.
    """
    h = -(lam[i + 1] - lam[i])  # data prediction integrates backwards
    earlier = (lam[i - np.arange(1, order)] - lam[i]) / -h
    base = math.expm1(h)
    phi, right = base / h - 1, []
    for n in range(1, order + 1):
        right.append(phi * math.factorial(n) / base)
        phi = phi / h - 1 / math.factorial(n + 1)

    def solved(r: NDArray[np.float64]) -> NDArray[np.float64]:
        if len(r) == 1:
            return np.array([0.5])
        powers = np.vander(r, increasing=True).T
        return np.linalg.solve(powers, right[: len(r)])

    predictor, corrector = np.zeros(order), np.zeros(order + 1)
    if order > 1:
        gains = solved(earlier) / earlier
        predictor[1:], predictor[0] = gains, -gains.sum()
    nodes = np.append(earlier, 1.0)
    gains = solved(nodes) / nodes
    corrector[2:], corrector[0], corrector[1] = gains[:-1], gains[-1], -gains.sum()
    predictor, corrector = -base * predictor, -base * corrector
    predictor[0] -= base
    corrector[1] -= base
    return predictor, corrector
