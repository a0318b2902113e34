"""The image of a started interpreter: made here, continued by ``client/image.c``."""
