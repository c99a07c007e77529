"""The choice of `sample` as a query that DuckDB and Spark run, for tables of any size.

It reads a table with the columns `name` and c1 .. cT and returns the names that
`allocation.choose` chooses.
"""

_DIALECTS = {
    # Reading of a table, what quotes its path, division of integers.
    "duckdb": ("read_parquet('{}')", "'", "//"),
    "spark": ("parquet.`{}`", "`", "div"),
}
DIALECTS = tuple(_DIALECTS)

# Sizes of the children c{t} and what their parents are to give; the largest m with
# sum(min(m, size)) <= target; what each child gives.
_LEVEL = """\
sizes{t} as (
  select {parent} as parent, c{t} as child, count(*) as size,
    {target} as target
  from {rows} group by {group}
),
ranks{t} as (
  select *, sum(size) over (sorted) - size as below,
    row_number() over (sorted) - 1 as place,
    count(*) over (partition by parent) as children
  from sizes{t} window sorted as (partition by parent order by size, child)
),
limits{t} as (
  select parent, child, size, target,
    max(cast(target - below as bigint) {div} (children - place))
      over (partition by parent) as most
  from ranks{t}
),
quotas{t} as (
  select child, least(size, most) + case
    when size > most and row_number() over (
        partition by parent, size > most
        order by substr(md5('{seed}:c{t}:' || cast(child as string)), 1, 16)
      ) <= target - sum(least(size, most)) over (partition by parent)
    then 1 else 0 end as quota
  from limits{t}
)"""

_CHOICE = """\
select name from (
  select name, quota, row_number() over (
      partition by c1 order by substr(md5('{seed}:' || name), 1, 16), name
    ) as place
  from pool join quotas1 on c1 = child
) as ranked
where place <= quota"""


def query(table: str, *, levels: int, count: int, seed: int, dialect: str) -> str:
    """Return the query.

    Args:
      table: Path or pattern of the Parquet files with `name` and c1 .. cT.
      levels: Number of levels T, at least 1.
      count: Number of images to choose, at most the rows of the table.
      seed: Seed of the choice.
      dialect: One of `DIALECTS`.
    """
    read, quote, divide = _DIALECTS[dialect]
    source = read.format(table.replace(quote, 2 * quote))
    parts = [f"pool as (select * from {source})"]
    for number in range(levels, 0, -1):
        above = f"c{number + 1}"
        top = number == levels
        parts.append(
            _LEVEL.format(
                t=number,
                parent="0" if top else above,
                target=f"{count}" if top else "any_value(quota)",
                rows="pool"
                if top
                else f"pool join quotas{number + 1} on {above} = child",
                group=f"c{number}" if top else f"{above}, c{number}",
                div=divide,
                seed=seed,
            )
        )
    return "with " + ",\n".join(parts) + "\n" + _CHOICE.format(seed=seed) + ";\n"
