"""The claims of the papers: recipes, skipping, promises, policies, predictors and depth."""
