"Image classification from a notebook: exact, honest, light. Names load when they are first used."
__version__ = "0.1.0"

# Registries share their room's name, so they are imported from it: from imgcls.networks import networks
_HOMES = {
    "ImageData": "data", "sample_digits": "data", "sample_photos": "data",
    "Learner": "learner", "Evaluation": "predictions", "Predictions": "predictions",
    "ExperimentConfig": "experiment", "load_experiment": "experiment", "presets": "experiment",
    "train": "pipeline",
    "Callback": "training", "State": "training", "TrainingInterrupted": "training",
    "ImgclsError": "core", "ConfigError": "core", "DataError": "core", "CheckpointError": "core",
    "MissingExtra": "core",
    "find_settings": "settings", "environment": "runtime",
    "Run": "runs", "list_runs": "runs", "compare_runs": "runs",
    "download_hymenoptera": "samples",
}
__all__ = sorted(_HOMES)


def __getattr__(name):
    from importlib import import_module
    if name in _HOMES: return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if not name.startswith("__"):
        from difflib import get_close_matches
        near = get_close_matches(name, __all__, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"imgcls has no {name!r}.{hint}")
    raise AttributeError(name)


def __dir__(): return [*__all__, "__version__"]
