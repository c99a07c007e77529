"""Allocation: against brute force, and the choice against DuckDB's."""

import hashlib
import pathlib

import duckdb
import numpy as np
import pools
import pytest

from dinov2_jax import errors
from dinov2_jax.curate import allocation, keyed_hash, sampling_sql, tables

ROOT = pathlib.Path(__file__).parents[2]


def brute_force(sizes, target, order):
    """Give one image at a time to those who gave least and have more."""
    given = [0] * len(sizes)
    while sum(given) < target:
        open_ = [j for j in range(len(sizes)) if given[j] < sizes[j]]
        fewest = min(given[j] for j in open_)
        turn = [j for j in open_ if given[j] == fewest]
        for j in sorted(turn, key=lambda j: order[j])[: target - sum(given)]:
            given[j] += 1
    return given


def test_balance_is_that_of_one_image_at_a_time():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        number = rng.integers(1, 4)  # parents, all in one call
        parents = np.sort(rng.integers(0, number, rng.integers(number, 12)))
        parents[:number] = np.arange(number)
        parents = rng.permutation(parents)
        sizes = rng.integers(0, rng.choice([3, 20]), len(parents))
        order = rng.permutation(len(parents)).astype(np.uint64)
        targets = [
            rng.integers(0, sizes[parents == p].sum() + 1) for p in range(number)
        ]
        given = allocation.balance(sizes, parents, np.array(targets), order)
        for p in range(number):
            of = parents == p
            assert list(given[of]) == brute_force(sizes[of], targets[p], order[of])


def test_more_than_there_is_is_refused():
    with pytest.raises(ValueError):
        allocation.balance(
            np.array([2, 3]), np.array([0, 0]), np.array([6]), np.arange(2)
        )


def test_hash_is_md5s():
    names = ["a/b.jpg", "größe.png", ""]
    expected = [
        int(hashlib.md5(f"7:{name}".encode()).hexdigest()[:16], 16) for name in names
    ]
    assert keyed_hash.hash64(7, names).tolist() == expected


@pytest.mark.parametrize("count", [0, 1, 7, 120, 499, 500])
def test_duckdb_makes_the_same_choice(tmp_path, count):
    names, levels = pools.hierarchy()
    table = tmp_path / "clusters.parquet"
    columns = {f"c{i}": level for i, level in enumerate(levels, 1)}
    tables.write(table, {"name": names} | columns, {})
    for number in (1, 3):
        query = sampling_sql.query(
            str(table), levels=number, count=count, seed=3, dialect="duckdb"
        )
        found = {row[0] for row in duckdb.sql(query).fetchall()}
        times = allocation.choose(names, levels[:number], count, seed=3)
        assert found == set(names[times > 0]) and times.sum() == count == len(found)


def test_query_in_the_docs_is_the_one_printed():
    text = (ROOT / "docs/curation-sampling.md").read_text()
    query = sampling_sql.query(
        "clusters.parquet", levels=2, count=100_000, seed=0, dialect="duckdb"
    )
    assert f"```sql\n{query}```" in text
    spark = sampling_sql.query("c", levels=2, count=1, seed=0, dialect="spark")
    assert "parquet.`c`" in spark and " div " in spark and "//" not in spark


def test_choice_depends_on_names_alone():
    names, levels = pools.hierarchy()
    times = allocation.choose(names, levels, 120, seed=0)
    order = np.random.default_rng(0).permutation(len(names))
    again = allocation.choose(
        names[order], [level[order] for level in levels], 120, seed=0
    )
    np.testing.assert_array_equal(again, times[order])
    other = allocation.choose(names, levels, 120, seed=1)
    assert (other != times).any()
    # Of a larger choice from one cluster, a smaller one is a part.
    few = allocation.choose(names, [], 50, seed=0)
    many = allocation.choose(names, [], 90, seed=0)
    assert few.sum() == 50 and (few <= many).all()


def test_choice_repeats_whole_pools():
    names, levels = pools.hierarchy()
    times = allocation.choose(names, levels, 2 * len(names) + 10, seed=0)
    assert times.sum() == 1010 and set(times) == {2, 3}


def test_levels_that_are_no_hierarchy_are_refused():
    names, (c1, _, _) = pools.hierarchy()
    with pytest.raises(errors.UserError, match=r"cluster \d+ of column c1 lies in"):
        allocation.choose(names, [c1, np.arange(len(c1))], 10, seed=0)
