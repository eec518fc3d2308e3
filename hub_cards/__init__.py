"""Model cards for the Hugging Face Hub."""

from .card import DataSource, Metric, write_model_card

__all__ = ["DataSource", "Metric", "write_model_card"]
