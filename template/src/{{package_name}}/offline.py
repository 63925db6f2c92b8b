"""The offline model under the name that tests of earlier versions import. Will go with the next release."""

from .dev.offline import OfflineModel

__all__ = ["OfflineModel"]
