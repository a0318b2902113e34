"""Fault injection: every system call of the plugin fails once, or the process is killed in it."""
