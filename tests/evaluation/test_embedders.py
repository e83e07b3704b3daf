"""The same numbers wherever a set is embedded: in this process without Ray, on several ranks, and in actors."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clip import model, zero_shot
from orchestrator.config import EvaluationConfig
from orchestrator.data.image_decode import ImageDecoder
from orchestrator.errors import UserError
from orchestrator.evaluation import embed
from orchestrator.evaluation.embed import Clips, InProcess, Ranks, measure, read_here
from orchestrator.evaluation.image_reader import Rows
from orchestrator.evaluation.models import Models
from orchestrator.evaluation.on_ray import OnRay, split_batches
from orchestrator.evaluation.sets import EvaluationSet, open_set
from tests.support.pools import TINY_MODEL, make_pairs, torn, write_tars, write_zero_shot

ROOT = Path(__file__).parents[2]
SETTINGS = EvaluationConfig(batch_size=5)
Sets = dict[str, EvaluationSet]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    sizes: dict[str, Any] = {"image_size": None, "context_length": None}
    model.save(model.build(name=None, config=TINY_MODEL["config"], pretrained=None, seed=0, **sizes), folder)
    return folder


@pytest.fixture(scope="module")
def clips(checkpoint: Path) -> Clips:
    return {"one": model.load(str(checkpoint))}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    """A classification set in one tar, and pairs in four tars of other sizes than batches, one of them damaged."""
    folder, pairs = tmp_path_factory.mktemp("sets"), make_pairs(33)
    pairs[6] = type(pairs[6])(**{**vars(pairs[6]), "image": torn(pairs[6].image or b"")})
    captioned = write_tars(folder / "pairs", pairs, num_shards=4)
    return {
        "zero_shot": open_set(str(write_zero_shot(folder, range(24))), needs_classes=True),
        "retrieval": open_set(captioned, needs_classes=False),
    }


@pytest.fixture(scope="module")
def alone(clips: Clips, sets: Sets) -> dict[str, dict[str, Any]]:
    return measure(InProcess(clips, SETTINGS), sets)


class Exchange:
    """What ranks in threads exchange: the values of all of them, in order."""

    def __init__(self, num: int):
        self.values: list[Any] = [None] * num
        self.barrier = threading.Barrier(num, timeout=120)

    def ranks(self, rank: int) -> Ranks:
        return Ranks(rank, len(self.values), lambda value: self.gather(rank, value))

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        found = list(self.values)
        # no rank writes its next value before all have read these
        self.barrier.wait()
        return found


def on_ranks(num: int, call: Callable[[Ranks], Any]) -> list[Any]:
    exchange = Exchange(num)
    with ThreadPoolExecutor(num) as threads:
        return list(threads.map(lambda rank: call(exchange.ranks(rank)), range(num)))


def of_every(ranks: Ranks, dataset: EvaluationSet, decoder: ImageDecoder, batch_size: int) -> Iterator[Rows]:
    for number, batch in enumerate(read_here(dataset, decoder, batch_size)):
        # the first rank gets fewer batches than the others
        if number % (ranks.num + 1) % ranks.num == ranks.rank:
            yield batch


def test_batches_cross_the_borders_of_tars(clips: Clips, sets: Sets, alone: dict[str, dict[str, Any]]) -> None:
    sizes = [len(batch["valid"]) for batch in read_here(sets["retrieval"], embed.decoder_of("one", clips["one"]), 5)]
    assert sizes == [5, 5, 5, 5, 5, 5, 3]
    assert (alone["one"]["retrieval"]["num_pairs"], alone["one"]["retrieval"]["skipped"]) == (32, 1)
    assert alone["one"]["zero_shot"]["num_images"] == 24


@pytest.mark.parametrize("num", [2, 3, 9])
def test_the_number_of_ranks_changes_nothing(
    num: int, clips: Clips, sets: Sets, alone: dict[str, dict[str, Any]]
) -> None:
    def measured(ranks: Ranks) -> dict[str, dict[str, Any]]:
        def read(*of_set: Any) -> Iterator[Rows]:
            return of_every(ranks, *of_set)

        return measure(InProcess(clips, SETTINGS, read=read, ranks=ranks), sets)

    assert on_ranks(num, measured) == [alone] * num


def test_classes_are_embedded_once_and_shared_between_ranks(
    clips: Clips, sets: Sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, count = zero_shot.encode_texts, list[int]()

    def counted(clip: Any, prompts: Any, **options: Any) -> Any:
        count.append(len(prompts))
        return texts(clip, prompts, **options)

    monkeypatch.setattr(zero_shot, "encode_texts", counted)
    names, templates = sets["zero_shot"].class_names, ("a {c}", "the {c}")

    def weights(ranks: Ranks) -> Any:
        embedder = InProcess(clips, SETTINGS, ranks=ranks)
        found = embedder.classes(names, templates)
        assert embedder.classes(list(names), list(templates)) is found
        return found["one"]

    (expected,) = on_ranks(1, weights)
    assert sum(count) == len(names) * 2
    for found in on_ranks(3, weights):
        assert found.equal(expected)
    assert sum(count) == len(names) * 2 * 2


def test_an_error_of_one_rank_is_raised_by_all(clips: Clips, sets: Sets) -> None:
    def measured(ranks: Ranks) -> str:
        def read(*of_set: Any) -> Iterator[Rows]:
            yield from of_every(ranks, *of_set)
            if ranks.rank == 1:
                raise UserError("the second tar is gone")

        with pytest.raises(UserError) as raised:
            measure(InProcess(clips, SETTINGS, read=read, ranks=ranks), sets)
        return str(raised.value)

    assert on_ranks(3, measured) == ["the second tar is gone"] * 3


@pytest.mark.usefixtures("ray_cluster")
def test_actors_give_the_numbers_of_one_process(checkpoint: Path, sets: Sets, alone: dict[str, dict[str, Any]]) -> None:
    assert measure(OnRay(Models(references={"one": str(checkpoint)}), SETTINGS), sets) == alone


@pytest.mark.usefixtures("ray_cluster")
def test_ranks_share_one_pass_of_reading_tasks(clips: Clips, sets: Sets, alone: dict[str, dict[str, Any]]) -> None:
    def measured(ranks: Ranks) -> dict[str, dict[str, Any]]:
        def read(*of_set: Any) -> Iterator[Rows]:
            return split_batches(*of_set, ranks=ranks, from_first=lambda value: ranks.gather(value)[0])

        return measure(InProcess(clips, SETTINGS, read=read, ranks=ranks), sets)

    assert on_ranks(2, measured) == [alone] * 2


def test_bf16_changes_features_a_little_and_the_fingerprint(clips: Clips, sets: Sets) -> None:
    from orchestrator.evaluation.sets import measured_on

    half = SETTINGS.model_copy(update={"precision": "bf16"})
    found = [
        next(
            iter(InProcess(clips, settings).embed(sets["retrieval"], lambda one, s=settings: embed._Retrieval(s, one)))
        )
        for settings in (SETTINGS, half)
    ]
    full, rounded = (one["image_features"][0] for one in found)
    assert not (full == rounded).all()
    assert ((full * rounded).sum(axis=1) > 0.999).all()
    assert measured_on(SETTINGS, sets) == {key: measured_on(half, sets)[key] for key in ("templates", "sets")}
    assert measured_on(half, sets)["precision"] == "bf16"


PROGRAM = """
import sys
sys.modules["ray"] = None
from pathlib import Path
from orchestrator.clip import model
from orchestrator.config import EvaluationConfig
from orchestrator.evaluation.embed import InProcess, measure
from orchestrator.evaluation.sets import open_set
clips = {"one": model.load(sys.argv[1])}
sets = {"retrieval": open_set(sys.argv[2], needs_classes=False)}
found = measure(InProcess(clips, EvaluationConfig(batch_size=5)), sets)
print(found["one"]["retrieval"])
"""


def test_a_set_is_measured_without_ray(checkpoint: Path, sets: Sets, alone: dict[str, dict[str, Any]]) -> None:
    folder = sets["retrieval"].shard_uris[0].rsplit("/", 1)[0]
    command = [sys.executable, "-c", PROGRAM, str(checkpoint), folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.strip() == str(alone["one"]["retrieval"]), done.stderr
