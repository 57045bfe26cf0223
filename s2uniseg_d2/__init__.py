"""S2-UniSeg on Detectron2: universal image segmentation learnt from pictures alone.

Importing this package registers nothing and needs no Detectron2; ``import s2uniseg_d2.modeling`` registers the
backbone, the head and the meta-architecture.
"""

__version__ = "0.1.0"
