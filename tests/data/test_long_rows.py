"""Rows of 4,096 tokens with documents shorter and longer than a row: packed is the same as each part alone."""

import numpy as np
import pytest
import torch
from text_support import Texts, recipe_of

from ouro_lab.data import ByteTokenizer, TextData
from ouro_lab.data.packing import PackedRows
from ouro_lab.data.tokenise import tokenise
from ouro_lab.model import LoopedTransformer, ModelConfig

LENGTH, EOS = 4096, 22
SIZES = [300, 5000, 1, 2500, 9000, 40, 700]  # the second and the fifth are longer than a row


@pytest.fixture(scope="module")
def rows() -> PackedRows:
    rng = np.random.default_rng(0)
    parts = [[EOS], *(part for size in SIZES for part in (rng.integers(0, EOS, size), [EOS]))]
    return PackedRows(np.concatenate(parts).astype(np.uint16), LENGTH, EOS, mask_documents=True)


def test_every_token_is_a_target_once_and_rows_follow_one_another(rows: PackedRows) -> None:
    arrays = rows.read(np.arange(rows.all))
    targets = arrays["targets"].ravel()
    assert targets[targets != -100].tolist() == rows.stream[1:].tolist()
    assert (arrays["tokens"][1:, 0] == arrays["targets"][:-1, -1]).all()


def test_a_row_s_documents_are_what_eos_opens_also_within_a_long_one(rows: PackedRows) -> None:
    documents = rows.read(np.arange(rows.full))["documents"]
    opened = np.cumsum(rows.stream[:-1] == EOS)  # which document each input belongs to, over the whole stream
    for row, found in enumerate(documents):
        mine = opened[row * LENGTH : (row + 1) * LENGTH]
        assert (found == found[0] + mine - mine[0]).all()
    whole_row = [len(set(found.tolist())) == 1 for found in documents]
    assert any(whole_row) and not all(whole_row)  # a row that is all within one document, and others


@pytest.mark.parametrize("row", [0, 1, 2, 3])
def test_states_of_a_packed_row_are_those_of_its_parts_alone(row: int, rows: PackedRows) -> None:
    torch.manual_seed(0)
    model = LoopedTransformer(ModelConfig(23, layers=1, loops=2, width=8, heads=2, attention="sdpa")).eval()
    arrays = {key: torch.from_numpy(values) for key, values in rows.read(np.array([row])).items()}
    with torch.no_grad():
        packed = [state.hidden for state in model.loop_states(arrays["tokens"], arrays["documents"])]
        sizes = torch.unique_consecutive(arrays["documents"][0], return_counts=True)[1].tolist()
        assert sum(sizes) == LENGTH
        for part, start in zip(arrays["tokens"].split(sizes, dim=1), np.cumsum([0, *sizes]), strict=False):
            for together, alone in zip(packed, model.loop_states(part), strict=True):
                torch.testing.assert_close(together[:, start : start + part.shape[1]], alone.hidden, rtol=0, atol=2e-3)


def test_text_data_makes_long_rows_over_shard_borders() -> None:
    texts = [f"{i} " + "state of the loop " * (1 + 997 * i % 700) for i in range(40)]
    assert max(map(len, texts)) > 2 * LENGTH > 2 * min(map(len, texts))
    data = TextData(Texts(texts), ByteTokenizer(), length=LENGTH, batch_size=2, val_tokens=None, holdout=4)
    data.prepare_data()
    pieces = tokenise(recipe_of(Texts(texts), piece_bytes=9000)).stream("train")
    assert len(pieces.shards) > 5
    cut = PackedRows(pieces, LENGTH, data.tokenizer.eos, mask_documents=True).read(np.arange(20))
    whole = data.sources[0].rows["train"].read(np.arange(20))
    assert all((cut[key] == whole[key]).all() for key in ("tokens", "targets", "documents"))
