"""The resident server: serves the requests of the static client in a process that is already initialized."""
