"""From the metrics.jsonl of one or many runs to a figure and tables.

python -m sea_jax.report runs/quickstart
python -m sea_jax.report runs/sample_efficiency runs/control    # the second's runs beside the first's
python -m sea_jax.report runs/sweep-tldr                        # all of a sweep, sizes below each other

In these tables a run is named by its method, and by method@folder if it is another folder's.
"""

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sea_jax.errors import InputError
from sea_jax.methods import METHODS
from sea_jax.report import sweep as sweeps
from sea_jax.types import Config

# What the table says of a run's end, where some run has it.
FINAL = {
    "win rate vs SFT": "eval/win_rate_sft",
    "vs reference": "eval/win_rate_reference",
    "online": "duel/win_rate_reference_so_far",
    "best of N vs SFT": "eval/best_of_win_rate_sft",
    "mean r*": "eval/reward",
}
MATCHED = (256, 512, 1024, 2048)  # passive's queries in `match_table`
STAGES = ("generate", "select", "oracle", "learn", "evaluate")


def read_runs(folder: Path, last_seeds: tuple[int, ...] | None = None) -> dict[str, list[list[dict]]]:
    """Rows of every finished run below a folder.

    Args:
        folder: a work directory, or a folder of many.
        last_seeds: keep these seeds only.

    Returns:
        method -> runs -> rows, in the order of METHODS and of run names.
    """
    runs = defaultdict(list)
    for done in sorted(folder.glob("**/runs/*/done.json")):
        method, seed = done.parent.name.rsplit("-seed", 1)
        if last_seeds is None or int(seed) in last_seeds:
            runs[method].append(read_rows(done.parent))
    return {method: runs[method] for method in METHODS if method in runs}


def read_rows(run_folder: Path) -> list[dict]:
    """The metrics of one run, as logged."""
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def label(name: str) -> str:
    """What tables and figures say of a method, or of a method@folder."""
    method, _, folder = name.partition("@")
    return METHODS[method].label + (f" ({folder})" if folder else "")


def curve(rows: list[dict], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(queries, values) of one run where the metric was logged."""
    points = [(row["queries"], row[metric]) for row in rows if row.get(metric) is not None]
    return tuple(np.array(points, float).T) if points else (np.empty(0), np.empty(0))


def mean_curve(runs: list[list[dict]], metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and standard error over seeds, on the queries of the first run (others interpolated).

    Runs without the metric are left out; all three are empty if no run has it.
    """
    curves = [xy for rows in runs if len((xy := curve(rows, metric))[0])]
    if not curves:
        return np.empty(0), np.empty(0), np.empty(0)
    at = curves[0][0]
    values = np.stack([np.interp(at, x, y) for x, y in curves])
    error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(len(at))
    return at, values.mean(0), error


def queries_to(rows: list[dict], metric: str, level: float) -> float:
    """Oracle queries at which one run first reaches a level, between evaluations linearly; else inf."""
    x, y = curve(rows, metric)
    reached = np.flatnonzero(y >= level)
    if not len(reached):
        return float("inf")
    i = reached[0]
    if i == 0:
        return float(x[0])
    return float(x[i - 1] + (level - y[i - 1]) / (y[i] - y[i - 1]) * (x[i] - x[i - 1]))


def table(runs: dict[str, list[list[dict]]], levels: tuple[float, ...]) -> str:
    """Method, queries, win rate ± s.e. over seeds, queries to each level, seconds by stage (all seeds).

    "online" is the mean win rate against the references of all responses that the oracle was shown.
    """
    final = {k: v for k, v in FINAL.items() if any(len(mean_curve(r, v)[0]) for r in runs.values())}
    header = ["method", "seeds", "queries", *final]
    header += [f"queries to {level:g}" for level in levels] + [f"{s} s" for s in STAGES]
    lines = [header]
    for method, rows in runs.items():
        line = [label(method), str(len(rows)), f"{max(r[-1]['queries'] for r in rows)}"]
        for metric in final.values():
            _, mean, error = mean_curve(rows, metric)
            spread = f" ± {error[-1]:.3f}" if len(rows) > 1 and len(mean) else ""
            line.append(f"{mean[-1]:.3f}{spread}" if len(mean) else "-")
        line += [_levels(rows, "eval/win_rate_sft", level) for level in levels]
        for stage in STAGES:
            line.append(f"{sum(r.get(f'time/{stage}_s') or 0 for run in rows for r in run):.1f}")
        lines.append(line)
    return _aligned(lines)


def levels_table(runs: dict[str, list[list[dict]]], metric: str, levels: tuple[float, ...]) -> str:
    """Queries of each method to levels of one metric: mean ± s.e. over seeds, and passive's multiple."""
    lines = [[f"queries to {metric}", *(f"{level:g}" for level in levels)]]
    for method, rows in runs.items():
        line = [label(method)]
        for level in levels:
            cell = _levels(rows, metric, level)
            base = [queries_to(r, metric, level) for r in runs.get("passive", [])]
            mine = [queries_to(r, metric, level) for r in rows]
            if method != "passive" and base and np.isfinite([*base, *mine]).all():
                cell += f" ({np.mean(base) / np.mean(mine):.1f}x)"
            line.append(cell)
        lines.append(line)
    return _aligned(lines)


def match_table(
    runs: dict[str, list[list[dict]]], metric: str, queries: tuple[int, ...], base: str = "passive"
) -> str:
    """How many times fewer queries a method needs for what `base` has after n, on the same seed.

    Hidden rewards differ in what can be reached at all, so fixed levels mix easy seeds with hard ones.
    Geometric mean over seeds, and (lowest - highest); a seed that never gets there is
    left out and counted. Runs of all methods must be of the same seeds. Empty where the base has no run
    that is long enough.
    """
    known = [curve(rows, metric) for rows in runs.get(base, [])]
    last = min((x[-1] for x, _ in known if len(x)), default=0)
    queries = tuple(n for n in queries if n <= last)
    if not queries:
        return ""
    of = base if base == "passive" else label(base)
    lines = [[f"times fewer for what {of} has in {metric} at", *(f"{n:,}" for n in queries)]]
    for method, rows in runs.items():
        if method == base or len(rows) != len(known):
            continue
        line = [label(method)]
        for n in queries:
            needed = [queries_to(r, metric, np.interp(n, *c)) for r, c in zip(rows, known, strict=True)]
            ratios = np.array([n / max(q, 1) for q in needed if np.isfinite(q)])
            cell = (
                f"{np.exp(np.log(ratios).mean()):.1f} ({ratios.min():.1f}-{ratios.max():.1f})"
                if len(ratios)
                else "-"
            )
            missing = len(needed) - len(ratios)
            line.append(cell + (f", {missing} of {len(needed)} never" if missing else ""))
        lines.append(line)
    return _aligned(lines)


def accuracy_table(runs: dict[str, list[list[dict]]]) -> str:
    """The ensemble on the pairs it chose, before it saw their labels, and on held-out pairs.

    In brackets its mean confidence in the more likely response: calibrated, it equals the accuracy.
    """
    edges = (0, 128, 256, 512, 1024, 2048, 4096)
    lines = [["ensemble accuracy (confidence)", *(f"{a}-{b}" for a, b in pairwise(edges)), "held out, last"]]
    for method, rows in runs.items():
        if not METHODS[method.partition("@")[0]].learns_ensemble:
            continue
        line = [label(method)]
        for low, high in pairwise(edges):
            chosen = [row for run in rows for row in run if low < row["queries"] <= high]
            means = []
            for name in ("ensemble/accuracy_chosen", "ensemble/confidence_chosen"):
                values = [row[name] for row in chosen if row.get(name) is not None]
                means.append(f"{np.mean(values):.3f}" if values else "-")
            line.append(f"{means[0]} ({means[1]})" if means[1] != "-" else means[0])
        _, mean, _ = mean_curve(rows, "ensemble/accuracy_heldout")
        lines.append([*line, f"{mean[-1]:.3f}"])
    return _aligned(lines)


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _levels(runs: list[list[dict]], metric: str, level: float) -> str:
    """Mean ± s.e. over seeds; where some seeds never got there, how many did."""
    found = np.array([queries_to(rows, metric, level) for rows in runs])
    ok = found[np.isfinite(found)]
    if len(ok) < len(found):
        return f"{len(ok)} of {len(found)} seeds"
    if len(ok) == 1:
        return f"{ok[0]:.0f}"
    return f"{ok.mean():.0f} ± {ok.std(ddof=1) / np.sqrt(len(ok)):.0f}"


def figure(
    sizes: dict[str, dict[str, list[list[dict]]]], levels: dict[str, tuple[float, ...]], file: Path
) -> None:
    """Win rate against SFT and r* by oracle queries (Fig. 3); the queries that each method needs (Fig. 1).

    Args:
        sizes: size -> method -> runs -> rows; a row of panels for each size, a colour for each method.
        levels: size -> win rates against the references, for the bars.
        file: a PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(name for runs in sizes.values() for name in runs))
    colors = {name: f"C{i}" for i, name in enumerate(names)}
    fig, rows = plt.subplots(
        len(sizes), 3, figsize=(16, 4.4 * len(sizes)), layout="constrained", squeeze=False
    )
    for panels, (size, runs) in zip(rows, sizes.items(), strict=True):
        title = f"{size}, mean ± s.e. over seeds" if size else "mean ± s.e. over seeds"
        for axes, metric, name in zip(
            panels, ("eval/win_rate_sft", "eval/reward"), ("win rate against SFT", "mean r*"), strict=False
        ):
            _curves(axes, runs, metric, colors)
            axes.set(xlabel="oracle queries", ylabel=name, title=title)
        if runs:
            panels[0].legend(loc="lower right")
        _efficiency(panels[2], runs, levels[size], colors)
    fig.savefig(file, dpi=130)
    plt.close(fig)


def _curves(axes, runs: dict[str, list[list[dict]]], metric: str, colors: dict[str, str]) -> None:
    """Mean and standard error of each method."""
    for method, rows in runs.items():
        x, mean, error = mean_curve(rows, metric)
        axes.plot(x, mean, label=f"{label(method)} ({len(rows)} seeds)", color=colors[method])
        axes.fill_between(x, mean - error, mean + error, alpha=0.2, color=colors[method])
    axes.grid(alpha=0.3)


def _efficiency(
    axes, runs: dict[str, list[list[dict]]], levels: tuple[float, ...], colors: dict[str, str]
) -> None:
    """Queries of each method to levels of the mean curve, as bars."""
    width = 0.8 / max(len(runs), 1)
    for i, (method, rows) in enumerate(runs.items()):
        x, mean, _ = mean_curve(rows, "eval/win_rate_reference")
        mean_rows = [{"queries": q, "w": w} for q, w in zip(x, mean, strict=True)]
        needed = [queries_to(mean_rows, "w", level) for level in levels]
        at = np.arange(len(levels)) + (i - (len(runs) - 1) / 2) * width
        heights = [n if np.isfinite(n) else 0 for n in needed]
        bars = axes.bar(at, heights, width * 0.9, color=colors[method])
        axes.bar_label(bars, [f"{n:.0f}" if np.isfinite(n) else "not\nreached" for n in needed], fontsize=8)
    axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    axes.set(xlabel="win rate against references, of the mean curve", ylabel="oracle queries needed")
    axes.set_title("fewer is better")


def write(folder: Path, config: Config, others: tuple[Path, ...] = ()) -> str:
    """Writes report.txt and report.png of a work directory, and returns what to print.

    Args:
        folder: the work directory.
        config: its config.
        others: work directories of the same seeds, whose runs are put beside its own.
    """
    seeds = tuple(range(config.seed, config.seed + config.num_seeds))
    runs = {m: r for m, r in read_runs(folder, seeds).items() if m in config.methods}
    for other in others:
        runs |= {f"{m}@{other.name}": r for m, r in read_runs(other, seeds).items()}
    text = _tables(runs, runs, config.eval)
    return _keep(folder, text, {"": runs}, {"": tuple(config.eval.reference_levels)})


def write_sweep(root: Path) -> str:
    """Writes report.txt and report.png of a sweep, and returns what to print.

    Runs that have not finished are named. Tables that compare methods take the seeds that all have finished.

    Raises:
        InputError: on a folder whose sweep cannot be read.
    """
    sweep = sweeps.read(root)
    parts, sizes, levels = [], {}, {}
    for size, config in sweep.configs.items():
        done = {unit: read_rows(unit.run_folder) for unit in sweep.units(size) if unit.finished}
        seeds = {m: found for m in METHODS if (found := {unit.seed for unit in done if unit.method == m})}
        common = set.intersection(*seeds.values()) if seeds else set()
        runs = {m: [done[u] for u in done if u.method == m] for m in seeds}
        matched = {m: [done[u] for u in done if u.method == m and u.seed in common] for m in seeds if common}
        sizes[size], levels[size] = runs, tuple(config["eval"]["reference_levels"])
        text = _tables(runs, matched, ConfigDict(config["eval"])) if runs else "no run has finished"
        parts.append(f"== {size}\n\n{text}")
    if missing := sweeps.unfinished(sweep):
        parts.append("\n".join([f"NOT FINISHED, and not in this report: {len(missing)} runs", *missing]))
    return _keep(root, "\n\n".join(parts), sizes, levels)


def _tables(runs: dict[str, list[list[dict]]], matched: dict[str, list[list[dict]]], evaluation: Any) -> str:
    """All tables: of `runs`, and of the `matched` ones, all of the same seeds, what compares methods."""
    bases = [name for name in runs if name.partition("@")[0] == "passive"]
    tables = [
        table(runs, tuple(evaluation.levels)),
        *(
            levels_table(matched, f"eval/{metric}", tuple(levels))
            for metric, levels in (
                ("win_rate_reference", evaluation.reference_levels),
                ("reward", evaluation.reward_levels),
            )
            if matched
        ),
        *(
            match_table(matched, m, MATCHED, b)
            for b in bases
            for m in ("eval/win_rate_reference", "eval/reward")
        ),
        accuracy_table(runs),
    ]
    return "\n\n".join(t for t in tables if t)


def _keep(folder: Path, text: str, sizes: dict, levels: dict[str, tuple[float, ...]]) -> str:
    """Writes the two files; `sizes` and `levels` as in `figure`."""
    figure(sizes, levels, folder / "report.png")
    (folder / "report.txt").write_text(text + "\n")
    return f"{text}\n\nfigure: {folder / 'report.png'}"


def main(argv: list[str]) -> None:
    """Reports a sweep; or all runs of a work directory, as its config says, with those of others beside."""
    folders = [Path(name) for name in argv[1:]]
    if len(folders) == 1 and (folders[0] / sweeps.FILE).exists():
        try:
            print(write_sweep(folders[0]))
        except InputError as error:
            raise SystemExit(f"error: {error}") from None
        return
    if not folders or not all((folder / "config.json").exists() for folder in folders):
        raise SystemExit(
            "usage: python -m sea_jax.report <work directory with a config.json> [others …]\n"
            f"       python -m sea_jax.report <root of one sweep, with a {sweeps.FILE}>"
        )
    config = ConfigDict(json.loads((folders[0] / "config.json").read_text()))
    config.methods = tuple(METHODS)  # the folder's last call may have named some of its methods only
    print(write(folders[0], config, tuple(folders[1:])))
