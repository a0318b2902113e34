"""The domain: VFs of PFs, what was done to them, and the way back."""
