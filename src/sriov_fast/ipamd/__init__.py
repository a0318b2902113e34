"""The address service, which the `txipam` plugin asks; it stands alone."""
