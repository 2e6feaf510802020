"""Tables by hand."""

from made_runs import rows, runs

from sea_jax.report import tables


def test_tables_say_how_many_seeds_got_there_and_how_many_fewer_queries():
    found = runs(
        passive=[rows((0, 0.5), (100, 0.9)), rows((0, 0.5), (100, 0.9))],
        sea=[rows((0, 0.5), (50, 0.9)), rows((0, 0.5), (50, 0.9))],
    )
    text = tables.levels_table(found, "eval/win_rate_sft", (0.7, 0.9, 0.95))
    passive, sea = text.splitlines()[2:]
    assert "50 ± 0" in passive and "100 ± 0" in passive and "0 of 2 seeds" in passive
    assert "25 ± 0 (2.0x)" in sea and "50 ± 0 (2.0x)" in sea and sea.count("x)") == 2


def test_a_multiple_is_of_the_seeds_that_both_have():
    """Seed 1: 100 against 50; passive's seed 0, at 10, has no counterpart."""
    found = runs(
        passive={0: rows((0, 0.5), (10, 0.9)), 1: rows((0, 0.5), (100, 0.9))},
        sea={1: rows((0, 0.5), (50, 0.9)), 2: rows((0, 0.5), (50, 0.9))},
    )
    assert "(2.0x)" in tables.levels_table(found, "eval/win_rate_sft", (0.9,))


def test_a_column_is_shown_if_some_run_has_it():
    sampled = rows((0, 0.5), (100, 0.75), metric="eval/best_of_win_rate_sft")
    found = runs(passive=[rows((0, 0.5), (100, 0.625))], sea=[[*rows((0, 0.5), (100, 0.875)), *sampled]])
    header, _, passive, sea = (line.split("  ") for line in tables.summary_table(found, ()).splitlines())
    names, passive, sea = ([cell.strip() for cell in line if cell.strip()] for line in (header, passive, sea))
    assert names[:5] == ["method", "seeds", "queries", "win rate vs SFT", "best of N vs SFT"]
    assert passive[2:5] == ["100", "0.625", "-"] and sea[2:5] == ["100", "0.875", "0.750"]


def test_what_passive_has_is_matched_seed_by_seed():
    """Seeds 1 and 2 need 64 and 32 of passive's 256 queries: √(4 · 8) = 5.7; the third never gets there."""
    found = runs(
        passive=[rows((0, 0), (256, 2)), rows((0, 0), (256, 8)), rows((0, 0), (256, 5))],
        sea=[rows((0, 0), (128, 4)), rows((0, 0), (64, 16)), rows((0, 0), (128, 4))],
    )
    *_, line = tables.match_table(found, "eval/win_rate_sft", (256, 512)).splitlines()
    assert line.startswith("SEA ") and line.endswith(" 5.7 (4.0-8.0), 1 of 3 never")
    assert "512" not in tables.match_table(found, "eval/win_rate_sft", (256, 512))
    assert tables.match_table({"sea": found["sea"]}, "eval/win_rate_sft", (256,)) == ""


def test_runs_are_paired_by_seed_and_not_by_position():
    """On seed 1 SEA has at 64 what passive has at 256; by position it would be compared with seed 0."""
    found = runs(
        passive={0: rows((0, 0), (256, 1)), 1: rows((0, 0), (256, 8))},
        sea={1: rows((0, 0), (64, 8)), 2: rows((0, 0), (256, 8))},
    )
    *_, line = tables.match_table(found, "eval/win_rate_sft", (256,)).splitlines()
    assert line.endswith(" 4.0 (4.0-4.0)")
    assert "SEA" not in tables.match_table(
        runs(passive={0: rows((0, 0), (256, 1))}, sea={1: rows((0, 0), (64, 8))}), "eval/win_rate_sft", (256,)
    )


def test_accuracy_of_a_step_without_labels_is_not_averaged_in():
    """16 labels at 0.75 and 4 at 0.5 make 0.7, whatever a step that bought none says."""
    chosen = lambda q, a, c: {  # noqa: E731
        "queries": q, "ensemble/accuracy_chosen": a, "ensemble/confidence_chosen": c,
    }  # fmt: skip
    run = [chosen(16, 0.75, 1.0), chosen(16, 0.0, 0.0), {"queries": 16}, chosen(20, 0.5, 0.5)]
    run.append({"queries": 20, "ensemble/accuracy_heldout": 0.875})
    _, _, line = tables.accuracy_table(runs(passive=[rows((0, 0.5))], sea=[run])).splitlines()
    assert line.split() == ["SEA", "0.700", "(0.900)", *["-"] * 5, "0.875"]
    assert tables.accuracy_table(runs(passive=[run])) == ""


def test_an_ensemble_that_was_not_evaluated_has_a_dash():
    assert tables.accuracy_table(runs(sea=[rows((0, 0.5))])).split()[-1] == "-"
