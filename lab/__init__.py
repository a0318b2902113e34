"""The lab: a virtual machine with SR-IOV cards, for hosts without such a card.

QEMU's ``igb`` is a complete SR-IOV card; a stock kernel drives it with ``igb`` and ``igbvf``. The lab builds
a Debian guest once, installs this project in it, boots it and runs a command inside. The plugin imports
nothing from this package. See ``docs/lab.md``.
"""
