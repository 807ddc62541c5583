"""Many videos over many workers: in this process (`here`), in processes of this machine (`pool`), on a Ray cluster.

All three have one face, `work.Fleet`: a recipe makes a worker, items are handed out as they come, a result comes back for
each item once. Only paths and options travel to workers, and rows back.
"""
