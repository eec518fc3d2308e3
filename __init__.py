"""xTrimoGene for Hugging Face transformers."""
