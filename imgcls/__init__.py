"""Image classification from a notebook: exact, honest, light

Modules:

- `imgcls.answering`: Which weights answer?
- `imgcls.arcgis`: What does ArcGIS run, when somebody opens a classifier there?
- `imgcls.assembly`: How do data, a config and objects of yours become everything that trains?
- `imgcls.audit`: Can every image be read, and is none of them there twice?
- `imgcls.augmentation`: What may chance do to an image in training?
- `imgcls.averaging`: What do the weights of the last epochs have in common?
- `imgcls.balance`: One class has twenty times the images of another. What can training do about it?
- `imgcls.batch_size`: How many images fit in a batch?
- `imgcls.beginning`: I have a folder of images. What should the first config say?
- `imgcls.blocks`: What can be done with the blocks of a deep network: compute them twice to save memory, leave some out to learn better?
- `imgcls.browser`: What is in the data, and what does the network see of it?
- `imgcls.cache`: Which pixels need not be made twice?
- `imgcls.callbacks`: What can be added to the loop without touching it?
- `imgcls.canvas`: How does one image reach several networks, each in its own size?
- `imgcls.checking`: What is wrong with these images, before a network learns it?
- `imgcls.checkpointing`: How is a state kept in a file, so that it can neither be lost nor lie?
- `imgcls.cli`: How is it used from a shell?
- `imgcls.cluster`: How is work done by the processes of a Ray cluster, and what if one of them is killed?
- `imgcls.combining`: How do several looks, or several networks, give one answer?
- `imgcls.commands`: How does a run answer, get judged and get handed on from a shell?
- `imgcls.comparison`: Which run was better, and what was different about it?
- `imgcls.config`: How is an experiment's configuration read, checked, changed, compared and saved?
- `imgcls.control`: How is a training steered from a terminal, or from anywhere else that can write a file?
- `imgcls.core`: Which words does every other room use?
- `imgcls.data`: What does a learner learn from?
- `imgcls.data_commands`: How are images checked and divided from a shell, before anything is trained?
- `imgcls.datasets`: Which images are there, and what do they show?
- `imgcls.decisions`: When is an answer sure enough to act on, and what may it be if not?
- `imgcls.deletion`: How does a run go away, and nothing else with it?
- `imgcls.delivery`: How does news of a training reach a server that may be away?
- `imgcls.demo`: Can a colleague try it in a browser?
- `imgcls.describing`: What is a set of images, in numbers?
- `imgcls.division`: How do several processes hold a network that none of them could hold alone?
- `imgcls.duplicates`: Which images show the same?
- `imgcls.edits`: How are labels mended without touching a file?
- `imgcls.engines`: Who trains the runs of a study: this process, or a cluster?
- `imgcls.ensembles`: Do several looks, or several runs, know more than one?
- `imgcls.evaluation`: How sure may one be of what it says?
- `imgcls.experiment`: Which knobs are there, all on one page?
- `imgcls.explorer`: Which images are behind a number?
- `imgcls.export`: What is delivered, so that a classifier can be used without imgcls, and believed?
- `imgcls.flips`: Which of two runs was right more often, and on which images do they disagree?
- `imgcls.folders`: Which images lie in a folder, and what do its parts mean?
- `imgcls.folds`: How much of an accuracy is the network, how much the images it was judged on, and how much luck?
- `imgcls.formulas`: Which number sums up how often each class was right, or how well its probabilities rank the images?
- `imgcls.gallery`: How does one look at ten thousand images?
- `imgcls.geo`: How does a classifier get onto a map, and into a catalogue of models?
- `imgcls.history`: What happened while the network learned?
- `imgcls.huggingface`: What do the rows of a dataset mean?
- `imgcls.images`: How does any image file become the same kind of picture?
- `imgcls.imbalance`: When do some classes have so many more images than others that it must be said?
- `imgcls.inference`: How does a trained run answer, where nobody trains?
- `imgcls.init_command`: How is a first config written in a shell?
- `imgcls.interpretation`: Where does the network look, and why does it say that?
- `imgcls.jobs`: How does one config become many runs, and how are they trained once each?
- `imgcls.keeping`: What does a run leave on the disk while it trains, and how is it taken up again?
- `imgcls.label_explorer`: Which images are behind the numbers of a label?
- `imgcls.labels`: Which labels are probably wrong, and what should be done about each?
- `imgcls.launching`: How are several processes started, and what becomes of the run when one of them ends?
- `imgcls.layers`: Which blocks does a network consist of, from its input to its head?
- `imgcls.learner`: How do I train, stop, resume, evaluate and predict?
- `imgcls.listing`: Which runs are there, and what differs between them?
- `imgcls.loaders`: How do images become batches, in an order that can be taken up anywhere?
- `imgcls.losses`: What does training make smaller?
- `imgcls.lr_finder`: How large may the learning rate be?
- `imgcls.manifests`: Which images was it, and are they still what they were?
- `imgcls.markup`: How do names and numbers become HTML that looks the same everywhere?
- `imgcls.memory`: How much memory does a step need, how much is there, and what is said when it ends?
- `imgcls.metrics`: How good is the network, batch by batch, without slowing the step?
- `imgcls.mlflow_delivery`: In which form does an MLflow server take what happened?
- `imgcls.mlflow_tracking`: How is a training followed in MLflow, also when its server goes away?
- `imgcls.multilabel`: Which classes does an image show, where it may show several, or none?
- `imgcls.multilabel_evaluation`: Which labels are found, which are missed, and how sure is that?
- `imgcls.multilabel_losses`: What is made smaller where an image may show several classes at once?
- `imgcls.multilabel_predictions`: Which labels did the network give to each image?
- `imgcls.muon`: How does a matrix of weights move as one thing?
- `imgcls.networks`: Which network, with which weights, and which of them may move?
- `imgcls.optimizers`: How do the weights move, and how fast at each step?
- `imgcls.packages`: How does a trained classifier reach people who have never heard of imgcls?
- `imgcls.pages`: How does a notebook become a page that one likes to read?
- `imgcls.paired`: Which of two networks is right more often, and about which images do they disagree?
- `imgcls.pipeline`: How does an experiment run from its config to its reports?
- `imgcls.plots`: How do arrays become pictures that show themselves, anywhere?
- `imgcls.portable`: How does a predictor become one network, from pixels to probabilities, and a file that needs no imgcls?
- `imgcls.predictions`: What did the network say?
- `imgcls.predictor`: What does this network see in these images?
- `imgcls.preprocessing`: How do pretrained weights want their images?
- `imgcls.processes`: What do processes that do one thing together have to tell each other?
- `imgcls.progress`: What do you see while it trains?
- `imgcls.proof`: Does a file answer as the predictor does, where there is no imgcls?
- `imgcls.quantization`: What do 8-bit weights cost, and what do they gain?
- `imgcls.records`: What does a training leave in its folder, and how is it taken up again?
- `imgcls.relaying`: It trains in other processes. How do I see it here, and how do I steer it?
- `imgcls.remote`: May an image lie on another machine?
- `imgcls.reproduce_command`: Does a run, made once more, give the same weights?
- `imgcls.reproduction`: Does a run, made once more from its folder, give the same weights?
- `imgcls.run_commands`: How are runs listed, compared, deleted and looked at from a shell?
- `imgcls.runs`: Where is everything that a run leaves behind, and who may train in it?
- `imgcls.runtime`: Where is it computed, in which numbers, with which versions, and where is it shown?
- `imgcls.samples`: What can be tried without data of one's own?
- `imgcls.scores`: How often was it right?
- `imgcls.search`: Which values may a knob take, and who remembers which were tried?
- `imgcls.seeding`: Where does every random number come from?
- `imgcls.settings`: Where do data and runs live on this machine, and where do messages go?
- `imgcls.sharing`: How do several processes make one step of one network?
- `imgcls.sharpness`: Does the loss stay low when the weights are moved a little?
- `imgcls.sources`: With which script, notebook and modules of yours was a run made?
- `imgcls.splits`: Which images are learned from, which are used to choose, and which to judge?
- `imgcls.splitting`: How is a folder divided once and for all, so that nothing is on both sides?
- `imgcls.stages`: What does each step of a pipeline do to one image?
- `imgcls.steering`: How does a person change a training while it runs?
- `imgcls.storage`: Where do the bytes of an image lie?
- `imgcls.strategies`: How are many images answered faster, and are the answers still the same?
- `imgcls.stratification`: How are images with several labels divided so that every label has its share everywhere?
- `imgcls.streaming`: What does the network see in a million images, and what if the power fails at half past three?
- `imgcls.summaries`: How did a run go, in one file that a person reads and a program reads back?
- `imgcls.sweep_command`: How are many settings tried from a shell, on one machine or on several?
- `imgcls.sweeps`: Which settings are best, and how good are they really?
- `imgcls.symbols`: What does a module offer, as its source says it?
- `imgcls.synchronization`: What does BatchNorm see of a batch that several processes share?
- `imgcls.tables`: How is an answer a row of a file?
- `imgcls.tracking`: Where else is a training written: TensorBoard, or a tracker of yours?
- `imgcls.training`: What happens, step by step, when a network learns?
- `imgcls.transforms`: What happens to an image before the network sees it?
- `imgcls.trying`: What does it say of an image of mine?
- `imgcls.turns`: Who may use what the whole process shares, and when?
- `imgcls.verification`: How do I know that stopping costs nothing?
- `imgcls.webdataset`: What do the members of shards mean?
- `imgcls.weights`: What is in a file of weights, and what of it was taken?
- `imgcls.widgets`: How does a picture become something to click, and stay a picture where nobody can click?"""

__version__ = "0.1.0"

# Registries share their room's name, so they are imported from it: from imgcls.networks import networks
_HOMES = {
    "ImageData": "data", "sample_digits": "data", "sample_photos": "data", "sample_scenes": "data", "Edits": "edits",
    "Learner": "learner",
    "load_predictor": "inference", "Ensemble": "ensembles", "average_weights": "ensembles", "judge_sets": "decisions",
    "Export": "export", "model_card": "packages", "hub_folder": "packages", "push_to_hub": "packages",
    "write_dlpk": "geo", "write_stac": "geo",
    "Predictor": "predictor", "Predictions": "predictions", "Evaluation": "evaluation", "explain": "interpretation",
    "ExperimentConfig": "experiment", "load_experiment": "experiment", "presets": "experiment",
    "train": "pipeline",
    "cross_validate": "folds", "repeat": "folds", "difference": "folds", "sweep": "sweeps", "read_sweep": "sweeps",
    "uniform": "search", "loguniform": "search", "integers": "search", "choice": "search",
    "Callback": "training", "State": "training", "TrainingInterrupted": "training", "Replay": "steering",
    "ImgclsError": "core", "ConfigError": "core", "DataError": "core", "CheckpointError": "core",
    "MissingExtra": "core",
    "find_settings": "settings", "environment": "runtime", "preserve_rng": "seeding",
    "Run": "runs", "list_runs": "listing",
    "explore": "explorer", "browse": "browser", "fix_labels": "labels", "compare_runs": "comparison",
    "predict_widget": "trying", "compare": "flips", "delete_run": "deletion", "reproduce": "reproduction",
    "check_folder": "checking", "split_folder": "splitting", "suggest": "beginning",
    "download_hymenoptera": "samples",
}
__all__ = sorted(_HOMES)

_LOADING = "load_predictor(run, folder or file) to answer, Learner.from_run(run) to go on training"
_ELSEWHERE = {      # what other libraries call it
    **dict.fromkeys(("load_learner", "load_model", "load", "from_pretrained"), _LOADING),
    **dict.fromkeys(("TTA", "tta", "with_views"), "predictor.with_views('flip')"), "predict": "predictor.predict(images)",
}


def __getattr__(name):
    if name in _HOMES: return getattr(_room(_HOMES[name]), name)
    if not name.startswith("__"):
        from difflib import get_close_matches
        near = get_close_matches(name, __all__, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        if name in _ELSEWHERE: hint = f" Here it is: {_ELSEWHERE[name]}."
        raise AttributeError(f"imgcls has no {name!r}.{hint}")
    raise AttributeError(name)


def _room(name):
    "Import a room. What an import makes stays, so Python need not search it for garbage again and again meanwhile."
    import gc
    from importlib import import_module
    searching = gc.isenabled()
    gc.disable()
    try: return import_module(f"{__name__}.{name}")
    finally:
        if searching: gc.enable()


def __dir__(): return [*__all__, "__version__"]
