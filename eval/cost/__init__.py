"""What a model costs: FLOPs by formula (`flops.py`), a whole pre-training (`plan.py`), times (`benchmarks/`)."""
