"""The lab: a virtual machine with real SR-IOV cards, for everyone who has none.

QEMU's ``igb`` is a complete SR-IOV card; a stock kernel drives it with ``igb`` and ``igbvf``. The lab builds
a Debian guest once, installs this project in it, boots it and runs a command inside. Nothing here is imported
by the plugin. See ``docs/lab.md``.
"""
