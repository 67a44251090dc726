"""What is done, what is left, and of which files the next version consists."""

import pyarrow as pa
import pytest

from pipeline import planner as planner_module
from pipeline.fingerprints import Fingerprints
from pipeline.parts import merge_embeddings, merge_images, read_row_group, write_images, write_part
from pipeline.planner import Outcome, Planner
from pipeline.stages.intake import ReuseProposals
from schemas.annotation import (
    ANNOTATED,
    ANNOTATED_AND_EMBEDDED,
    HUMAN,
    INVENTORY,
    LABELLED,
    QUARANTINED,
    image_id,
    table_from_rows,
)
from schemas.errors import SettingsError
from tests.classify import FINGERPRINTS


def inventory(**etags):
    rows = [{"image_id": image_id(uri), "uri": uri, "etag": etag} for uri, etag in etags.items()]
    return table_from_rows(rows, INVENTORY)


def row(uri, etag="1", fingerprint="l", code=None, embedded=False):
    found = {
        "image_id": image_id(uri),
        "uri": uri,
        "etag": etag,
        "status": QUARANTINED if code else LABELLED,
        "error": code and {"stage": "decode", "code": code, "message": "why"},
        "fingerprint": fingerprint,
        "run_id": "run",
        "annotator": "model",
        "n_proposals": 0,
        "segments": [],
    }
    if embedded:
        found |= {"proposal_fingerprint": embedded[0], "embedding_fingerprint": embedded[1]}
        found |= {"clip_embeds": b""}
    return found


def images(dataset, *rows):
    return write_images(dataset, "run", table_from_rows(rows, ANNOTATED))


def part_of(dataset, *rows, run_id="run"):
    return write_part(dataset, run_id, table_from_rows(rows, ANNOTATED_AND_EMBEDDED))


class Plan:
    """A planner with short words for its calls."""

    def __init__(self, dataset, planner, listed):
        self.dataset, self.planner = dataset, planner
        self.repeated = planner.add_inventory([listed])

    def done(self, *files, origin="published", **settings):
        self.planner.add_done(self.dataset, files, (), origin, **settings)
        return self

    def left(self):
        return self.planner.left(self.dataset, "next")

    def names(self, units):
        """The uris of the units, in order."""
        found = []
        for unit in units.table.to_pylist():
            rows = read_row_group(self.dataset, unit["path"], unit["row_group"]).to_pylist()
            wanted = unit["image_ids"]
            found += [r["uri"] for r in rows if wanted is None or r["image_id"] in wanted]
        assert len(found) == units.images
        return found

    @property
    def to_fetch(self):
        return self.names(self.left().fetch)


@pytest.fixture
def plan(tmp_path):
    planners = []

    def build(listed, fingerprints=FINGERPRINTS, keeps=None):
        planners.append(Planner(fingerprints, 128, 1, keeps))
        return Plan(str(tmp_path / "labels"), planners[-1], listed)

    yield build
    for planner in planners:
        planner.__exit__(None, None, None)


@pytest.fixture
def dataset(tmp_path):
    return str(tmp_path / "labels")


def test_everything_is_left_of_a_new_source_and_repeats_count_once(plan):
    listed = pa.concat_tables([inventory(b="1", a="1"), inventory(a="1")])
    made = plan(listed)
    assert (made.to_fetch, made.repeated, made.planner.images) == (["a", "b"], 1, 2)


def test_only_new_and_changed_images_are_left_and_gone_ones_are_removed(plan, dataset):
    file = images(dataset, row("same"), row("changed"), row("gone"))
    made = plan(inventory(same="1", changed="2", new="1")).done(file)
    assert made.to_fetch == ["changed", "new"]
    assert made.planner.removed() == 1


@pytest.mark.parametrize(
    "fingerprint, is_done",
    [("l", True), ("d", False), ("e", False), ("old", False)],
    ids=["label", "decode", "embedding", "other"],
)
def test_a_labelled_image_is_done_under_the_fingerprint_of_labels(
    plan, dataset, fingerprint, is_done
):
    made = plan(inventory(a="1")).done(images(dataset, row("a", fingerprint=fingerprint)))
    assert (made.to_fetch == []) is is_done


@pytest.mark.parametrize("fingerprint, is_done", [("d", True), ("p", True), ("old", False)])
def test_a_bad_image_is_done_while_what_judged_it_is_the_same(plan, dataset, fingerprint, is_done):
    file = images(dataset, row("a", fingerprint=fingerprint, code="corrupt"))
    assert (plan(inventory(a="1")).done(file).to_fetch == []) is is_done
    assert plan(inventory(a="1")).done(file, retried=None).to_fetch == ["a"]


def test_an_image_whose_store_did_not_answer_is_left_for_the_next_run_only(plan, dataset):
    file = images(dataset, row("a", fingerprint="d", code="unavailable"))
    assert plan(inventory(a="1")).done(file).to_fetch == ["a"]
    assert plan(inventory(a="1")).done(file, origin="adopted").to_fetch == ["a"]
    own = plan(inventory(a="1")).done(file, origin="own", retried=None)
    assert own.to_fetch == []
    assert own.planner.own() == 1


def test_a_list_without_etags_cannot_see_a_change(plan, dataset):
    assert plan(inventory(a=None)).done(images(dataset, row("a", etag="7"))).to_fetch == []
    assert plan(inventory(a="7")).done(images(dataset, row("a", etag=None))).to_fetch == ["a"]


def test_whole_large_files_stay_and_the_rest_is_merged(plan, dataset):
    large = images(dataset, *(row(f"large{n}") for n in range(4)))
    partly = images(dataset, row("kept"), row("gone"))
    small = [images(dataset, row(f"small{n}")) for n in range(3)]
    listed = inventory(
        **{f"large{n}": "1" for n in range(4)}, kept="1", **{f"small{n}": "1" for n in range(3)}
    )
    made = plan(listed).done(large, partly, *small)
    assert made.left().images == 0
    outcome = made.planner.outcome(rows_per_file=4)
    assert outcome.kept == [large]
    (shares,) = outcome.merges
    merged = merge_images(dataset, "next", shares)
    assert merged.rows == 4
    table = read_row_group(dataset, merged.path, 0)
    assert sorted(table["uri"].to_pylist()) == ["kept", "small0", "small1", "small2"]
    assert table["image_id"].to_pylist() == sorted(table["image_id"].to_pylist())


def test_a_lone_small_file_is_not_written_again(plan, dataset):
    file = images(dataset, row("a"))
    made = plan(inventory(a="1")).done(file)
    made.left()
    outcome = made.planner.outcome(1000)
    assert (outcome.kept, outcome.merges) == ([file], [])


def test_of_two_rows_of_an_image_the_later_file_wins(plan, dataset):
    first, second = images(dataset, row("a"), row("b")), images(dataset, row("a") | {"width": 1})
    made = plan(inventory(a="1", b="1")).done(first, origin="adopted").done(second)
    made.left()
    (shares,) = made.planner.outcome(1000).merges
    merged = merge_images(dataset, "next", shares)
    rows = read_row_group(dataset, merged.path, 0).to_pylist()
    assert {r["uri"]: r["width"] for r in rows} == {"a": 1, "b": None}


def test_an_image_twice_in_one_file_is_merged_to_one_row(plan, dataset):
    file = images(dataset, row("a"), row("a"), row("b"))
    made = plan(inventory(a="1", b="1")).done(file)
    made.left()
    outcome = made.planner.outcome(1)
    assert outcome.kept == []
    assert sum(merge_images(dataset, "next", shares).rows for shares in outcome.merges) == 2


def test_a_share_names_the_fewer_rows_those_that_count_or_the_others(plan, dataset):
    many = images(dataset, row("a"), row("b"), row("c"), row("old", fingerprint="old"), row("gone"))
    few = images(dataset, row("d"), row("e", fingerprint="old"), row("f", fingerprint="old"))
    twice = images(dataset, row("g"), row("g"), row("h"))
    listed = inventory(**dict.fromkeys("abcdefgh", "1"), old="1")
    made = plan(listed).done(many, few, twice)
    made.left()
    (shares,) = made.planner.outcome(1000).merges
    named = [(share.image_ids, share.without) for share in shares]
    assert named == [
        (None, {image_id("old"), image_id("gone")}),
        ({image_id("d")}, frozenset()),
        (None, frozenset()),
    ]
    merged = merge_images(dataset, "next", shares)
    rows = read_row_group(dataset, merged.path, 0)["uri"].to_pylist()
    assert sorted(rows) == list("abcdgh")


def test_files_keep_their_numbers_however_few_are_read_at_once(plan, dataset, monkeypatch):
    monkeypatch.setattr(planner_module, "_FILES_AT_ONCE", 1)
    parts = [part_of(dataset, row(uri, embedded=("p", "e"))) for uri in "ab"]
    files, embeddings = [part.images for part in parts], [part.embeddings for part in parts]
    made = plan(inventory(a="1", b="1"))
    made.planner.add_done(dataset, files, embeddings, "published")
    made.left()
    assert made.planner.outcome(1).kept == files
    (merge,) = made.planner.embeddings().merges
    assert [share.path for share in merge] == [file.path for file in embeddings]


def test_small_files_of_embeddings_become_one_of_the_rows_of_use(plan, dataset, monkeypatch):
    def stored(*rows):
        return part_of(dataset, *rows).embeddings

    today, old = ("p", "e"), ("p", "old")
    files = [
        stored(row("a", embedded=old), row("b", embedded=today)),
        stored(row("both", embedded=today) | {"mask_picture": b""}),
        stored(row("a", embedded=today), row("gone", embedded=today)),
        stored(row("b", etag="0", embedded=today)),  # of other content
        stored(row("both", embedded=today)),
        stored(row("c", embedded=old)),  # its proposals are of use
    ]
    listed = inventory(a="1", b="1", both="1", c="1")
    made = plan(listed)
    made.planner.add_done(dataset, [], files, "published")
    found = made.planner.embeddings()
    assert found.kept == [files[1]]  # no other is compact
    (merge,) = found.merges
    assert [(share.path, share.image_ids) for share in merge] == [
        (files[0].path, {image_id("b")}),
        (files[2].path, {image_id("a")}),
        (files[4].path, None),
        (files[5].path, None),
    ]
    merged = merge_embeddings(dataset, "next", merge)
    rows = read_row_group(dataset, merged.path, 0).to_pylist()
    assert sorted((one["uri"], one["embedding_fingerprint"]) for one in rows) == [
        ("a", "e"), ("b", "e"), ("both", "e"), ("c", "old"),
    ]  # fmt: skip
    assert (merged.encoding, merged.rows, merged.rows_per_group) == ("exact", 4, 8)
    # As the next run finds them; and large files stay as they are.
    again = plan(listed)
    again.planner.add_done(dataset, [], [*found.kept, merged], "published")
    assert again.planner.embeddings() == Outcome([files[1], merged])
    monkeypatch.setattr(planner_module, "_MERGED_BYTES", files[0].size_bytes)
    assert made.planner.embeddings() == Outcome([files[i] for i in (0, 1, 2, 4, 5)])


@pytest.mark.parametrize("fresh", [True, False], ids=["done", "recalled"])
def test_what_outgrows_the_memory_spills(fresh):
    # Half of this a join and its groups held at once, and a join of two tables with a third.
    count = 500_000
    with Planner(FINGERPRINTS, 32, 1, "exact") as planner:
        planner._database.execute(
            "insert into inventory select md5(range::varchar), 'uri', md5(range::varchar), 1 "
            f"from range({count})"
        )
        planner._database.execute(
            f"insert into rows select 0, image_id, etag, {fresh}, true from inventory"
        )
        planner._database.execute(
            "insert into embedded "
            "select 0, 0, image_id, etag, true, true, true, true from inventory"
        )
        found = planner.preview(1)
        tables = {name for (name,) in planner._database.execute("show tables").fetchall()}
    assert (found.fetch, found.relabel) == (0, 0 if fresh else count)
    assert "joined" not in tables


def test_too_little_memory_names_the_setting():
    with (
        pytest.raises(SettingsError, match=r"^plan_memory_mb 4 is too little .*: give more$"),
        Planner(FINGERPRINTS, 4, 1) as planner,
    ):
        planner._database.execute("select list(range) from range(1000000)")


EMBEDDED_ROWS = [
    row("both", fingerprint="old", embedded=("p", "e")),
    row("proposals", fingerprint="old", embedded=("p", "old")),
    row("neither", fingerprint="old", embedded=("old", "old")),
    row("changed", etag="0", fingerprint="old", embedded=("p", "e")),
]


def with_embeddings(plan, dataset, *rows, **settings):
    part = part_of(dataset, *rows)
    listed = inventory(**dict.fromkeys(("both", "proposals", "neither", "changed"), "1"))
    made = plan(listed, **settings)
    made.planner.add_done(dataset, [part.images], [part.embeddings], "published")
    return made, part


def test_what_is_stored_is_used_again(plan, dataset):
    made, part = with_embeddings(plan, dataset, *EMBEDDED_ROWS)
    work = made.left()
    assert made.names(work.relabel) == ["both"]
    assert made.names(work.reclassify) == ["proposals"]
    assert sorted(made.names(work.fetch)) == ["changed", "neither"]
    assert (work.images, work.recalled) == (4, 2)
    assert made.planner.embeddings() == Outcome([part.embeddings])


def test_images_to_classify_again_are_fetched_with_what_signs_them(plan, dataset):
    rows = [row(uri, fingerprint="old", embedded=("p", "old")) for uri in "abcd"]
    part = part_of(dataset, *rows)
    signed = [
        listed | {"signature": None if listed["uri"] == "b" else f"sig={listed['uri']}"}
        for listed in inventory(**dict.fromkeys("cba", "1")).to_pylist()
    ]
    made = plan(table_from_rows(signed, INVENTORY))
    made.planner.add_done(dataset, [part.images], [part.embeddings], "published")
    asked = []

    class Fetch:
        def each(self, images):
            asked.extend(images.to_pylist())
            return iter(())

    (unit,) = made.left().reclassify.table.to_pylist()
    # In whatever order the rows of the file are.
    for order in (slice(None), slice(None, None, -1)):
        turned = {name: unit[name][order] for name in ("image_ids", "signatures")}
        assert list(ReuseProposals(dataset, Fetch())(unit | turned)) == []
    found = {(image["uri"], image["signature"]) for image in asked}
    assert found == {("a", "sig=a"), ("b", None), ("c", "sig=c")} and len(asked) == 6


def test_embeddings_of_no_use_leave_the_version(plan, dataset):
    today = Fingerprints(decode="d", proposal="other", embedding="other", label="other")
    made, _ = with_embeddings(plan, dataset, *EMBEDDED_ROWS, fingerprints=today)
    assert made.left().recalled == 0
    assert made.planner.embeddings() == Outcome()


def test_who_keeps_embeddings_wants_them_of_every_image(plan, dataset):
    file = images(dataset, row("both"), row("bad", fingerprint="d", code="corrupt"))
    listed = inventory(both="1", bad="1")
    assert plan(listed).done(file).left().images == 0
    made = plan(listed, keeps="exact").done(file)
    assert made.names(made.left().fetch) == ["both"]
    part = part_of(dataset, row("both", embedded=("p", "e")), run_id="own")
    made.planner.add_done(dataset, [part.images], [part.embeddings], "own")
    assert made.left().images == 0


def compact(**changes):
    return row("both", embedded=("p", "e"), **changes) | {"mask_picture": b""}


def test_compact_embeddings_count_only_for_who_asks_for_them(plan, dataset):
    old = compact(fingerprint="old")
    made, part = with_embeddings(plan, dataset, old, keeps="compact")
    assert made.names(made.left().relabel) == ["both"]
    for keeps in (None, "exact"):
        made, part = with_embeddings(plan, dataset, old, keeps=keeps)
        work = made.left()
        assert work.recalled == 0 and "both" in made.names(work.fetch)
        # Another run, which asks for them, will find them.
        assert made.planner.embeddings() == Outcome([part.embeddings])


def old_compact(uris):
    return [
        row(uri, fingerprint="old", embedded=("p", "e")) | {"mask_picture": b""} for uri in uris
    ]


@pytest.mark.parametrize("gone", [0, 1])
def test_units_name_no_image_where_a_whole_row_group_is_taken(plan, dataset, gone):
    # Row groups of 256 rows: more than eight, which exact embeddings have.
    uris = [f"{number:03}" for number in range(266)]
    part = part_of(dataset, *old_compact(uris))
    last = max(uris, key=image_id)  # of the second row group
    listed = [uri for uri in uris if not (gone and uri == last)]
    made = plan(inventory(**dict.fromkeys(listed, "1")), keeps="compact")
    made.planner.add_done(dataset, [part.images], [part.embeddings], "published")
    relabel = made.left().relabel
    first, second = relabel.table.to_pylist()
    assert (first["row_group"], second["row_group"]) == (0, 1)
    assert first["image_ids"] is None
    assert second["image_ids"] == (sorted(map(image_id, listed))[256:] if gone else None)
    assert sorted(made.names(relabel)) == listed


def test_images_of_a_whole_row_group_are_classified_again_without_signatures(plan, dataset):
    rows = [row(uri, fingerprint="old", embedded=("p", "old")) for uri in "ab"]
    part = part_of(dataset, *rows)
    made = plan(inventory(a="1", b="1"))
    made.planner.add_done(dataset, [part.images], [part.embeddings], "published")
    (unit,) = made.left().reclassify.table.to_pylist()
    asked = []

    class Fetch:
        def each(self, images):
            asked.extend(images.to_pylist())
            return iter(())

    assert unit["image_ids"] is None
    assert list(ReuseProposals(dataset, Fetch())(unit)) == []
    assert sorted((image["uri"], image["signature"]) for image in asked) == [
        ("a", None),
        ("b", None),
    ]


def test_a_file_that_can_be_labelled_again_goes_before_a_newer_one(plan, dataset):
    made = plan(inventory(both="1"))
    parts = [
        part_of(dataset, row("both", fingerprint="old", embedded=("p", embedding)))
        for embedding in ("e", "old")
    ]
    files, embeddings = [part.images for part in parts], [part.embeddings for part in parts]
    made.planner.add_done(dataset, files, embeddings, "published")
    work = made.left()
    (unit,) = work.relabel.table.to_pylist()
    assert work.reclassify.images == 0 and unit["path"] == embeddings[0].path


def test_exact_embeddings_are_labelled_again_before_compact_ones(plan, dataset):
    exact = row("both", fingerprint="old", embedded=("p", "e"))
    rows = [exact, compact(fingerprint="old")]
    parts = [part_of(dataset, one) for one in rows]
    assert [part.embeddings.encoding for part in parts] == ["exact", "compact"]
    made = plan(inventory(both="1"), keeps="compact")
    files, embeddings = [part.images for part in parts], [part.embeddings for part in parts]
    made.planner.add_done(dataset, files, embeddings, "published")
    (unit,) = made.left().relabel.table.to_pylist()
    assert unit["path"] == embeddings[0].path


def test_embeddings_of_another_content_are_not_those_of_an_image(plan, dataset):
    part = part_of(dataset, row("a", embedded=("p", "e")))
    made = plan(inventory(a="2"), keeps="exact")
    file = images(dataset, row("a", etag="2"))
    made.planner.add_done(dataset, [file], [part.embeddings], "published")
    assert made.to_fetch == ["a"]


def test_embeddings_whose_proposals_are_of_use_stay_in_the_version(plan, dataset):
    part = part_of(dataset, row("a", embedded=("p", "old")))
    made = plan(inventory(a="1"))
    made.planner.add_done(dataset, [part.images], [part.embeddings], "published")
    assert made.left().images == 0
    assert made.planner.embeddings() == Outcome([part.embeddings])


def test_labels_from_compact_embeddings_are_done_only_for_who_asks_for_them(plan, dataset):
    file = images(dataset, compact(fingerprint=FINGERPRINTS.label_of_compact))
    listed = inventory(both="1")
    assert plan(listed).done(file).to_fetch == ["both"]
    made, _ = with_embeddings(
        plan, dataset, compact(fingerprint=FINGERPRINTS.label_of_compact), keeps="compact"
    )
    assert "both" not in made.names(made.left().fetch)


def test_stored_proposals_of_unknown_content_are_labelled_but_not_classified_again(plan, dataset):
    rows = [
        row("both", etag=None, fingerprint="old", embedded=("p", "e")),
        row("proposals", etag=None, fingerprint="old", embedded=("p", "old")),
    ]
    part = part_of(dataset, *rows)
    made = plan(inventory(both=None, proposals=None))
    made.planner.add_done(dataset, [part.images], [part.embeddings], "published")
    work = made.left()
    assert made.names(work.relabel) == ["both"] and made.names(work.fetch) == ["proposals"]


def test_units_are_small_for_few_images_and_cover_all(plan, dataset):
    listed = inventory(**{f"{n:03}": "1" for n in range(21)})
    made = plan(listed)
    units = made.left().fetch
    assert len(units.table) == 3
    assert made.names(units) == [f"{n:03}" for n in range(21)]


def uncorrected(made):
    return {one.image_id: one.etag for one in made.planner.uncorrected()}


def corrections(*rows):
    names = ("image_id", "etag", "fingerprint", "bytes_sha256")
    kind = pa.schema([(name, pa.string()) for name in names])
    keys = [
        {"image_id": image_id(uri), "etag": etag, "fingerprint": fingerprint, "bytes_sha256": uri}
        for uri, etag, fingerprint in rows
    ]
    return pa.Table.from_pylist(keys, kind)


def test_of_a_corrected_image_only_the_corrected_row_of_today_is_done(plan, dataset):
    made = plan(inventory(a="1", b="1", c="1", d="2"))
    made.planner.add_corrections(
        corrections(("a", "1", "h"), ("b", "1", "h"), ("d", "1", "h"), ("gone", "1", "h"))
    )
    drawn = {"annotator": HUMAN, "fingerprint": "h"}
    made.done(images(dataset, row("a") | drawn, row("b"), row("c"), row("d") | drawn))
    # The content of d is another: a model does it.
    assert uncorrected(made) == {image_id("b"): "1"}
    assert made.to_fetch == ["b", "d"]
    made.done(images(dataset, row("b") | drawn), origin="own")
    assert uncorrected(made) == {} and made.to_fetch == ["d"]
    made.done(images(dataset, row("d", etag="2")), origin="own")
    assert made.left().images == 0 and made.planner.own() == 2


@pytest.mark.parametrize("order", [1, -1], ids=["cut short first", "published first"])
def test_a_correction_counts_under_another_etag_once_the_bytes_are_known(plan, dataset, order):
    def listed():
        made = plan(inventory(a="2", b="2", c=None))
        kept = (("a", "1", "h"), ("b", "1", "h"), ("c", "1", "h"))
        made.planner.add_corrections(corrections(*kept))
        return made

    drawn = {"annotator": HUMAN, "fingerprint": "h", "bytes_sha256": "a"}
    before = images(dataset, row("a") | drawn, row("b") | drawn, row("c") | drawn)
    made = listed().done(before)
    assert (uncorrected(made), made.to_fetch) == ({}, ["a", "b"])
    by_model = images(
        dataset,
        row("a", etag="2") | {"bytes_sha256": "a"},  # touched
        row("b", etag="2") | {"bytes_sha256": "other"},
    )
    made.done(by_model, origin="own")
    assert (uncorrected(made), made.to_fetch) == ({image_id("a"): "2"}, ["a"])
    corrected = images(dataset, row("a", etag="2") | drawn)
    made.done(corrected, origin="own")
    assert (uncorrected(made), made.to_fetch) == ({}, [])
    assert made.planner.own() == 2
    # The next run, and one after a run that was cut short before it corrected.
    assert listed().done(by_model, corrected, before).to_fetch == []
    again = listed().done(*(by_model, before)[::order])
    assert (uncorrected(again), again.to_fetch) == ({image_id("a"): "2"}, ["a"])


def test_a_correction_moves_with_the_bytes_of_its_image(plan, dataset):
    def listed():
        made = plan(inventory(**{"a": "3", "a moved": "2", "copy of b": "2", "b": "1"}))
        made.planner.add_corrections(corrections(("a", "1", "h"), ("b", "1", "h")))
        return made

    drawn = {"annotator": HUMAN, "fingerprint": "h"}
    b = images(dataset, row("b") | drawn | {"bytes_sha256": "b"})
    by_model = images(
        dataset,
        row("a", etag="3") | {"bytes_sha256": "of another"},
        row("a moved", etag="2") | {"bytes_sha256": "a"},
        row("copy of b", etag="2") | {"bytes_sha256": "b"},  # b itself is where it was
    )
    made = listed().done(b).done(by_model, origin="own")
    (moved,) = made.planner.uncorrected()
    assert (moved.image_id, moved.uri, moved.etag) == (image_id("a moved"), "a moved", "2")
    assert moved.drawn_on == image_id("a")
    corrected = images(dataset, row("a moved", etag="2") | drawn | {"bytes_sha256": "a"})
    made.done(corrected, origin="own")
    assert (uncorrected(made), made.to_fetch) == ({}, [])
    for order in (1, -1):
        again = listed().done(*(b, by_model, corrected)[::order])
        assert (uncorrected(again), again.to_fetch) == ({}, [])


def test_a_corrected_row_under_other_class_names_is_made_again(plan, dataset):
    made = plan(inventory(a="1"))
    made.planner.add_corrections(corrections(("a", "1", "names of today")))
    made.done(images(dataset, row("a") | {"annotator": HUMAN, "fingerprint": "h"}))
    assert uncorrected(made) == {image_id("a"): "1"}


def test_a_corrected_image_needs_no_embeddings(plan, dataset):
    made = plan(inventory(a="1"), keeps="exact")
    made.planner.add_corrections(corrections(("a", "1", "h")))
    made.done(images(dataset, row("a") | {"annotator": HUMAN, "fingerprint": "h"}))
    assert made.left().images == 0


def test_a_drawn_row_without_its_correction_is_not_done(plan, dataset):
    made = plan(inventory(a="1"))
    made.done(images(dataset, row("a") | {"annotator": HUMAN, "fingerprint": "h"}))
    assert made.to_fetch == ["a"]
