"""Selection against a slow oracle written from the definition, and the guarantees of every step with a budget."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ftfy
import polars as pl
import pyarrow.parquet as pq
import pytest
import regex

from orchestrator.pruning.wfpp import count_words, merge_counts
from orchestrator.selection import word_counts as words
from orchestrator.selection.wfpp import read_scores
from tests.support.commands import Shell
from tests.support.pools import (
    ODD_CAPTIONS,
    Selected,
    build_selection,
    config_of,
    make_pairs,
    real_captions,
    write_table,
    write_tars,
)

pytestmark = pytest.mark.usefixtures("ray_cluster")

PATTERN = regex.compile(
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)
NUM_CAPTIONS = 5000


def oracle_words(caption: str | None) -> list[str]:
    text = html.unescape(html.unescape(ftfy.fix_text(caption or "")))
    return PATTERN.findall(" ".join(text.strip().split()).lower())


def oracle_scores(
    captions: Sequence[str | None], *, min_count: int = 5, max_words: int = 30, t: float = 1e-7
) -> list[float]:
    words = [oracle_words(caption) for caption in captions]
    counts = Counter(word for caption in words for word in caption)
    frequent = {word: count for word, count in counts.items() if count >= min_count}
    total = sum(frequent.values())
    scores = []
    for caption in words:
        considered, product = caption[:max_words], 1.0
        for word in considered:
            if word in frequent:
                p = 1 - math.sqrt(t / (frequent[word] / total))
                product *= p if p >= 0 else 1.0
        scores.append((1 - product) / len(considered) if considered else -math.inf)
    return scores


def oracle_kept(scores: Sequence[float], keep_fraction: float) -> list[int]:
    best = sorted(range(len(scores)), key=lambda position: (-scores[position], position))
    return sorted(best[: int(len(scores) * keep_fraction)])


Select = Callable[..., Selected]


@pytest.fixture(scope="module")
def select(tmp_path_factory: pytest.TempPathFactory) -> Select:
    """Selects from a caption table; `steps` are nodes by name, in order. One store serves the module."""
    store = tmp_path_factory.mktemp("store")

    def run(
        uri: str, steps: dict[str, dict[str, Any]], *, actors: int | None = 2, part_rows: int = 1_000_000
    ) -> Selected:
        source = {"format": "table", "uri": uri, "part_rows": part_rows}
        selection = {"steps": list(steps), **steps}
        return build_selection(config_of(source, store, selection=selection, cluster={"scoring_actors": actors}))

    return run


@pytest.fixture(scope="module")
def captions() -> list[str | None]:
    return real_captions(NUM_CAPTIONS)


@pytest.fixture(scope="module")
def scores(captions: list[str | None]) -> list[float]:
    return oracle_scores(captions)


@pytest.fixture(scope="module")
def one_file(captions: list[str | None], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_table(tmp_path_factory.mktemp("tables") / "one", captions)


@pytest.fixture(scope="module")
def seven_files(captions: list[str | None], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_table(tmp_path_factory.mktemp("tables") / "seven", captions, num_files=7)


def test_the_captions_are_like_those_of_the_web(captions: list[str | None]) -> None:
    assert set(ODD_CAPTIONS) <= set(captions)
    assert max(len(caption or "") for caption in captions) == 5000
    assert len(captions) == NUM_CAPTIONS + len(ODD_CAPTIONS)


@pytest.mark.parametrize("keep_fraction", [0.3, 0.5, 0.8, 0.999, 1.0])
def test_wfpp_keeps_what_the_oracle_keeps(
    select: Select, one_file: str, scores: list[float], keep_fraction: float
) -> None:
    kept = select(one_file, {"wfpp": {"keep_fraction": keep_fraction}}).ordinals()
    assert kept == oracle_kept(scores, keep_fraction)


def test_scores_equal_the_oracles_bit_for_bit(select: Select, one_file: str, scores: list[float]) -> None:
    stages = select(one_file, {"wfpp": {"keep_fraction": 0.3}}).stages
    scored = next(stage.artifact for stage in stages if stage.artifact.kind == "scores")
    assert read_scores(scored, 0).tolist() == scores
    assert scored.totals["no_words"] == sum(score == -math.inf for score in scores) > 0


def test_the_keep_list_does_not_depend_on_shards_parts_and_actors(
    select: Select,
    one_file: str,
    seven_files: str,
    scores: list[float],
) -> None:
    expected = oracle_kept(scores, 0.5)
    steps = {"wfpp": {"keep_fraction": 0.5}}
    for uri, actors, part_rows in [(seven_files, 1, 1_000_000), (seven_files, 2, 400), (one_file, 2, 777)]:
        found = select(uri, steps, actors=actors, part_rows=part_rows)
        assert len(found.catalog.rows_per_part) >= 7
        assert found.ordinals() == expected, (uri, actors, part_rows)


def test_random_depends_on_the_seed_alone_and_keeps_its_budget(select: Select, one_file: str, seven_files: str) -> None:
    num_pairs = NUM_CAPTIONS + len(ODD_CAPTIONS)
    draws = {seed: select(one_file, {"random": {"keep_fraction": 0.37, "seed": seed}}).ordinals() for seed in (0, 1)}
    assert select(seven_files, {"random": {"keep_fraction": 0.37, "seed": 0}}, part_rows=500).ordinals() == draws[0]
    assert len(draws[0]) == len(draws[1]) == int(num_pairs * 0.37)
    both = len(set(draws[0]) & set(draws[1])) / len(draws[0])
    assert 0.3 < both < 0.44, "two seeds agree as often as chance has it"


def test_a_second_step_sees_the_pairs_that_the_first_one_kept(
    select: Select,
    seven_files: str,
    captions: list[str | None],
    scores: list[float],
) -> None:
    first = {"wfpp": {"keep_fraction": 0.5}}
    steps = {
        **first,
        "second": {"method": "wfpp", "keep_fraction": 0.4},
        "last": {"method": "random", "keep_fraction": 0.5},
    }
    survivors = oracle_kept(scores, 0.5)
    again = oracle_kept(oracle_scores([captions[i] for i in survivors]), 0.4)
    found = select(seven_files, steps)
    assert found.ordinals(-2) == [survivors[i] for i in again]
    assert set(found.ordinals()) < set(found.ordinals(-2))
    assert len(found.ordinals()) == int(len(again) * 0.5)


def test_all_keeps_everything(select: Select, one_file: str, captions: list[str | None]) -> None:
    assert select(one_file, {"all": {}}).ordinals() == list(range(len(captions)))


WORKED = [
    *["a dog on a beach"] * 6,
    *["a cat"] * 5,
    *["a photo of a dog"] * 4,
    *["A photo of a zebra!"] * 2,
    "zebra",
    "",
    "the the the the the",
]


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        (
            1e-7,
            {
                19: 0.001205388123,
                6: 0.0008547097704,
                0: 0.0008114951393,
                11: 0.0008114951393,
                15: 0.0005343023951,
                17: 0.0,
            },
        ),
        (1e-2, {6: 0.2400672148, 19: 0.1819854733, 0: 0.1561866495, 15: 0.1166387397}),
    ],
)
def test_the_worked_example(select: Select, tmp_path: Path, t: float, expected: dict[int, float]) -> None:
    uri = write_table(tmp_path / "worked", WORKED)
    found = select(uri, {"wfpp": {"keep_fraction": 0.5, "t": t}})
    scored = next(stage.artifact for stage in found.stages if stage.artifact.kind == "scores")
    scores = read_scores(scored, 0).tolist()
    for position, score in expected.items():
        assert scores[position] == pytest.approx(score, rel=1e-9), WORKED[position]
    assert scores[18] == -math.inf
    words = next(stage.artifact for stage in found.stages if stage.artifact.kind == "words")
    assert words.totals["kept_occurrences"] == 73
    kept = {1e-7: [19, *range(6, 11), 0, 1, 2, 3], 1e-2: [*range(6, 11), 19, 0, 1, 2, 3]}[t]
    assert found.ordinals() == sorted(kept), "ties go by position"


def test_a_captionless_pair_is_pruned_first(ray_cluster: str, tmp_path: Path) -> None:
    pairs = make_pairs(40)
    silent = {3, 20, 39}
    pairs = [pair if i not in silent else type(pair)(pair.key, None, pair.image) for i, pair in enumerate(pairs)]
    uri = write_tars(tmp_path / "tars", pairs, num_shards=2)
    selection = {"steps": ["wfpp"], "wfpp": {"keep_fraction": 37 / 40, "min_count": 2}}
    found = build_selection(config_of({"format": "webdataset", "uri": uri}, tmp_path / "store", selection=selection))
    assert found.ordinals() == sorted(set(range(40)) - silent)


def mtimes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_complete_artifacts_are_reused(ray_cluster: str, captions: list[str | None], tmp_path: Path) -> None:
    uri, store = write_table(tmp_path / "table", captions[:300], num_files=2), tmp_path / "store"

    def run(keep_fraction: float) -> Selected:
        selection = {"steps": ["wfpp"], "wfpp": {"keep_fraction": keep_fraction}}
        return build_selection(config_of({"format": "table", "uri": uri}, store, selection=selection))

    first = run(0.5)
    before = mtimes(store)
    assert [stage.artifact for stage in run(0.5).stages] == [stage.artifact for stage in first.stages]
    assert mtimes(store) == before
    other = run(0.8)
    after = mtimes(store)
    assert {name: after[name] for name in before} == before, "catalog, counts, words and scores are as they were"
    assert {name.split("/")[0] for name in set(after) - set(before)} == {"keep"}
    assert set(first.ordinals()) < set(other.ordinals())


def test_the_typed_select_and_export_give_the_oracles_list(
    run_command: Shell,
    seven_files: str,
    scores: list[float],
    tmp_path: Path,
) -> None:
    done = run_command(
        f"python -m orchestrator select +exp=wfpp source=table source.uri={seven_files} "
        "selection.wfpp.keep_fraction=0.5 out=OUT && python -m orchestrator export run=OUT to=kept.parquet",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    kept = oracle_kept(scores, 0.5)
    table = pq.read_table(tmp_path / "kept.parquet")
    # the URL has the ordinal
    assert [int(url.rsplit("/", 1)[1]) for url in table["url"].to_pylist()] == kept
    assert table["score"].to_pylist() == [scores[i] for i in kept]


def test_word_counts_merged_in_pieces_equal_those_merged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MERGE_ROWS", 20)
    tables = [count_words(pl.Series([[str(n % 37 * table % 11), "same"] for n in range(50)])) for table in range(30)]
    total = words.WordSum()
    assert total.table().equals(merge_counts([]))
    for table in tables:
        total.add(table)
    assert total.table().equals(merge_counts(tables))
