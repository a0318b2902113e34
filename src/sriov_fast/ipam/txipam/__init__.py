"""``txipam``: the client of the address service."""
