"""How a watched training shows itself."""

from dataclasses import replace

from frenet.experiments import described
from frenet.experiments.watched_training import (
    STUDY,
    TABLES,
    TRAINING,
    WatchConfig,
    cells,
    command,
    looks,
    sentences,
)
from frenet.report.figures import draw
from frenet.runs import config_dict

CONFIG = WatchConfig("m", ("a", "b"), every=4, k=2, n=3, gradients=False, where="")


def drift(probe, ratios):
    return [
        {
            "table": "drift",
            "probe": probe,
            "step": step,
            "ratio": r,
            "control": 0.9,
            "chance": 0.1,
            "displacement": 0.1 * step,
        }
        for step, r in ratios.items()
    ]


def test_every_measure_names_a_reference_that_is_there():
    for table, columns in TABLES.items():
        roles = {column.name: column.role for column in columns}
        for column in columns:
            if column.role == "measure":
                assert roles[column.beside] == "reference", (table, column.name)
    assert {figure.table for figure in STUDY.figures} <= set(TABLES)


def test_a_report_knows_it_and_no_list_of_questions_does():
    from frenet.experiments import EXPERIMENTS

    assert described()["watched-training"] is STUDY
    assert "watched-training" not in EXPERIMENTS


def test_cells_are_the_looks_and_the_end():
    ids = [cell.id for cell in cells(CONFIG, steps=10)]
    assert ids == [f"step={step}" for step in (0, 1, 4, 8, 10)] + ["part=end"]
    assert [cell.id for cell in cells(CONFIG, steps=8)][-2:] == ["step=8", "part=end"]


def test_looks_are_dense_at_the_start_and_go_on_evenly():
    early = [0, 1, 5, 10, 20, 50, 100]
    assert looks(200, 1000) == [*early, 200, 400, 600, 800, 1000]
    assert looks(100, 60) == [0, 1, 5, 10, 20, 50, 60]
    assert looks(100, 250) == [*early, 200, 250]
    assert looks(1, 7) == list(range(8))
    assert looks(200, 0) == [0]
    for every in (1, 2, 3, 7, 50, 200):
        for steps in (1, 2, 9, 60, 401):
            # Of two plans for one training the looks before the shorter one's end are the same.
            longer = [step for step in looks(every, steps + 137) if step < steps]
            assert looks(every, steps)[:-1] == longer


def test_the_report_says_how_to_watch_again():
    text = command(config_dict(CONFIG))
    assert text.splitlines()[0] == "# probes: a, b"
    assert "every=4, k=2, n=3, gradients=False, where=None).attach(trainer)" in text


def test_panels_name_the_half_life_of_their_probe():
    figure = STUDY.figures[0]
    rows = drift("old", {0: 1.0, 10: 0.75, 20: 0.25}) + drift("new", {0: 1.0, 20: 0.9})
    spec = draw(figure, rows)
    values = spec["data"]["values"] if "values" in spec.get("data", {}) else None
    rows = values or next(iter(spec["datasets"].values()))
    names = {row["panel"].replace("\n", " ") for row in rows}
    assert names == {"old half-life between 10 and 20 steps", "new half-life more than 20 steps"}


def test_prefix_and_loss_are_drawn_with_their_references():
    prefix, loss = STUDY.figures[1:3]
    rows = [{"step": step, "captured": 0.5, "rest": 0.2, "random_walk": 0.4} for step in (4, 8)]
    assert "so far, random walk" in str(draw(prefix, rows))
    losses = [
        {"source": source, "step": step, "loss": 1.0, "loss_0": 2.0}
        for source in (TRAINING, "a")
        for step in (0, 4)
    ]
    assert TRAINING in str(draw(loss, losses))


def test_the_share_of_the_first_steps_is_said_beside_that_of_a_random_walk():
    """Of the last look; a training that did not move has none."""
    looks = [
        {"table": "prefix", "step": step, "k": 10, "captured": share, "random_walk": 0.64}
        for step, share in ((20, 0.9), (60, 0.69))
    ]
    (answer,) = sentences(looks)
    assert str(answer) == (
        "first 10 steps: 0.69 of the squared displacement after 60 steps lies in their span; of a "
        "random walk with equal steps 0.64"
    )
    assert sentences([looks[0] | {"captured": None}]) == []


def test_the_order_of_probes_is_drawn_where_it_is_above_rounding():
    figure = next(figure for figure in STUDY.figures if figure.id == "order")
    rows = [
        {"pair": "a and b", "step": step, "onset": onset}
        for step, onset in ((0, None), (1, 0.125), (5, 0.5))
    ]
    spec = str(draw(figure, rows))
    assert "'onset': 0.125" in spec
    assert "'onset': None" not in spec


def test_projections_are_drawn_with_their_control():
    figure = next(figure for figure in STUDY.figures if figure.id == "projections")
    ends = {"low": 0.25, "high": 0.875, "control": 0.75}
    rows = [{"probe": "p", "step": step, "ratio": 0.5, **ends} for step in (0, 5)]
    spec = str(draw(figure, rows))
    for value in ("0.875", "'value': 0.75", "median over matrices"):
        assert value in spec


def test_the_line_that_watches_again_asks_for_the_order_only_if_it_was_asked_for():
    assert "order" not in command(config_dict(CONFIG))
    assert "order=True" in command(config_dict(replace(CONFIG, order=True)))
    assert "projection_rank" not in command(config_dict(CONFIG))
    assert "projection_rank=8" in command(config_dict(replace(CONFIG, projection_rank=8)))
