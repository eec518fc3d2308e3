"""Model cards for the Hugging Face Hub."""

from .card import Conversion, DataSource, Metric, write_model_card

__all__ = ["Conversion", "DataSource", "Metric", "write_model_card"]
