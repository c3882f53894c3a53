"""A sample of ``make families``: no cell is wrong, and fast ways are used if possible."""

import pytest

import families

PLAIN = ("loss", "gradient", "slope", "Hessian product", "examples")
# Attention, ALiBi, a window, recurrence, convolution, hybrids, experts, learned positions that know
# of no padding, and states that know of no mask.
SAMPLE = (
    "llama", "bloom", "gemma2", "mamba2", "lfm2", "falcon_h1", "qwen3_next", "xlstm", "mixtral",
    "whisper", "deepseek_v4",
)  # fmt: skip
SLOW = {"mixtral", "qwen3_next", "deepseek_v4"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLE)
def test_a_family_is_measured_rightly(name):
    of = families.Subject(families.build(name))
    columns = {column.name: column for column in families.COLUMNS}
    for head in PLAIN:
        slow = head == "examples" and name in SLOW
        assert families.judged(columns[head], of) == ("slow way" if slow else "right"), head


@pytest.mark.filterwarnings("ignore")
def test_a_family_whose_gradient_is_cut_off_is_refused():
    """HRM runs its first cycles without gradients."""
    of = families.Subject(families.build("hrm_text"))
    cell = families.judged(families.COLUMNS[2], of)
    assert cell.startswith("refused: the gradient of HrmTextForCausalLM is not the derivative")


def test_an_error_beyond_the_bound_and_a_crash_are_wrong():
    def crash(of):
        raise RuntimeError("sizes do not match")

    for error, expected in (
        (lambda of: 0.5, "wrong: relative error 0.5"),
        (lambda of: float("nan"), "wrong: relative error nan"),
        (lambda of: 1e-5, "right"),
        (crash, "wrong: RuntimeError: sizes do not match"),
    ):
        assert families.judged(families.Column("loss", error, 1e-4), None) == expected


def test_the_page_counts_cells_and_lists_reasons():
    found = {
        "one": {column.name: "right" for column in families.COLUMNS},
        "two": {column.name: "refused: too | odd" for column in families.COLUMNS},
    }
    page = families.page(found, {"three": "ValueError: no"}, "5.0")
    assert "8 right, 0 slow way, 8 refused, 0 wrong" in page
    assert "- `refused: too | odd`: two (loss), two (gradient)" in page
    assert "- three: `ValueError: no`" in page
