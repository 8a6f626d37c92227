"""The laws by name: Hoffmann's, Ouro's, the recurrence exponent, Parcae's, each with what is left without loops."""

from analysis.scaling.laws import Law
from analysis.scaling.terms import constant, decay, effective, power, unrolled

_OURO, _PARCAE = "Ouro (2510.25741), appendix D, RQ2", "Parcae (2604.12946)"
_E, _N, _D = constant(), power("A", "alpha", "parameters"), power("B", "beta", "tokens")
_T = power("C", "gamma", "loops", high=5.0)
_OFFSETS = (power("A", "alpha", "parameters", "t1"), power("B", "beta", "tokens", "t2"))
_T_OFFSET = power("C", "gamma", "loops", "t3", high=5.0)

MEAN = Law("mean", "E", "no term at all", (_E,))
DATA = Law("data", "E + B/D^β", "Hoffmann et al. (2203.15556), eq. 2, at one size", (_E, _D))
CHINCHILLA = Law("chinchilla", "E + A/N^α + B/D^β", "Hoffmann et al. (2203.15556), eq. 2", (_E, _N, _D))
CHINCHILLA_OFFSETS = Law(
    "chinchilla_offsets", "E + A/(N+t1)^α + B/(D+t2)^β", f"{_OURO}, without its loop term", (_E, *_OFFSETS)
)

# In the total law T is the loops of training (T_m) and L the loss minimised, or the last loop's: fit them apart. In
# the step-wise law T is the loop index that the loss was read at, in one model: a fit per T_m. The offsets t1..t3 can
# hardly be told from the rest on few sizes and depths (no coefficients are published): fit both forms, compare AIC.
OURO_TOTAL = Law("ouro_total", "E + A/N^α + B/D^β + C/T^γ", f"{_OURO}, t = 0", (_E, _N, _D, _T), CHINCHILLA)
OURO_TOTAL_OFFSETS = Law(
    "ouro_total_offsets",
    "E + A/(N+t1)^α + B/(D+t2)^β + C/(T+t3)^γ",
    _OURO,
    (_E, *_OFFSETS, _T_OFFSET),
    CHINCHILLA_OFFSETS,
)
OURO_STEPWISE = Law(
    "ouro_stepwise", OURO_TOTAL.formula, f"{_OURO}, t = 0", OURO_TOTAL.terms, CHINCHILLA, ("trained_loops",)
)
OURO_STEPWISE_OFFSETS = Law(
    "ouro_stepwise_offsets",
    OURO_TOTAL_OFFSETS.formula,
    _OURO,
    OURO_TOTAL_OFFSETS.terms,
    CHINCHILLA_OFFSETS,
    ("trained_loops",),
)

RECURRENCE = Law(
    "recurrence",
    "E + A/(N_once + r^φ N_rec)^α + B/D^β",
    "Schwethelm et al. (2604.21106); φ holds for one optimiser, injection and depth",
    (_E, effective(), _D),
    CHINCHILLA,
)

# Per model size. The coefficients published for it (A 522,733 at α 0.771, 140M parameters) make sense only if μ counts
# through the unrolled parameters, a reading of ours: both forms are here.
PARCAE = Law(
    "parcae",
    "E + A/μ^α + B/D^β",
    f"{_PARCAE}, training law L(μ, D)",
    (_E, power("A", "alpha", "trained_loops"), _D),
    DATA,
    ("parameters",),
)
PARCAE_UNROLLED = Law(
    "parcae_unrolled",
    "E + A/(N_once + μ N_rec)^α + B/D^β",
    f"{_PARCAE}, L(μ, D) as its printed coefficients need it",
    (_E, unrolled(), _D),
    DATA,
    ("parameters",),
)
PARCAE_TEST_TIME = Law(
    "parcae_test_time",
    "E + Z·exp(−z T)",
    f"{_PARCAE}, test-time law of one model",
    (_E, decay("Z", "z")),
    MEAN,
    ("parameters", "trained_loops", "tokens"),
)
SHIFTED_POWER = Law(
    "shifted_power",
    "E + Z/(T+s)^z",
    f"{_PARCAE}, the alternative to its test-time law",
    (_E, power("Z", "z", "loops", "s", high=5.0)),
    MEAN,
    ("parameters", "trained_loops", "tokens"),
)
PARCAE_UNIFIED = Law(
    "parcae_unified",
    "E + A/μ^α + B/D^β + Z·exp(−z T/μ)",
    f"{_PARCAE}, unified decay with T/μ; the sum is our reading",
    (*PARCAE.terms, decay("Z", "z", relative=True)),
    PARCAE,
    ("parameters",),
)

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        *(MEAN, DATA, CHINCHILLA, CHINCHILLA_OFFSETS, RECURRENCE),
        *(OURO_TOTAL, OURO_TOTAL_OFFSETS, OURO_STEPWISE, OURO_STEPWISE_OFFSETS),
        *(PARCAE, PARCAE_UNROLLED, PARCAE_TEST_TIME, SHIFTED_POWER, PARCAE_UNIFIED),
    )
}
