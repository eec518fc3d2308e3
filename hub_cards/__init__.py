"""Model cards for the Hugging Face Hub."""

from .card import CardContent, Conversion, DataSource, Metric, write_model_card

__all__ = ["CardContent", "Conversion", "DataSource", "Metric", "write_model_card"]
