"""The paper's experiments as data: a row names its runs, its figure and the paper's claims."""

from launch.experiments.grid import (
    TLDR,
    TLDR_1B,
    ULTRAFEEDBACK,
    ULTRAFEEDBACK_1B,
    Claim,
    Grid,
    Line,
    Panel,
    Part,
)

# Metrics and their names for people.
REFERENCES = "eval/win_rate_reference", "win rate against references"
SFT = "eval/win_rate_sft", "win rate against SFT"
ONLINE = "duel/win_rate_reference_so_far", "win rate of the duels against references"
BEST_OF = "eval/best_of_win_rate_reference", "win rate against references"
REGRET = "duel/regret_so_far"

BEST_OF_8 = {"eval.best_of": 8}
DRAWN = {"oracle.labels": "bernoulli"}
GPT = {"oracle.kind": "judge", "oracle.model": "gpt-4o-mini-2024-07-18"}
FLIPPED = {"oracle.flip_probability": 0.1}
CHAT_DPO = {"train.dap": "dpo", "train.beta": 0.1}  # Table 4 has DPO, and the config of chat SimPO

DPO = Part("dpo", ("offline", "passive", "apl", "xpo", "sea"))
IPO = Part("ipo", ("offline", "passive", "sea"), "ipo")
SLIC = Part("slic", ("offline", "passive", "sea"), "slic")
SIMPO = Part("simpo", ("offline", "passive", "sea"), "simpo")
PASSIVE_DPO, SEA_DPO = Part("dpo", ("passive",)), Part("dpo", ("sea",))
VARIANTS = Part("variants", ("sea_oracle_only", "sea", "passive_ensemble", "frozen"), fields=BEST_OF_8)
STRATEGIES = Part("strategies", ("ee_ts", "uncertainty"))
JUDGE = Part("noisy_judge", ("passive", "apl", "xpo", "sea"), "dpo", DRAWN, GPT)
CLEAN = Part("dpo", ("passive", "sea"), paper_fields=CHAT_DPO)
FLIPS = Part("flips_10", ("passive", "sea"), "dpo", FLIPPED, CHAT_DPO)

_NAMES = {"offline": "offline", "passive": "online", "apl": "APL", "xpo": "XPO", "sea": "SEA"}
_LOSSES = {"dpo": "DPO", "ipo": "IPO", "slic": "SLiC", "simpo": "SimPO"}


def _lines(part: Part, suffix: str = "") -> tuple[Line, ...]:
    """Returns a line for each method of a part."""
    return tuple(Line(part.name, m, f"{_NAMES[m]} {_LOSSES[part.dap]}{suffix}") for m in part.methods)


def _curves(metric: tuple[str, str], title: str, lines: tuple[Line, ...], x: str = "queries") -> Panel:
    return Panel("curves", title, *metric, lines, x)


def _bars(title: str, metric: tuple[str, str], lines: tuple[Line, ...]) -> Panel:
    return Panel("final", title, *metric, lines)


def _faster(said: str, ahead: Line, behind: Line, metric: tuple[str, str] = REFERENCES) -> Claim:
    """Returns the claim that a line has the higher mean over its run, from fewer labels."""
    return Claim(said, metric[0], ahead[:2], behind[:2], "run")


def _higher(said: str, ahead: Line, behind: Line, metric: tuple[str, str] = REFERENCES) -> Claim:
    """Returns the claim that a line ends higher."""
    return Claim(said, metric[0], ahead[:2], behind[:2])


def _line(part: Part, method: str) -> Line:
    return next(line for line in _lines(part) if line.method == method)


def _sea_is_faster(part: Part, other: str) -> Claim:
    mine, theirs = _line(part, "sea"), _line(part, other)
    return _faster(f"{mine.label} is more sample-efficient than {theirs.label}", mine, theirs)


def _sea_ends_higher(part: Part, other: str) -> Claim:
    mine, theirs = _line(part, "sea"), _line(part, other)
    return _higher(f"{mine.label} ends higher than {theirs.label}", mine, theirs)


def _online_is_faster(part: Part) -> Claim:
    mine, theirs = _line(part, "passive"), _line(part, "offline")
    return _faster(f"{mine.label} is more sample-efficient than {theirs.label}", mine, theirs)


_LOSS_PARTS = DPO, IPO, SLIC

# Table 1: variants 1 to 3 answer by the policy, 4 to 7 by the best of N samples by the ensemble.
_1, _2, _3, _4, _5, _6, _7 = (
    Line(PASSIVE_DPO.name if method == "passive" else VARIANTS.name, method, label)
    for method, label in (
        ("passive", "1: passive"), ("sea_oracle_only", "2: active"), ("sea", "3: SEA"),
        ("passive_ensemble", "4: passive, best of N"), ("sea_oracle_only", "5: active, best of N"),
        ("sea", "6: SEA, best of N"), ("frozen", "7: frozen policy, best of N"),
    )
)  # fmt: skip
_VARIANT_CLAIMS = (
    _faster("variant 2 learns faster than 1", _2, _1),
    _faster("variant 3 learns faster than 2", _3, _2),
    _faster("variant 5 learns faster than 4", _5, _4, BEST_OF),
    _faster("variant 6 learns faster than 5", _6, _5, BEST_OF),
    _higher("variant 7, whose policy is fixed, ends below 6", _6, _7, BEST_OF),
)

_EE = Line(STRATEGIES.name, "ee_ts", "E&E-TS")
_BAI = Line(SEA_DPO.name, "sea", "BAI-TS")
_UNCERTAINTY = Line(STRATEGIES.name, "uncertainty", "Uncertainty")
_ALL_STRATEGIES = _EE, _BAI, _UNCERTAINTY

_NOISE = (*_lines(CLEAN), *_lines(FLIPS, ", 10 % flipped"))
_NOISY_SEA, _NOISY_ONLINE = (Line(FLIPS.name, m, _NAMES[m]) for m in ("sea", "passive"))

GRIDS = {
    "fig1": Grid(
        "final win rates, and labels to levels, with DPO", "Fig. 1",
        (DPO,),
        (
            _bars("at the end", REFERENCES, _lines(DPO)),
            Panel("levels", "fewer is better", *REFERENCES, _lines(DPO), levels=(0.7, 0.8, 0.9)),
        ),
        (
            *(_sea_ends_higher(DPO, other) for other in ("offline", "passive", "apl", "xpo")),
            *(_sea_is_faster(DPO, other) for other in ("offline", "passive", "apl", "xpo")),
        ),
        TLDR,
    ),
    "fig3": Grid(
        "methods with each preference loss", "Fig. 3",
        _LOSS_PARTS,
        (
            *(_curves(SFT, _LOSSES[part.dap], _lines(part)) for part in _LOSS_PARTS),
            *(_curves(REFERENCES, _LOSSES[part.dap], _lines(part)) for part in _LOSS_PARTS),
        ),
        (
            *map(_online_is_faster, _LOSS_PARTS),
            *(_sea_is_faster(part, "passive") for part in _LOSS_PARTS),
            *(_sea_ends_higher(part, "passive") for part in _LOSS_PARTS),
            _sea_is_faster(DPO, "apl"),
            _sea_is_faster(DPO, "xpo"),
            _faster("APL is faster than online DPO at 1B", _line(DPO, "apl"), _line(DPO, "passive")),
            _higher("XPO ends higher than online DPO at 1B", _line(DPO, "xpo"), _line(DPO, "passive")),
            _higher("online SLiC ends lower than online DPO", _line(DPO, "passive"), _line(SLIC, "passive")),
            _higher("SEA IPO ends lower than SEA DPO", _line(DPO, "sea"), _line(IPO, "sea")),
            _higher("SEA SLiC ends lower than SEA DPO", _line(DPO, "sea"), _line(SLIC, "sea")),
        ),
        TLDR,
    ),
    "fig4": Grid(
        "the variants of Table 1, by the policy and by best-of-N", "Fig. 4",
        (PASSIVE_DPO, VARIANTS),
        (
            _curves(REFERENCES, "by the policy", (_1, _2, _3)),
            _curves(BEST_OF, "by the best of 8", (_4, _5, _6, _7)),
        ),
        _VARIANT_CLAIMS,
        TLDR_1B,
    ),
    "table1": Grid(
        "what exploration, learning and best-of-N bring", "Table 1",
        (PASSIVE_DPO, VARIANTS),
        (
            _bars("by the policy", REFERENCES, (_1, _2, _3)),
            _bars("by the best of 8", BEST_OF, (_4, _5, _6, _7)),
        ),
        _VARIANT_CLAIMS,
        TLDR_1B,
    ),
    "fig6": Grid(
        "exploration strategies, measured online (E&E) and offline (BAI), and a noisy judge", "Fig. 6",
        (SEA_DPO, STRATEGIES, JUDGE),
        (
            _curves(ONLINE, "E&E: online", _ALL_STRATEGIES),
            _curves(REFERENCES, "BAI: offline", _ALL_STRATEGIES),
            _curves(REFERENCES, "labels drawn by Bradley-Terry", _lines(JUDGE)),
        ),
        (
            _higher("E&E-TS has the best online win rate: above BAI-TS", _EE, _BAI, ONLINE),
            _higher("Uncertainty has the worst online win rate: below BAI-TS", _BAI, _UNCERTAINTY, ONLINE),
            Claim("Uncertainty has a higher regret than E&E-TS", REGRET, _UNCERTAINTY[:2], _EE[:2]),
            _faster("BAI-TS learns faster than E&E-TS", _BAI, _EE),
            _faster("Uncertainty learns faster than E&E-TS", _UNCERTAINTY, _EE),
            _faster("BAI-TS learns faster than Uncertainty", _BAI, _UNCERTAINTY),
            *(_sea_ends_higher(JUDGE, other) for other in ("passive", "apl", "xpo")),
        ),
        TLDR_1B,
    ),
    "fig7": Grid(
        "SimPO by labels and by gradient steps", "Fig. 7",
        (SIMPO,),
        (
            _curves(REFERENCES, "by labels", _lines(SIMPO)),
            _curves(REFERENCES, "by labels, and duels of equal responses", _lines(SIMPO), "duels"),
            _curves(REFERENCES, "by gradient steps", _lines(SIMPO), "step"),
        ),
        (
            _sea_is_faster(SIMPO, "passive"),
            _sea_is_faster(SIMPO, "offline"),
            _faster(
                "offline SimPO is no slower than online", _line(SIMPO, "offline"), _line(SIMPO, "passive")
            ),
        ),
        ULTRAFEEDBACK,
    ),
    "table4": Grid(
        "10 % of the labels flipped", "Table 4",
        (CLEAN, FLIPS),
        (
            _curves(REFERENCES, "with and without flips", _NOISE),
            _curves(SFT, "with and without flips", _NOISE),
        ),
        (
            _sea_is_faster(CLEAN, "passive"),
            _faster("with flips SEA is more sample-efficient than online DPO", _NOISY_SEA, _NOISY_ONLINE),
            _higher("with flips SEA ends higher than online DPO", _NOISY_SEA, _NOISY_ONLINE),
            _faster("flips slow SEA", _line(CLEAN, "sea"), _NOISY_SEA),
            _faster("flips slow online DPO", _line(CLEAN, "passive"), _NOISY_ONLINE),
        ),
        ULTRAFEEDBACK_1B,
    ),
    "fig9": Grid(
        "time by stage", "Fig. 9",
        (DPO,),
        (Panel("stages", "after the first tenth of the steps", "", "milliseconds a label", _lines(DPO)),),
        (),
        TLDR,
    ),
}  # fmt: skip
