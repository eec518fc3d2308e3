"""Model cards for the Hugging Face Hub, the gallery of checkpoints, and pushing."""

from .card import CardContent, Conversion, DataSource, Metric, write_model_card

__all__ = ["CardContent", "Conversion", "DataSource", "Metric", "write_model_card"]
