"""Exits of models that answer with a score, a set of labels or a ranking: are promises kept, and what do exits save?"""
