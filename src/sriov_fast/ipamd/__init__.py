"""The address service, the server of the `txipam` plugin."""
