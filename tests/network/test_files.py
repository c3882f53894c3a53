"""Rows as people really save them: BOM, line ends, blank lines, text that looks like nothing."""

import json

import pytest

from frenet.network.data.files import RowError, read_rows, shown

# Case S5 of the user reports: BOM, CRLF, a blank line, NA and null, a quoted line break, doubled
# quotes, and a row with one cell.
CSV = bytes.fromhex(
    "efbbbf706f7369746976652c6e656761746976650d0a492061677265652c492064697361677265650d0a0d0a4e41"
    "2c6e756c6c0d0a224c696e65206f6e650a6c696e652074776f222c226120222271756f746564222220776f7264"
    "220d0a6f6e6c79206f6e650d0a"
)
PAIRS = [
    ("I agree", "I disagree"),
    ("NA", "null"),
    ("Line one\nline two", 'a "quoted" word'),
]


@pytest.fixture
def write(tmp_path):
    """A function that writes bytes or text to a file and returns its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def pairs(rows):
    return [(row["positive"], row["negative"]) for row in rows.values]


def test_s5_the_csv_case_is_the_104_bytes_of_the_report():
    assert len(CSV) == 104


def test_s5_the_short_row_is_an_error_with_its_physical_line_and_the_missing_column(write):
    path = write("pairs.csv", CSV)
    with pytest.raises(RowError, match=r"pairs\.csv, line 7: .*'only one'.*column 'negative'"):
        read_rows(path)


def test_s5_skipping_keeps_three_rows_and_reports_one(write):
    rows = read_rows(write("pairs.csv", CSV), on_bad="skip")
    assert list(rows.values[0]) == ["positive", "negative"]
    assert pairs(rows) == PAIRS
    assert rows.lines == (2, 4, 5)
    assert [error.line for error in rows.skipped] == [7]


@pytest.mark.reads(
    kind="encodings",
    given="UTF-8 with or without a byte order mark, and with any line ends",
    outcome="used",
)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_csv_rows_do_not_depend_on_bom_line_ends_and_final_newline(write, bom, end, last):
    text = CSV[3:].decode().replace("\r\n", "\n").removesuffix("only one\n")
    text = text if last else text.removesuffix("\n")
    rows = read_rows(write("p.csv", bom + text.replace("\n", end).encode()))
    assert pairs(rows) == PAIRS
    assert rows.lines == (2, 4, 5)


JSONL = [
    '{"positive": "I agree", "negative": "I disagree"}',
    "",
    '{"positive": "NA", "negative": "null", "more": 1}',
]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_s5_jsonl_rows_do_not_depend_on_bom_line_ends_and_final_newline(write, bom, end, last):
    text = end.join(JSONL) + (end if last else "")
    rows = read_rows(write("p.jsonl", bom + text.encode()), required=("positive", "negative"))
    assert pairs(rows) == PAIRS[:2]
    assert rows.lines == (1, 3)
    assert rows.values[1]["more"] == 1


def test_s5_jsonl_missing_key_names_line_and_key(write):
    path = write("p.jsonl", "\r\n".join([*JSONL, '{"positive": "alone"}', ""]))
    with pytest.raises(RowError, match=r"p\.jsonl, line 4: missing key 'negative'"):
        read_rows(path, required=("positive", "negative"))
    rows = read_rows(path, required=("positive", "negative"), on_bad="skip")
    assert len(rows) == 2
    assert [error.line for error in rows.skipped] == [4]


@pytest.mark.parametrize("empty", ['""', '" "', "null"])
def test_s5_empty_text_names_line_key_and_value(write, empty):
    path = write("p.jsonl", f'{JSONL[0]}\n{{"positive": {empty}, "negative": "x"}}\n')
    with pytest.raises(RowError, match=r"line 2: 'positive' is empty: (''|' '|None)"):
        read_rows(path, required=("positive", "negative"))


def test_a_single_json_line_without_newline_is_one_row(write):
    assert read_rows(write("p.jsonl", '{"text": "one"}')).values == ({"text": "one"},)


def test_line_separators_inside_json_strings_are_text(write):
    text = "one\u2028two\u0085three\x0cfour"
    path = write("p.jsonl", json.dumps({"text": text}, ensure_ascii=False))
    assert read_rows(path).values[0]["text"] == text


def test_cells_stay_text_whatever_they_look_like(write):
    cells = ["NA", "null", "1", "1.0", "true", "NaN", "-", "None", " x "]
    rows = read_rows(write("p.csv", "a,b\n" + "".join(f"{c},x\n" for c in cells)))
    assert [row["a"] for row in rows.values] == cells


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": 1,}', "not JSON at column"),
        ("[1, 2]", r"holds \[1, 2\]; every line must be one JSON object"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ('{"a": NaN}', "NaN is not JSON"),
    ],
)
def test_bad_json_lines_are_named(write, line, message):
    path = write("p.jsonl", f'{{"a": 0}}\n\n{line}\n')
    with pytest.raises(RowError, match=rf"p\.jsonl, line 3: {message}"):
        read_rows(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2,3\n", r"line 2: 3 cells for 2 columns, .* '3'; put quotes"),
        ('a,b\n1,2\n"never closed,2\n3,4\n', "line 3: not CSV: unexpected end of data"),
        ("a,a\n1,2\n", "line 1: the column 'a' occurs twice"),
        ('"a\nb,c\n', "line 1: the header cannot be read"),
    ],
)
def test_bad_csv_rows_are_named(write, text, message):
    with pytest.raises(RowError, match=rf"p\.csv, {message}"):
        read_rows(write("p.csv", text))


def test_a_bad_row_in_the_middle_does_not_stop_the_good_ones_when_skipping(write):
    rows = read_rows(write("p.csv", 'a,b\n1,2\n"x"y,2\n3,4\n'), on_bad="skip")
    assert [row["a"] for row in rows.values] == ["1", "3"]
    assert [error.line for error in rows.skipped] == [3]


def test_what_is_no_file_is_an_error(tmp_path, write):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.jsonl"):
        read_rows(tmp_path / "absent.jsonl")
    with pytest.raises(IsADirectoryError, match=r"is a folder; name one \.jsonl or \.csv file"):
        read_rows(tmp_path)
    with pytest.raises(ValueError, match=r"notes\.txt ends in \.txt; save its rows"):
        read_rows(write("notes.txt", "hello"))
    with pytest.raises(ValueError, match="ends in no extension"):
        read_rows(write("notes", "hello"))


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\r\n \n"])
@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_an_empty_file_is_an_error(write, name, content):
    with pytest.raises(ValueError, match=rf"{name} is empty"):
        read_rows(write(name, content))


def test_a_file_without_a_good_row_is_an_error_that_shows_the_first_bad_one(write):
    with pytest.raises(ValueError, match=r"p\.csv holds no usable row$"):
        read_rows(write("p.csv", "a,b\n"))
    with pytest.raises(ValueError, match=r"no usable row; the first of 2 bad ones: .*line 1"):
        read_rows(write("p.jsonl", "x\ny\n"), on_bad="skip")


@pytest.mark.reads(
    kind="encodings",
    given="a data file in another encoding than UTF-8, such as UTF-16 or Latin-1",
    outcome="refused",
    says="is not UTF-8; save the file with the encoding UTF-8",
)
def test_bytes_that_are_not_utf8_are_named_with_their_line(write, says):
    with pytest.raises(ValueError, match=r"p\.csv, line 3: byte 0xe9 is not UTF-8") as error:
        read_rows(write("p.csv", b"a,b\n1,2\ncaf\xe9,2\n"))
    assert says in str(error.value)
    with pytest.raises(ValueError, match="line 1: byte 0xff is not UTF-8"):
        read_rows(write("u.csv", "a,b\n1,2\n".encode("utf-16")))


def test_long_values_are_cut_in_messages():
    assert shown("x" * 100) == "'" + "x" * 56 + "..."
