"""Image classification from a notebook: exact, honest, light

Modules:

- `imgcls.audit`: Can every image be read, before training starts?
- `imgcls.browser`: What is in the data, and what does the network see of it?
- `imgcls.calibration`: How sure may one be of what it says?
- `imgcls.callbacks`: What can be added to the loop without touching it?
- `imgcls.checkpointing`: How is the state of a run kept, so that it can neither be lost nor lie?
- `imgcls.cli`: How is it used from a shell?
- `imgcls.comparison`: Which run was better, and what was different about it?
- `imgcls.config`: How is an experiment's configuration read, checked, changed, compared and saved?
- `imgcls.core`: Which words does every other room use?
- `imgcls.data`: What does a learner learn from?
- `imgcls.datasets`: Which images are there, and what do they show?
- `imgcls.edits`: How are labels mended without touching a file?
- `imgcls.experiment`: Which knobs are there, all on one page?
- `imgcls.explorer`: Which images are behind a number?
- `imgcls.history`: What happened while the network learned?
- `imgcls.images`: How does any image file become the same kind of picture?
- `imgcls.interpretation`: Where does the network look, and why does it say that?
- `imgcls.keeping`: What does a run leave on the disk while it trains, and how is it taken up again?
- `imgcls.labels`: Which labels are probably wrong, and what should be done about each?
- `imgcls.learner`: How do I train, stop, resume, evaluate and predict?
- `imgcls.loaders`: How do images become batches, in an order that can be taken up anywhere?
- `imgcls.losses`: What does training make smaller?
- `imgcls.lr_finder`: How large may the learning rate be?
- `imgcls.metrics`: How good is the network, batch by batch, without slowing the step?
- `imgcls.networks`: Which network, with which weights, and which of them may move?
- `imgcls.optimizers`: How do the weights move, and how fast at each step?
- `imgcls.pipeline`: How does an experiment run from its config to its reports?
- `imgcls.plots`: How do arrays become pictures that show themselves, anywhere?
- `imgcls.predictions`: What did the network say, and how often was it right?
- `imgcls.progress`: What do you see while it trains?
- `imgcls.runs`: Where is everything that a run leaves behind, and how do two runs differ?
- `imgcls.runtime`: Where is it computed, in which numbers, and with which versions?
- `imgcls.samples`: What can be tried without data of one's own?
- `imgcls.seeding`: Where does every random number come from?
- `imgcls.settings`: Where do data and runs live on this machine, and where do messages go?
- `imgcls.splits`: Which images are learned from, which are used to choose, and which to judge?
- `imgcls.training`: What happens, step by step, when a network learns?
- `imgcls.transforms`: What happens to an image before the network sees it?
- `imgcls.trying`: What does it say of an image of mine?
- `imgcls.verification`: How do I know that stopping costs nothing?
- `imgcls.widgets`: How does a picture become something to click, and stay a picture where nobody can click?"""

__version__ = "0.1.0"

# Registries share their room's name, so they are imported from it: from imgcls.networks import networks
_HOMES = {
    "ImageData": "data", "sample_digits": "data", "sample_photos": "data", "Edits": "edits",
    "Learner": "learner",
    "Evaluation": "predictions", "Predictions": "predictions",
    "ExperimentConfig": "experiment", "load_experiment": "experiment", "presets": "experiment",
    "train": "pipeline",
    "Callback": "training", "State": "training", "TrainingInterrupted": "training", "Replay": "callbacks",
    "ImgclsError": "core", "ConfigError": "core", "DataError": "core", "CheckpointError": "core",
    "MissingExtra": "core",
    "find_settings": "settings", "environment": "runtime", "preserve_rng": "seeding",
    "Run": "runs", "list_runs": "runs",
    "explore": "explorer", "browse": "browser", "fix_labels": "labels", "compare_runs": "comparison",
    "predict_widget": "trying",
    "download_hymenoptera": "samples",
}
_VERBS = {      # rooms that add methods to what a room defines
    "data": ("edits",), "predictions": ("calibration",), "learner": ("verification", "interpretation"),
}
__all__ = sorted(_HOMES)


def __getattr__(name):
    from importlib import import_module
    if name in _HOMES:
        home = _HOMES[name]
        for room in _VERBS.get(home, ()): import_module(f"{__name__}.{room}")
        return getattr(import_module(f"{__name__}.{home}"), name)
    if not name.startswith("__"):
        from difflib import get_close_matches
        near = get_close_matches(name, __all__, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"imgcls has no {name!r}.{hint}")
    raise AttributeError(name)


def __dir__(): return [*__all__, "__version__"]
