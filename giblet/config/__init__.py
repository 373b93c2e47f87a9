"""The one configuration: schema, loader, and what is generated from them."""

from giblet.config.load import load_config, load_config_data
from giblet.config.resume import config_differences
from giblet.config.schema import GibletConfig

__all__ = ["GibletConfig", "config_differences", "load_config", "load_config_data"]
