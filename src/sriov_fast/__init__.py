"""sriov-fast: a CNI plugin for SR-IOV network cards."""

__version__ = "0.1.0"
