"""MLflow: runs, the registry and the registered model. Nothing outside this room imports mlflow."""
