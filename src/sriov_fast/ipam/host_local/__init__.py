"""The built-in ``host-local``: addresses from ranges, kept in files on this node."""
