"""Class names and prompt templates in text files: numbering, encodings and broken files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.evaluation.text_files import class_names, templates


def written(tmp_path: Path, data: bytes) -> str:
    (tmp_path / "names.txt").write_bytes(data)
    return str(tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("data", "names"),
    [
        # as in CLEVR's sets of VTAB: line n is class n
        (b"zero\n\ntwo\n", ("zero", "", "two")),
        (b"\nfirst\n", ("", "first")),
        (b"a\nb\n\n", ("a", "b", "")),
        (b"a\nb\na", ("a", "b", "a")),
        (b" a \r\nb\r\n", ("a", "b")),
        (b"\xef\xbb\xbfcat\ndog\n", ("cat", "dog")),
        ("caf\u00e9\npi\u00f1a\n".encode("latin-1"), ("caf\u00e9", "pi\u00f1a")),
        ("caf\u00e9\n\u732b\n".encode("utf-16"), ("caf\u00e9", "\u732b")),
        # a line ends at a line feed, not at the other characters that Unicode calls line ends
        ("a\u2028b\nc\x85d\n".encode(), ("a\u2028b", "c\x85d")),
    ],
)
def test_line_n_is_class_n(data: bytes, names: tuple[str, ...], tmp_path: Path) -> None:
    assert class_names(written(tmp_path, data)) == names


def test_blank_repeated_and_recoded_names_are_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        class_names(written(tmp_path, "caf\u00e9\n\nb\nb\n\n\n\n\n\nc\n".encode("latin-1")))
    assert "is not UTF-8; read as cp1252" in caplog.messages[0]
    assert "6 classes without a name, number 1, 4, 5, 6, 7 and 1 more" in caplog.messages[1]
    assert "1 names of more than one class, 'b'" in caplog.messages[2]


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf", b"PK\x03\x04\0\0names"])
def test_file_without_names_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"names\.txt (has no class name|is not text); expected"):
        class_names(written(tmp_path, data))


def test_templates(tmp_path: Path) -> None:
    assert templates(written(tmp_path, b"\xef\xbb\xbfa {c}.\n\n{} 100%\n")) == ("a {c}.", "{} 100%")
    assert templates(written(tmp_path, b"\n")) == ()
    for text in ("a {c}\na photo\n", "a {c}\na {label}\n", "a {c}\na %s\n"):
        with pytest.raises(
            UserError, match=r"names\.txt: template 2, 'a .*', has no placeholder .* write \{c\} or \{\}"
        ):
            templates(written(tmp_path, text.encode()))
