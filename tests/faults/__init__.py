"""Fault injection: every system call of the plugin fails once, or is the last before SIGKILL."""
