"""Nonsense for nbtune: specs, rows, folders of models and of runs that somebody spoilt.

    python -m tests.fuzz --seconds 1800            # or `make fuzz`
    python -m tests.fuzz --only specs --seed 7     # one kind, from one seed

Each case is made from its seed alone. It must end as `accepted` or `refused` (by one of nbtune's own errors); anything
else is a finding: a Python error, more than 10 s, more than 2 GiB, or something accepted that is silently not meant.
"""
