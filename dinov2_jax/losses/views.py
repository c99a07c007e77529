"""Which teacher views the crops of a student are paired with."""

# Teacher views that global crop 0 and global crop 1 are paired with.
VIEWS = {
    "other": ((1,), (0,)),
    "same": ((0,), (1,)),
    "both": ((0, 1), (0, 1)),
}
