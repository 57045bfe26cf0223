"""Training and evaluation runs on Detectron2's engine."""
