"""Modules that every other package may import: errors, records, JSON, files, logging, concurrency."""
