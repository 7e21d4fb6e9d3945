"""Fine-tuning: a checkpoint taught new classes, on a transformers Trainer. Needs the extra train.

settings.py   what is asked for, and the defaults that depend on the data
data.py       labelled inputs → pixels on disk, targets, a validation split
students.py   a checkpoint → the model that learns: its head, size, distillation token, what of it is trained
augmentation.py, teacher.py, training.py   what a step does
run.py        the whole, from the inputs to the folder with the new checkpoint; card.py describes it
"""
