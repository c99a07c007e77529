"""The choice as a query for Spark, run by Spark, against that of `sample`."""

import pools
import pytest

from dinov2_jax.curate import allocation, sampling_sql, tables

pytestmark = pytest.mark.extra
pyspark_sql = pytest.importorskip("pyspark.sql", reason="needs pyspark and Java")


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    """Spark on this machine."""
    folder = tmp_path_factory.mktemp("warehouse")
    builder = pyspark_sql.SparkSession.builder.master("local[2]").config(
        map={
            "spark.sql.warehouse.dir": str(folder),
            "spark.sql.shuffle.partitions": "2",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            "spark.ui.enabled": "false",
        }
    )
    session = builder.getOrCreate()
    yield session
    session.stop()


@pytest.mark.parametrize("count", [0, 7, 120, 499, 500])
def test_spark_makes_the_same_choice(spark, count, tmp_path):
    names, levels = pools.hierarchy()
    table = tmp_path / "it's a `table`.parquet"
    columns = {f"c{i}": level for i, level in enumerate(levels, 1)}
    tables.write(table, {"name": names} | columns, {})
    for number in (1, 3):
        query = sampling_sql.query(
            str(table), levels=number, count=count, seed=3, dialect="spark"
        )
        found = {row[0] for row in spark.sql(query.rstrip(";\n")).collect()}
        times = allocation.choose(names, levels[:number], count, seed=3)
        assert found == set(names[times > 0])
