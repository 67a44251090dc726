"""A few seconds of what `make fuzz` does for longer, always with the same damages."""

import random

import pytest

from pipeline.decoder_process import Decoder
from tests.fuzz.decode import SETTINGS, fuzz, load_seeds, made_seeds, mutate


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("folder", [None, "odd"], ids=["made", "odd files"])
def test_damaged_files_end_as_pictures_or_as_verdicts(folder, request):
    odd = request.getfixturevalue("shared") / "odd" if folder else None
    decoder = Decoder(SETTINGS)
    outcome = fuzz(decoder, load_seeds(odd), 7, lambda number: number < 1500, None)
    decoder.close()
    assert outcome.escapes == 0
    assert outcome.labelled + outcome.quarantined == outcome.mutations == 1500
    # Damage that only ever, or never, breaks a file would search for nothing.
    assert min(outcome.labelled, outcome.quarantined) > 300
    assert {"corrupt", "not_an_image"} <= set(outcome.codes)


def test_damages_repeat_by_seed():
    seeds = made_seeds()
    one, two, other = (mutate(seeds, random.Random(seed)) for seed in ("1", "1", "2"))
    assert one == two != other


def test_what_escapes_is_counted_and_kept(tmp_path):
    class Broken(Decoder):
        def __call__(self, data):
            raise RuntimeError("out of bounds")

    outcome = fuzz(Broken(SETTINGS), [b"seed"], 0, lambda number: number < 3, tmp_path / "kept")
    assert (outcome.escapes, outcome.labelled, outcome.quarantined) == (3, 0, 0)
    assert len(list((tmp_path / "kept").iterdir())) == 3
