"""Kaggle kernels: the kit as a data set, the notebook that uses it, and its rehearsal here.

python -m common.kaggle pack|kernel|rehearse|record|push|status|output|submit
"""
