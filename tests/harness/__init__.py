"""The harness of all tiers: runtimes, servers, pods, and nodes with or without a card.

``runtime`` executes the plugin as a container runtime does; ``server`` starts ``sriov-fast serve``; ``pod``
works on namespaces. ``veth`` is a node with veth pairs as VFs, ``card`` one with the VFs of a real PF.
"""
