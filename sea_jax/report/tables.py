"""Formats the tables of a report as text."""

from itertools import pairwise

import numpy as np

from sea_jax.report.runs import BASELINE, MethodRuns, Rows, Runs
from sea_jax.report.statistics import curve, has_metric, mean_curve, mean_over_labels, queries_to

# Columns of the last evaluation, shown where some run has the metric.
FINAL = {
    "win rate vs SFT": "eval/win_rate_sft",
    "vs reference": "eval/win_rate_reference",
    "online": "duel/win_rate_reference_so_far",
    "best of N vs SFT": "eval/best_of_win_rate_sft",
    "mean r*": "eval/reward",
}
STAGES = ("generate", "features", "select", "oracle", "learn", "improve", "evaluate")
ACCURACY_EDGES = (0, 128, 256, 512, 1024, 2048, 4096)  # queries


def summary_table(runs: Runs, levels: tuple[float, ...]) -> str:
    """Formats each method's end: queries, metrics ± s.e. over seeds, queries to levels, seconds by stage.

    "online" is the mean win rate against the references of all responses that the oracle was shown. Seconds
    are summed over seeds.

    Args:
        runs: finished runs.
        levels: win rates against the SFT policy.
    """
    final = {name: metric for name, metric in FINAL.items() if has_metric(runs, metric)}
    header = ["method", "seeds", "queries", *final]
    header += [f"queries to {level:g}" for level in levels] + [f"{stage} s" for stage in STAGES]
    lines = [header]
    for method in runs.values():
        rows = method.rows
        line = [method.label, str(len(rows)), str(max(run[-1]["queries"] for run in rows))]
        line += [_last(rows, metric) for metric in final.values()]
        line += [_level(rows, "eval/win_rate_sft", level) for level in levels]
        lines.append(line + [f"{_seconds(rows, stage):.1f}" for stage in STAGES])
    return aligned(lines)


def levels_table(runs: Runs, metric: str, levels: tuple[float, ...]) -> str:
    """Formats each method's queries to levels of one metric: mean ± s.e. over seeds.

    In brackets, passive's mean queries divided by the method's, over the seeds that both have.
    """
    lines = [[f"queries to {metric}", *(f"{level:g}" for level in levels)]]
    base = runs.get(BASELINE)
    for name, method in runs.items():
        line = [method.label]
        for level in levels:
            cell = _level(method.rows, metric, level)
            if base is not None and name != BASELINE:
                cell += _multiple(method, base, metric, level)
            line.append(cell)
        lines.append(line)
    return aligned(lines)


def match_table(runs: Runs, metric: str, queries: tuple[int, ...], base: str = BASELINE) -> str:
    """Formats how many times fewer queries a method needs for the value that `base` has after n.

    Hidden rewards differ in the values that can be reached, so fixed levels mix easy seeds with hard ones.
    Here each run is compared with the base's run of the same seed: geometric mean over the seeds that both
    have, and (lowest - highest). A seed that never reaches the value is left out and counted.

    Args:
        runs: finished runs.
        metric: its name.
        queries: values of n; those past the end of some run of the base are left out.
        base: a name in `runs`.

    Returns:
        The table; empty where the base has no run that is long enough.
    """
    known = {seed: curve(rows, metric) for seed, rows in runs[base].seeds.items()} if base in runs else {}
    last = min((x[-1] for x, _ in known.values() if len(x)), default=0)
    queries = tuple(n for n in queries if n <= last)
    if not queries:
        return ""
    shown = base if base == BASELINE else runs[base].label
    lines = [[f"times fewer for what {shown} has in {metric} at", *(f"{n:,}" for n in queries)]]
    for name, method in runs.items():
        seeds = [seed for seed, (x, _) in known.items() if len(x) and seed in method.seeds]
        if name == base or not seeds:
            continue
        line = [method.label]
        for n in queries:
            values = {seed: float(np.interp(n, *known[seed])) for seed in seeds}
            needed = [queries_to(method.seeds[seed], metric, value) for seed, value in values.items()]
            line.append(_times_fewer(n, needed))
        lines.append(line)
    return aligned(lines)


def accuracy_table(runs: Runs) -> str:
    """Formats the ensemble's accuracy on chosen duels, before it saw their labels, and on held-out pairs.

    The mean over the labels bought between two numbers of queries; in brackets the ensemble's mean confidence
    in the more likely response, which equals the accuracy if the ensemble is calibrated. Empty where no
    method trains an ensemble.
    """
    lines = []
    for method in runs.values():
        if not method.learns_ensemble:
            continue
        line = [method.label]
        for low, high in pairwise(ACCURACY_EDGES):
            accuracy, confidence = (
                mean_over_labels(method.rows, f"ensemble/{name}_chosen", low, high)
                for name in ("accuracy", "confidence")
            )
            shown = "-" if np.isnan(accuracy) else f"{accuracy:.3f}"
            line.append(shown if np.isnan(confidence) else f"{shown} ({confidence:.3f})")
        _, mean, _ = mean_curve(method.rows, "ensemble/accuracy_heldout")
        lines.append([*line, f"{mean[-1]:.3f}" if len(mean) else "-"])
    edges = (f"{low}-{high}" for low, high in pairwise(ACCURACY_EDGES))
    return aligned([["ensemble accuracy (confidence)", *edges, "held out, last"], *lines]) if lines else ""


def _last(rows: list[Rows], metric: str) -> str:
    """Formats the last mean over seeds, ± s.e. of more than one."""
    _, mean, error = mean_curve(rows, metric)
    if not len(mean):
        return "-"
    return f"{mean[-1]:.3f}" + (f" ± {error[-1]:.3f}" if len(rows) > 1 else "")


def _seconds(rows: list[Rows], stage: str) -> float:
    return sum(row.get(f"time/{stage}_s") or 0.0 for run in rows for row in run)


def _level(rows: list[Rows], metric: str, level: float) -> str:
    """Formats mean ± s.e. over seeds; where some seeds never reach the level, the number that do."""
    found = np.array([queries_to(run, metric, level) for run in rows])
    reached = found[np.isfinite(found)]
    if len(reached) < len(found):
        return f"{len(reached)} of {len(found)} seeds"
    if len(reached) == 1:
        return f"{reached[0]:.0f}"
    return f"{reached.mean():.0f} ± {reached.std(ddof=1) / np.sqrt(len(reached)):.0f}"


def _multiple(method: MethodRuns, base: MethodRuns, metric: str, level: float) -> str:
    """Formats the base's mean queries as a multiple of the method's; '' if some seed never gets there."""
    seeds = method.seeds.keys() & base.seeds.keys()
    needed, mine = (
        [queries_to(runs.seeds[seed], metric, level) for seed in seeds] for runs in (base, method)
    )
    if not seeds or not np.isfinite([*needed, *mine]).all() or not np.mean(mine):
        return ""
    return f" ({np.mean(needed) / np.mean(mine):.1f}x)"


def _times_fewer(n: int, needed: list[float]) -> str:
    """Formats n divided by the queries needed, one for each seed."""
    ratios = np.array([n / max(queries, 1) for queries in needed if np.isfinite(queries)])
    cell = "-"
    if len(ratios):
        cell = f"{np.exp(np.log(ratios).mean()):.1f} ({ratios.min():.1f}-{ratios.max():.1f})"
    missing = len(needed) - len(ratios)
    return cell + (f", {missing} of {len(needed)} never" if missing else "")


def aligned(lines: list[list[str]]) -> str:
    """Pads the cells of each column to one width, and underlines the first line."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])
