"""One simulated patient: anatomy, tumour, follow-up, images, futures under other treatments."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.case import TREATMENTS
from tadiff_train.phantom.anatomy import Anatomy, deform, load_anatomy
from tadiff_train.phantom.growth import Growth, TumourParameters, diffusivity, grow_interval
from tadiff_train.phantom.plan import MIN_SESSIONS, Plan, course_start, draw_plan
from tadiff_train.phantom.render import OEDEMA_MIN, Rendered, Renderer

Float32Array = NDArray[np.float32]

MAX_VISIBLE_ML = 150.0
"""Follow-up ends before the tumour is larger than this."""
MIN_VISIBLE_ML = 2.0
"""A tumour that becomes smaller than this is drawn again: there is nothing to forecast."""
FIRST_VISIBLE_ML = (5.0, 40.0)
"""Range of visible volume at the first session."""
MAX_ATTEMPTS = 50

PURPOSES = {"patient": 0, "anatomy": 1, "scanner": 2}


def rng_for(seed: int, index: int, purpose: str, *more: int) -> np.random.Generator:
    """A stream of its own for every patient and purpose, whatever else is simulated."""
    return np.random.default_rng(np.random.SeedSequence([seed, index, PURPOSES[purpose], *more]))


@dataclass(frozen=True)
class SimulatedPatient:
    """One patient: the truth that drives it and what is seen of it."""

    index: int
    """Position in the cohort, from 0; subject sub-001 has index 0."""
    seed: int
    size: int
    plan: Plan
    """Days and treatments of the sessions."""
    parameters: TumourParameters
    affine: NDArray[np.float64]
    """Voxel index -> RAS+ millimetres, of every image."""
    sessions: tuple[Rendered, ...]
    counterfactuals: dict[str, Rendered]
    """The last session under each other treatment of the last interval; empty if not asked for."""

    @property
    def name(self) -> str:
        return f"sub-{self.index + 1:03d}"

    @property
    def days(self) -> tuple[int, ...]:
        return self.plan.days

    @property
    def treatments(self) -> tuple[str, ...]:
        return self.plan.treatments

    @property
    def volumes_ml(self) -> tuple[float, ...]:
        """Visible tumour of every session."""
        return tuple(self.volume_ml(session) for session in self.sessions)

    def volume_ml(self, session: Rendered) -> float:
        """Visible tumour (any label) of one rendering."""
        voxel_ml = abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000
        return float(np.count_nonzero(session.mask)) * voxel_ml


def draw_parameters(rng: np.random.Generator) -> TumourParameters:
    """A random tumour: front speed sqrt(4 D rho) and front width sqrt(D / rho) vary apart."""
    rho = float(np.clip(0.023 * np.exp(0.30 * rng.standard_normal()), 0.012, 0.045))
    width_mm = float(np.clip(1.25 * np.exp(0.20 * rng.standard_normal()), 0.9, 2.0))
    d_white = float(np.clip(rho * width_mm**2, 0.02, 0.2))
    alpha = float(rng.uniform(0.008, 0.024))
    return TumourParameters(
        rho_per_day=rho,
        d_white_mm2_per_day=d_white,
        d_grey_mm2_per_day=d_white / 10,
        alpha_per_gy=alpha,
        beta_per_gy2=alpha / 10,
        tmz_factor=float(rng.uniform(0.1, 0.6)),
    )


def _white_matter_point(anatomy: Anatomy, rng: np.random.Generator) -> NDArray[np.float64]:
    """A point in cerebral white matter, off the midline, in RAS millimetres.

    Drawn in millimetres until it falls into white matter, so that grids of 1 mm and 2 mm agree.
    """
    # Half axes of an ellipsoid off the cortex, the brain stem and the cerebellum.
    centre, half_axes = np.array([0.0, -18.0, 22.0]), np.array([50.0, 66.0, 36.0])
    while True:
        unit = rng.uniform(-1, 1, 3)
        point = centre + unit * half_axes
        voxel = np.rint((point - anatomy.affine[:3, 3]) / anatomy.spacing_mm).astype(int)
        if unit @ unit < 1 and abs(point[0]) > 12 and anatomy.wm[tuple(voxel)] > 0.8:
            return point


def _first_cells(anatomy: Anatomy, rng: np.random.Generator) -> Float32Array:
    """One to three small dense balls close together in white matter."""
    axes = [
        anatomy.spacing_mm * np.arange(n, dtype=np.float32) + np.float32(origin)
        for n, origin in zip(anatomy.t1.shape, anatomy.affine[:3, 3], strict=True)
    ]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    middle = _white_matter_point(anatomy, rng)
    u = np.zeros(anatomy.t1.shape, np.float32)
    for ball in range(int(rng.integers(1, 4))):
        a, b, c = middle + (rng.normal(0, 5, 3) if ball else 0)
        radius = rng.uniform(3.5, 5.5)
        away = np.sqrt((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2)
        near = away < radius + 8
        u[near] = np.maximum(u[near], 1 / (1 + np.exp(2 * (away[near] - radius))))
    return np.where(anatomy.tissue, u, 0).astype(np.float32)


def _visible_ml(u: Float32Array, spacing_mm: float) -> float:
    return float(np.count_nonzero(u > OEDEMA_MIN)) * spacing_mm**3 / 1000


@dataclass(frozen=True)
class _Course:
    """A follow-up in densities, before rendering."""

    parameters: TumourParameters
    plan: Plan
    growth: Growth
    densities: list[Float32Array]


def _simulate_course(anatomy: Anatomy, rng: np.random.Generator) -> _Course | None:
    """Grows a tumour from its first cells through a plan; None if it cannot be followed.

    The plan is cut before the session at which the tumour passes MAX_VISIBLE_ML.
    """
    parameters, plan = draw_parameters(rng), draw_plan(rng)
    growth = Growth(diffusivity(anatomy, parameters), anatomy.spacing_mm)
    low, high = np.log(FIRST_VISIBLE_ML)
    first_ml = float(np.exp(rng.uniform(low, high)))
    u = _first_cells(anatomy, rng)
    for _ in range(200):
        if _visible_ml(u, anatomy.spacing_mm) >= first_ml:
            break
        u = growth.advance(u, 6, parameters.rho_per_day)
    else:
        return None
    densities = [u]
    for i in range(1, len(plan.days)):
        u = grow_interval(
            growth,
            u,
            parameters,
            start=plan.days[i - 1],
            end=plan.days[i],
            treatment=plan.treatments[i],
            course_start=plan.course_start(i),
        )
        visible_ml = _visible_ml(u, anatomy.spacing_mm)
        if visible_ml < MIN_VISIBLE_ML:
            return None
        if visible_ml > MAX_VISIBLE_ML:
            break
        densities.append(u)
    if len(densities) < MIN_SESSIONS:
        return None
    plan = Plan(plan.kind, plan.days[: len(densities)], plan.treatments[: len(densities)])
    return _Course(parameters, plan, growth, densities)


def simulate_patient(
    seed: int, index: int, size: int, *, counterfactuals: bool = False
) -> SimulatedPatient:
    """Patient `index` of the cohort `seed`; the same whatever other patients are simulated.

    Args:
        seed: of the cohort.
        index: from 0.
        size: in-plane voxels, 96 (2 mm) or 192 (1 mm).
        counterfactuals: also the last session under every other treatment of the last interval,
            from the same density before it and with the same scanner noise.
    """
    anatomy = deform(load_anatomy(size), rng_for(seed, index, "anatomy"))
    for attempt in range(MAX_ATTEMPTS):
        course = _simulate_course(anatomy, rng_for(seed, index, "patient", attempt))
        if course is not None:
            break
    else:
        raise AssertionError(f"no tumour of seed {seed}, index {index} can be followed")
    renderer = Renderer(anatomy)
    last = len(course.densities) - 1

    def seen(u: Float32Array, session: int) -> Rendered:
        return renderer.render(u, rng_for(seed, index, "scanner", session))

    others = {}
    for treatment in TREATMENTS if counterfactuals else ():
        if treatment != course.plan.treatments[last]:
            others[treatment] = seen(_other_future(course, treatment), last)
    return SimulatedPatient(
        index=index,
        seed=seed,
        size=size,
        plan=course.plan,
        parameters=course.parameters,
        affine=anatomy.affine,
        sessions=tuple(seen(u, i) for i, u in enumerate(course.densities)),
        counterfactuals=others,
    )


def _other_future(course: _Course, treatment: str) -> Float32Array:
    """Density at the last session had `treatment` been given in the last interval."""
    plan = course.plan
    last = len(plan.days) - 1
    treatments = (*plan.treatments[:last], treatment)
    return grow_interval(
        course.growth,
        course.densities[last - 1],
        course.parameters,
        start=plan.days[last - 1],
        end=plan.days[last],
        treatment=treatment,
        course_start=course_start(plan.days, treatments, last),
    )
