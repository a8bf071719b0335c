"""The cost table of the metric: both methods are timed, and every row is there."""

from __future__ import annotations

import metric


def test_both_methods_are_timed_at_every_sampling() -> None:
    rows = metric.table(16, [1], 0.01, ("rigid",))
    assert [(r.transform, r.share, r.threads) for r in rows] == [("rigid", s, 1) for s in metric.SHARES]
    assert all(r.cosine > 0 and r.mattes > 0 for r in rows)


def test_the_table_shows_costs_and_their_ratio() -> None:
    lines = metric.text([metric.Row("rigid", 0.05, 1, 3.0, 2.0), metric.Row("B-spline", 1.0, 2, 1.0, 8.0)]).splitlines()
    assert len(lines) == 4
    assert lines[2] == "| rigid | 5% | 1 | 3.0 | 2.0 | 1.50 |"
    assert lines[3] == "| B-spline | dense | 2 | 1.0 | 8.0 | 0.12 |"
