"""Read, check and show configs; nothing here needs torch."""

from base.config.config import Config
from base.config.durations import Duration, parse_duration
from base.config.json_schema import json_schema
from base.config.loading import load_config

__all__ = ["Config", "Duration", "json_schema", "load_config", "parse_duration"]
