"""Plain PyTorch parts of S2-UniSeg: nothing in here imports Detectron2."""
