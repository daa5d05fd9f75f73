"""The packages of cee-gym: `agents/` and `envs/` beside `cee_gym/` are its subpackages."""

from setuptools import setup

EXTRAS = {
    "contrib": ["sb3-contrib>=2.9,<3"],
    "tune": ["optuna>=4", "sqlalchemy>=2"],
    "serve": ["fastapi>=0.132", "uvicorn>=0.30", "prometheus-client>=0.23"],
    "export": ["onnx>=1.18", "onnxruntime>=1.22", "onnxscript>=0.3"],
    "generation": ["gguf>=0.10", "peft>=0.17", "rouge-score>=0.1.2", "torchmetrics>=1.4"],
    "lm-eval": ["lm-eval>=0.4.9"],
    "zoo": ["rl_zoo3>=2.9,<3"],
    "cluster": ["ray>=2.50"],
    "report": ["altair>=6", "vl-convert-python>=1.8"],
    "docs": [
        "latex2mathml>=3.77",
        "mkdocs>=1.6,<2",
        "mkdocs-material>=9.7",
        "mkdocstrings-python>=2",
    ],
    "dev": [
        "build>=1.2",
        "httpx2>=2",
        "hypothesis>=6.100",
        "ipykernel>=6.29",
        "moviepy>=2",
        "mypy>=2",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "pre-commit>=4",
        "pytest>=8.3",
        "ruff>=0.15",
        "setuptools>=77",
    ],
}

setup(
    name="cee-gym",
    version="0.1.0",
    description=(
        "Early exit in language models as a reinforcement-learning problem, after ConsistentEE"
    ),
    long_description=open("README.md", encoding="utf-8").read(),  # noqa: SIM115
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        "cee_gym",
        "cee_gym.agents",
        "cee_gym.backbones",
        "cee_gym.cli",
        "cee_gym.envs",
        "cee_gym.evaluation",
        "cee_gym.exits",
        "cee_gym.generation",
        "cee_gym.inference",
        "cee_gym.onnx",
        "cee_gym.policies",
        "cee_gym.reporting",
        "cee_gym.serving",
        "cee_gym.studies",
        "cee_gym.tasks",
        "cee_gym.traces",
        "cee_gym.training",
    ],
    # The folders beside cee_gym/ are its subpackages; the two links inside it only serve a
    # checkout.
    package_dir={"cee_gym.agents": "agents", "cee_gym.envs": "envs"},
    package_data={"cee_gym": ["py.typed", "shipped/**/*"]},
    install_requires=[
        "accelerate>=1.0",
        "array-api-compat>=1.14",
        "datasets>=4.1",
        "filelock>=3.12",
        "fsspec>=2024.6",
        "gymnasium>=1.4,<2",
        "huggingface-hub>=1.31",
        "matplotlib>=3.8.4",
        "numpy>=2",
        "pandas>=2.2.2",
        "safetensors>=0.5",
        "scikit-learn>=1.4.2",
        "scipy>=1.15",
        "stable-baselines3>=2.9,<3",
        "tensorboard>=2.18",
        "torch>=2.8,<3",
        "tqdm>=4.66.3",
        "transformers>=5.13,<6",
        "tyro>=0.9.20",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["cee-gym = cee_gym.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
