"""The domain: select a VF, attach it to a pod, check it, and return it to the host unchanged."""
