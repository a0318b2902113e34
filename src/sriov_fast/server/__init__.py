"""The resident server: what the static client hands over is served by a process that is warm already."""
