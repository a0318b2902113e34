"""The verbs of the plugin: ADD, DEL, CHECK, STATUS, GC and VERSION."""
