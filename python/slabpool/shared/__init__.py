"""How processes meet over a shared pool: finding it by name, handing over its files, noticing who is gone.

Nothing here is on the way of a tensor or of an ack; those are in the core, on the memory itself.
"""
