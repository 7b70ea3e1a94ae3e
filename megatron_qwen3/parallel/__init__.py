"""How the ranks share one model: `layout.py` counts them, `runtime.py` sets them up."""
