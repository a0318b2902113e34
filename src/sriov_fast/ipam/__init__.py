"""IPAM delegation: another plugin of CNI_PATH hands out the addresses."""
