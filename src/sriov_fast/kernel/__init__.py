"""System calls and netlink messages: the compiled modules, or the plain ones in their place."""
