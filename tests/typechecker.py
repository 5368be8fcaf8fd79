"""The run-time type checker of the suite: beartype, to which whole numbers are numbers."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
