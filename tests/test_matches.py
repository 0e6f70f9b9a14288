"""Steps from several sources to matches, against loops over pairs."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from common.config import ConfigError
from common.notes import Notes
from common.rerank import matches, rules, sources
from common.rerank.blending import neighborhood_blending
from common.rerank.listings import Listings, listing_columns
from common.rerank.sources import Sources
from common.rerank.truth import Truth
from common.retrieval.tfidf import Semantic, Tfidf
from common.types import Embeddings, Neighbors

N = 40
LABELS = np.repeat(np.arange(N // 4), 4)


@pytest.fixture(scope="module")
def two():
    """Two sources of ten products of four; each knows half of them well."""
    torch.manual_seed(0)
    ids = np.array([f"p{i:02d}" for i in range(N)])
    parts = {}
    for place, name in enumerate(("image", "text")):
        centers = torch.randn(N // 4, 8)
        noise = torch.where(torch.arange(N) % 2 == place, 0.35, 1.1)[:, None]
        vectors = normalize(centers[torch.from_numpy(LABELS)] + noise * torch.randn(N, 8))
        parts[name] = Embeddings(ids, vectors)
    return Sources(parts)


@pytest.fixture
def truth():
    return Truth(LABELS, np.arange(N) < 28)


def pairs(near):
    return {
        (i, int(j)): float(s)
        for i, (row, values) in enumerate(zip(near.index, near.score, strict=True))
        for j, s in zip(row, values, strict=True)
        if j >= 0
    }


def test_union_is_the_most_above_a_threshold(two):
    limits = {"image": 0.6, "text": 0.4}
    near = matches.union(two, None, {}, k=N, thresholds=limits)
    cosine = {name: part.vectors @ part.vectors.T for name, part in two.parts.items()}
    found = pairs(near)
    assert len(found) == N * (N - 1)
    for (i, j), score in found.items():
        expected = max(float(cosine[name][i, j]) - limits[name] for name in limits)
        assert score == pytest.approx(expected, abs=1e-6)


def test_thresholds_of_a_union_are_found_and_kept_for_the_test(two, truth):
    memory, notes = {}, Notes()
    near = matches.union(two, truth, memory, notes=notes)
    alone = [truth.best(two.near(name, 50))[1] for name in two.parts]
    assert truth.row_f1(kept_above(near, 0.0)).mean() >= max(alone) - 1e-9
    assert truth.best(near)[1] > max(alone) + 0.05
    assert set(memory["thresholds"]) == {"image", "text"}
    assert "union: threshold of image" in notes.numbers
    again = matches.union(two, None, memory)
    assert torch.equal(again.index, near.index)
    with pytest.raises(ConfigError, match="union looks for thresholds on held-out listings"):
        matches.union(two, None, {})


def kept_above(near, limit):
    keep = near.score >= limit
    return Neighbors(near.index.masked_fill(~keep, -1), near.score.masked_fill(~keep, -torch.inf))


def test_a_source_that_only_harms_is_left_out(two, truth):
    torch.manual_seed(1)
    noise = Embeddings(two.first.ids, normalize(torch.randn(N, 3)))
    memory = {}
    near = matches.union(two.having("noise", noise), truth, memory)
    assert truth.best(near)[1] >= truth.best(matches.union(two, truth, {}))[1] - 0.03
    assert memory["thresholds"]["noise"] > 0.9


def test_mean_of_powers(two):
    near = matches.mean(two, weights=[1, 3], power=2, k=N)
    cosine = [part.vectors @ part.vectors.T for part in two.parts.values()]
    for (i, j), score in pairs(near).items():
        expected = sum(
            w * max(float(c[i, j]), 0) ** 2 for w, c in zip((0.25, 0.75), cosine, strict=True)
        )
        assert score == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="need as many weights"):
        matches.mean(two, weights=[1])


def test_complete_follows_friends_of_friends(two):
    near = matches.nearest(two, of="image", k=5)
    found = pairs(rules.complete(near, top=3, cost=0.05))
    listed = pairs(near)
    expected = dict(listed)
    for a in range(N):
        for b in near.index[a, :3].tolist():
            for c in near.index[b, :3].tolist():
                if c != a:
                    worth = min(listed[a, b], listed[b, c]) - 0.05
                    expected[a, c] = max(expected.get((a, c), -9), worth)
    assert found.keys() == expected.keys()
    for pair, score in expected.items():
        assert found[pair] == pytest.approx(score, abs=1e-6)


def test_mutual_ranks_and_gaps_and_both_ways(two):
    near = matches.nearest(two, of="text", k=6)
    listed = pairs(near)
    lists = [row.tolist() for row in near.index]
    gained = pairs(rules.mutual_ranks(near, None, {}, first=2, gain=1.0))
    for (i, j), score in listed.items():
        mutual = j in lists[i][:2] and i in lists[j][:2]
        assert gained[i, j] == pytest.approx(score + mutual, abs=1e-6)
    gained = pairs(rules.rank_gap(near, None, {}, gap=0.1, gain=1.0))
    for (i, j), score in listed.items():
        lead = j == lists[i][0] and listed[i, j] - listed[i, lists[i][1]] >= 0.1
        assert gained[i, j] == pytest.approx(score + lead, abs=1e-6)
    asymmetric = Neighbors(near.index, near.score + torch.arange(N)[:, None] / 100).sorted()
    once = pairs(asymmetric)
    for (i, j), score in pairs(rules.both_ways(asymmetric)).items():
        assert score == pytest.approx((once[i, j] + once.get((j, i), once[i, j])) / 2, abs=1e-6)


def test_a_gain_is_found_only_where_it_helps(two, truth):
    memory = {}
    near = matches.nearest(two, of="image", k=8)
    found = rules.mutual_ranks(near, truth, memory, first=2)
    assert truth.best(found)[1] >= truth.best(near)[1]
    assert memory["gain"] >= 0
    with pytest.raises(ConfigError, match="mutual_ranks looks for a gain"):
        rules.mutual_ranks(near, None, {})


def test_titles_that_state_other_amounts_are_no_match(two):
    titles = [f"tea {500 if i % 2 else 250} ml" if i < 20 else "tea" for i in range(N)]
    near = matches.nearest(two, of="image", k=N)
    left = pairs(rules.unit_veto(near, Listings(titles)))
    expected = {(i, j) for i, j in pairs(near) if not (i < 20 and j < 20 and (i + j) % 2)}
    assert set(left) == expected


def test_a_vote_subtracts_each_lists_own_threshold(two, truth):
    def run(steps, memory):
        return matches.nearest(two, of=steps, k=N)

    memory = {}
    near = matches.vote(run, truth, memory, of=["image", "text"], weights=[1, 3])
    limits = memory["thresholds"]
    assert limits == [truth.best(two.near(name, N))[0] for name in two.parts]
    cosine = [part.vectors @ part.vectors.T for part in two.parts.values()]
    for (i, j), score in pairs(near).items():
        one, other = (float(c[i, j]) - t for c, t in zip(cosine, limits, strict=True))
        assert score == pytest.approx((one + 3 * other) / 4, abs=1e-5)
    assert truth.best(near)[1] >= 0.5
    with pytest.raises(ValueError, match="of is a list of lists"):
        matches.vote(run, truth, {})


def test_a_stage_of_its_own_is_neighborhood_blending(two):
    limits = {"image": 0.5, "text": 0.7}
    moved = sources.inb_stage(two, None, {}, thresholds=limits, second=0.1, k=6)
    for name, part in two.parts.items():
        expected, _ = neighborhood_blending(
            part, part, thresholds=[limits[name]], second=limits[name] - 0.1, k=6
        )
        torch.testing.assert_close(moved.parts[name].vectors, expected.vectors)


def test_a_stage_by_union_moves_all_sources_to_the_same_matches(two):
    limits = {"image": 0.8, "text": 0.7}
    moved = sources.inb_stage(two, None, {}, by="union", thresholds=limits, second=None)
    cosine = {name: part.vectors @ part.vectors.T for name, part in two.parts.items()}
    for name, part in two.parts.items():
        for i in range(N):
            total = part.vectors[i].clone()
            for j in range(N):
                passed = [float(cosine[n][i, j]) for n in limits if cosine[n][i, j] >= limits[n]]
                if j != i and passed:
                    total += max(passed) * part.vectors[j]
            torch.testing.assert_close(
                moved.parts[name].vectors[i], normalize(total, dim=0), atol=1e-5, rtol=0
            )


def test_stages_find_thresholds_and_help(two, truth):
    memories = [{}, {}]
    moved = sources.inb_stage(two, truth, memories[0], by="union")
    moved = sources.inb_stage(moved, truth, memories[1])
    before, after = (truth.best(s.near("image", 50))[1] for s in (two, moved))
    assert after > before + 0.05
    assert all(set(memory["thresholds"]) == {"image", "text"} for memory in memories)
    with pytest.raises(ConfigError, match="inb_stage looks for image"):
        sources.inb_stage(two, None, {})
    with pytest.raises(ValueError, match="by is own or union"):
        sources.inb_stage(two, truth, {}, by="all")


def test_joined_sources_average_cosines_and_exact_rows_stay_until_moved(two):
    titles = [f"product number{label} word{i % 3}" for i, label in enumerate(LABELS)]
    tfidf = Tfidf("word").fit(titles)
    rows = tfidf.transform(two.first.ids, titles)
    short = Semantic(2).fit(rows).transform(rows)
    all_ = Sources({**two.parts, "words": short}, {"words": rows})
    near = all_.near("words", 3)
    dense = (rows.matrix @ rows.matrix.T).toarray()
    np.fill_diagonal(dense, -1)
    np.testing.assert_allclose(near.score[:, 0], dense.max(1), atol=1e-6)
    found = all_.similarity("words", near.index)
    torch.testing.assert_close(found, near.score)
    moved = sources.alpha_qe(all_, of=["words"], k=2)
    assert "words" in all_.sparse
    assert "words" not in moved.sparse
    joined = sources.concat(all_, of=["image", "text"], weights=[1, 3]).parts["joined"].vectors
    cosine = [part.vectors @ part.vectors.T for part in two.parts.values()]
    torch.testing.assert_close(
        joined @ joined.T, cosine[0] / 4 + 3 * cosine[1] / 4, atol=1e-5, rtol=0
    )
    assert list(sources.only(all_, of=["words"]).sparse) == ["words"]
    assert list(sources.dba(all_, of=["text"]).sparse) == ["words"]
    with pytest.raises(ConfigError, match="No source 'sound'; there are image, text, words"):
        sources.concat(all_, of=["sound"])


def test_columns_of_pairs(tmp_path):
    titles = ["Red Tea 500ml", "red tea 1 l", "", "tea red"]
    hashes = np.array([0, 7, 7, 1], np.uint64)
    missing = np.array([b"/nowhere/a.jpg"] * 4)
    found = listing_columns(
        Listings(titles, hashes, missing), np.array([0, 1, 0, 2]), np.array([1, 3, 0, 2])
    )
    assert found["hash"].tolist() == [3, 2, 0, 0]
    assert found["differ"].tolist() == [1, 0, 0, 0]
    assert found["agree"].tolist() == [0, 0, 1, 0]
    assert found["sorted_edits"][2] == 1
    assert found["shared_words"][:3].tolist() == [0.5, pytest.approx(2 / 3), 1]
    assert np.isnan(found["shared_words"][3])
    assert found["words_apart"].tolist() == [0, 1, 0, 0]
    assert np.isnan(found["bytes_ratio"]).all()
    assert np.isnan(listing_columns(Listings(titles), np.array([0]), np.array([1]))["hash"]).all()


def test_brands_and_what_every_shop_writes():
    titles = ["acme red tea"] * 3 + ["promo bolt soap"] * 3 + ["tea"]
    found = listing_columns(Listings(titles), np.array([0, 0, 0, 3]), np.array([1, 3, 6, 4]))
    assert found["brand"][[0, 1, 3]].tolist() == [1, 0, 1]
    assert np.isnan(found["brand"][2])  # one names none
    assert found["words_b"].tolist() == [3, 2, 1, 2]
