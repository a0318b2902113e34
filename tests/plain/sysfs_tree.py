from harness.sysfs_tree import *  # noqa: F403
