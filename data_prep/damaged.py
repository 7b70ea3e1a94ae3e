"""Files that end early or make no sense, whatever reads them."""


class DamagedFile(Exception):
    """A compressed stream ends early or makes no sense; the part before it was handed on."""
