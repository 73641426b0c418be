"""Reads a features file with pyarrow and with polars, and checks that they see the same numbers."""

import sys

import polars
import pyarrow.parquet

path = sys.argv[1]
file = pyarrow.parquet.ParquetFile(path)
notes = {key.decode(): value.decode() for key, value in file.metadata.metadata.items() if not key.startswith(b"ARROW")}
for name in ("weights", "model", "preprocessing", "grid", "embed_dim", "float"):
    assert name in notes, f"the metadata lacks {name}"
table = file.read()
assert table.column_names == ["id", "patient", "class", "prompt", "split", "pooled", "dense", "mask"], table.column_names
assert set(table["split"].to_pylist()) == {"training", "validation"}
some = file.read_row_group(0, columns=["id", "pooled"])
assert some.column_names == ["id", "pooled"]

frame = polars.read_parquet(path)
ours, theirs = table["dense"][0].as_py(), frame["dense"][0].to_list()
assert ours == theirs, "pyarrow and polars disagree"
print(f"rows {frame.height}, pooled {len(table['pooled'][0])}, dense {len(ours)}, row groups {file.num_row_groups}")
