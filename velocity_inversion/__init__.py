"""From raw shot gathers to a velocity section with error bars and a waveform misfit.

Train an ensemble with `train.train`, use it with `infer.load` and `infer.predict`; for a training loop of
one's own there are `ensemble.EnsembleVelocityModel`, `criterion.VelocityInversionLoss` and
`dataset.create_data_loaders`.
"""
