import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    source = (ROOT / "s2uniseg_d2" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', source, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError("s2uniseg_d2/__init__.py must state __version__")
    return match.group(1)


setup(
    name="s2uniseg_d2",
    version=read_version(),
    description="S2-UniSeg, universal image segmentation learnt without labels, as an extension of Detectron2",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The S2-UniSeg D2 authors",
    license="Apache-2.0",
    # The recipes lie beside the package in a checkout and inside it in a wheel, so that its commands find them.
    packages=[*find_packages(include=["s2uniseg_d2", "s2uniseg_d2.*"]), "s2uniseg_d2.configs"],
    package_dir={"s2uniseg_d2.configs": "configs"},
    package_data={
        "s2uniseg_d2": ["py.typed"],
        "s2uniseg_d2.configs": ["**/*.yaml"],
        "s2uniseg_d2.gallery": ["page.html", "page.css", "page.js"],
    },
    # All else beside the package stays out of the wheel; MANIFEST.in says what a source archive holds.
    include_package_data=False,
    license_files=["LICENSE"],
    entry_points={
        "console_scripts": [
            "s2uniseg-demo = s2uniseg_d2.demo:main",
            "s2uniseg-own-pictures = s2uniseg_d2.own_pictures:main",
            "s2uniseg-pseudo-masks = s2uniseg_d2.pseudo_masks:main",
        ]
    },
    python_requires=">=3.10",
    # Loose bounds for environments that exist. The lower ones are the pins of requirements-oldest.txt, with which the
    # tests are run as with those of requirements.txt (docs/compatibility.md). Detectron2 itself is on no registry
    # (tools/install_detectron2.py installs it), but what it needs is listed here. hydra-core before 1.3 and omegaconf
    # before 2.2 cannot be imported on Python 3.12, tensorboard before 2.18 asks for names that NumPy 2 took away, and
    # timm before 1.0.21 cannot lay a model out on the meta device, which is how recipes are checked without memory.
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "timm>=1.0.21",
        "numpy>=1.26",
        "scipy>=1.11.1",
        "safetensors>=0.4.2",
        "PyYAML>=6.0",
        "Pillow>=9.4",
        # The same cv2 as opencv-python, without the libGL that servers and containers lack.
        "opencv-python-headless>=4.8.0.76",
        "pycocotools>=2.0.7",
        "faster-coco-eval>=1.6",
        "matplotlib>=3.6",
        # From 2.1 on it leaves colours out of files and pipes, and heeds NO_COLOR.
        "termcolor>=2.1",
        "yacs>=0.1.8",
        "tabulate>=0.8.10",
        "cloudpickle>=2.2",
        "tqdm>=4.64.1",
        "tensorboard>=2.18",
        "fvcore>=0.1.5.post20221221,<0.1.6",
        "iopath>=0.1.10,<0.1.11",
        "omegaconf>=2.2.1,<2.4",
        "hydra-core>=1.3",
        "black>=22.1",
        "packaging>=24.0",
        "setuptools>=68,<81",
    ],
    # for tools/export_model.py
    extras_require={"export": ["onnx>=1.16", "onnxscript>=0.2", "onnxruntime>=1.18"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
